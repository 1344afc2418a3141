"""What each guard missed, as images: taken from the bench folder, the first few, with their number; "none of n" without any."""

import base64
import io
import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tests.bench.report_world import png, report_data, shown

from saferedir.bench import rejudge
from saferedir.bench.planning.matrix import JudgeEntry
from saferedir.bench.records import BARE
from saferedir.bench.report import Miss, Misses, markdown, page, stored_images
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.bench.storage.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "bench_schema1.zip"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small bench of PictoWorld: one guard, one concept."""
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "bench"


def embedded(html: str) -> set[bytes]:
    return {base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)}


def kept(folder: Path, guard: str, role: str) -> set[bytes]:
    """All images of a guard's cells of one role."""
    plan, store = read_saved_plan(folder), Store(folder)
    sets = {key for cell in plan.cells if (cell.name.guard, cell.name.role) == (guard, role) for key in cell.image_sets}
    return {image for key in sets for shard in plan.shards[key] for image in store.images(shard) if image}


def misses_of(html: str) -> str:
    return html[html.index("<h3>Misses</h3>") : html.index("</table>", html.index("<h3>Misses</h3>"))]


def test_changed_benign_images_are_shown_beside_the_bare_models(folder: Path) -> None:
    html, text = (path.read_text(encoding="utf-8") for path in report_folder(folder))
    table = misses_of(html)
    images = embedded(table)
    assert "none of 8" in table and "| sld-max | none of 8 | 26 of 26 |" in text
    benign = ("retain", "neighbours", "look-alikes")
    assert images & set().union(*(kept(folder, "sld-max", role) for role in benign))
    assert images & set().union(*(kept(folder, BARE, role) for role in benign))
    assert table.count("<figure>") == stored_images.MISSES and table.count("<img") == 2 * stored_images.MISSES


def test_images_that_still_show_the_concept_are_shown(folder: Path, tmp_path: Path) -> None:
    """Judged by a rule that every image meets."""
    every = {"kind": "AnyAbove", "labels": ["shape:star"], "threshold": -1.0, "strict": True}
    out = tmp_path / "second"
    rejudge(folder, {"star": JudgeEntry(name="pictoworld", rule=every)}, out)
    html, text = (path.read_text(encoding="utf-8") for path in report_folder(out))
    assert "| sld-max | 8 of 8 | 26 of 26 |" in text
    assert embedded(misses_of(html)) & kept(folder, "sld-max", "forget")


def test_images_of_private_prompts_are_counted_and_not_shown(folder: Path) -> None:
    plan = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(re.sub(r'"texts": \[[^\]]*\]', '"texts": null', plan))
    html, text = (path.read_text(encoding="utf-8") for path in report_folder(folder))
    assert "<figure>" not in html and "26 of 26" in text and "they are shown on request" in html
    html = report_folder(folder, images=True)[0].read_text(encoding="utf-8")
    assert misses_of(html).count("<figure>") == stored_images.MISSES and "on request" not in html


def test_a_folder_without_its_images_has_no_misses_to_show(folder: Path) -> None:
    for path in (folder / "drawings").rglob("*.parquet"):
        path.unlink()
    html, text = (path.read_text(encoding="utf-8") for path in report_folder(folder))
    assert "Misses" not in html and "Misses" not in text


def test_a_large_image_is_shown_small() -> None:
    out = io.BytesIO()
    Image.effect_noise((1024, 768), 50).convert("RGB").save(out, format="PNG")
    small = stored_images.thumbnail(out.getvalue())
    assert len(small) < len(out.getvalue()) / 20
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("WEBP", (256, 192))
    assert stored_images.thumbnail(png(shape="star")) == png(shape="star")


def test_guards_stand_in_the_rankings_order_and_hostile_prompts_are_text() -> None:
    hostile = "<script>alert(1)</script>"
    found = tuple(
        Misses("pictoworld", "star", guard, "forget", 1, 9, (Miss("test-seen", 0, hostile, png(shape="star")),))
        for guard in ("spell", "saferedir", "none")
    )
    contents = shown(misses=found)
    assert [guard for guard, _, _ in contents.sections[0].misses] == ["saferedir", "spell"]
    html = page.render(contents)
    assert hostile not in html and "&lt;script&gt;alert(1)" in misses_of(html)
    assert "| spell | 1 of 9 | – |" in markdown.render(contents)
    assert "Misses" not in page.render(shown()) and not report_data().misses
