"""What each guard missed and changed, as images: taken from the bench folder, the worst few, with their number."""

import base64
import dataclasses
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.bench.report_world import png, report_data, shown

from saferedir.bench import rejudge
from saferedir.bench.planning.matrix import JudgeEntry
from saferedir.bench.records import BARE, CellRecord
from saferedir.bench.report import Miss, Misses, markdown, page, stored_images
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.storage.saved_plan import SavedPlan, read_saved_plan
from saferedir.bench.storage.store import Store
from saferedir.judges.base import Scores
from saferedir.judges.rules import AllOf, AnyAbove, InTop, Unless

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


def opened(folder: Path) -> tuple[SavedPlan, list[CellRecord], Store]:
    plan, store = read_saved_plan(folder), Store(folder)
    return plan, store.read_cells([cell.name.slug for cell in plan.cells]), store


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


def test_each_shard_is_read_once_and_only_for_what_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    images = Store.images
    monkeypatch.setattr(Store, "images", lambda store, shard: reads.append(shard) or images(store, shard))
    found = stored_images.misses(*opened(folder), private=True)
    assert [len(item.shown) for item in found] == [0, stored_images.MISSES]
    assert 2 <= len(reads) == len(set(reads)) <= 2 * stored_images.MISSES


def shows(scores: Scores, row: int, name: str, value: str) -> bool:
    values, columns = scores.group(name)
    return bool(scores.column("broken")[row] <= 0.5) and values[int(columns[row].argmax())] == value


def test_the_worst_come_first(folder: Path) -> None:
    """Forget images by their score; benign ones by attributes lost, then by distance: both computed again here."""
    plan, records, store = opened(folder)
    every = {"kind": "AnyAbove", "labels": ["shape:star"], "threshold": -1.0, "strict": True}
    plan = dataclasses.replace(
        plan,
        cells=tuple(dataclasses.replace(c, protocol=dataclasses.replace(c.protocol, rule=every)) for c in plan.cells),
    )
    forget, benign = stored_images.misses(plan, records, store, private=False)
    scores, changes = {}, {}
    for cell in (cell for cell in plan.cells if cell.name.guard != BARE):
        expected = plan.prompts[cell.prompts].expected
        (key,), (bare_key,) = cell.image_sets, cell.bare
        judges = [judge for judge in plan.judges[key] if judge.key == cell.judge]
        now, then = (store.read(plan.shards[of], judges, cell.judge) for of in (key, bare_key))
        assert now.features is not None and then.features is not None
        after, before = (part.scores[cell.judge] for part in (now, then))
        images = [image for shard in plan.shards[key] for image in store.images(shard)]
        for row, prompt in enumerate(now.prompt_of.tolist()):
            place = images[row]
            if cell.name.role == "forget":
                scores[place] = float(after.column("shape:star")[row])
                continue
            lost = 0
            for name, value in expected[prompt].items():
                was_right, is_right = (shows(part, row, name, value) for part in (before, after))
                lost += was_right and not is_right
            changes[place] = lost, float(torch.dist(now.features[row].double(), then.features[row].double()))
    for item, worst in ((forget, scores), (benign, changes)):
        shown = [worst[miss.image] for miss in item.shown]
        assert shown == sorted(worst.values(), reverse=True)[: stored_images.MISSES]
    assert changes and max(changes.values())[0] > 0


def test_a_rules_score_is_that_of_its_labels() -> None:
    scores = Scores(("a:x", "a:y", "free"), torch.tensor([[0.2, 0.8, 0.5], [0.6, 0.4, 0.1]]))
    rules = {
        AnyAbove(("a:x", "free"), 0.0): [0.5, 0.6],
        InTop("a", "y"): [0.8, 0.4],
        AllOf((InTop("a", "y"), AnyAbove(("free",), 0.0))): [0.5, 0.1],
        Unless(InTop("a", "x"), AnyAbove(("free",), 0.3)): [0.2, 0.6],
    }
    for rule, expected in rules.items():
        assert stored_images.concept_scores(rule, scores).tolist() == pytest.approx(expected)


def test_images_that_were_not_kept_are_said_so(folder: Path) -> None:
    for path in (folder / "drawings").rglob("*.parquet"):
        table = pq.read_table(path)
        if "png" in table.column_names:
            pq.write_table(table.drop_columns("png"), path)
    html, text = (path.read_text(encoding="utf-8") for path in report_folder(folder))
    assert "26 of 26" in text and misses_of(html).count("Images were not kept.") == 1 and "<figure>" not in html


def test_a_group_counts_only_its_own_cells(folder: Path) -> None:
    """A second guard with other steps founds a group of its own, and so do cells of the first guard with another seed."""
    plan, records, store = opened(folder)
    copies: list[tuple[Any, Any]] = []
    for cell, record in zip(plan.cells, records, strict=True):
        if cell.name.guard != BARE:
            for name, changes in (("other", {"call": {"num_inference_steps": 9}}), ("sld-max", {"seeds": (7,)})):
                protocol = dataclasses.replace(cell.protocol, **changes)
                named = dataclasses.replace(cell.name, guard=name, seeds=protocol.seeds)
                copies.append(tuple(dataclasses.replace(one, name=named, protocol=protocol) for one in (cell, record)))
    plan = dataclasses.replace(plan, cells=(*plan.cells, *(cell for cell, _ in copies)))
    records = [*records, *(record for _, record in copies)]
    found = stored_images.misses(plan, records, store, private=False)
    sections = shown(cells=tuple(records), misses=found, costs=()).sections
    guards = [[guard for guard, _, _ in section.misses] for section in sections]
    assert len(sections) == 3 and sorted(guards) == [["other"], ["sld-max"], ["sld-max"]]
    for section in sections:
        ((_, forget, benign),) = section.misses
        assert forget is not None and benign is not None
        assert (forget.n, benign.count, benign.n) == (8, 26, 26)
        ids = {cell.protocol.id for cell in section.group.cells}
        assert set(forget.protocols) | set(benign.protocols) == ids
