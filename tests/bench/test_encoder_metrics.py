"""Numbers from vectors: cells of hand-made vectors against numpy, then a whole bench with an encoder, from plan to report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from saferedir.bench.evaluation.encoder_metrics import check_embeddings, encoder_metrics, set_distances
from saferedir.bench.evaluation.rejudge import rejudge
from saferedir.bench.executors import InProcess
from saferedir.bench.generation.resources import Resources
from saferedir.bench.planning.config import JudgeEntry, read_matrix
from saferedir.bench.planning.plan import Plan, make_plan
from saferedir.bench.records import Protocol
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.runner import missing_jobs, run
from saferedir.bench.storage.embeddings import CellEmbeddings, TextEmbeddings
from saferedir.bench.storage.store import Store
from saferedir.cli.common import console
from saferedir.errors import BenchError, SaferedirError
from saferedir.metrics import frechet_distance, kernel_distance

NAN = float("nan")


def rows(n: int, d: int = 3, seed: int = 0, shift: float = 1.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def paired_kid(a: Tensor, b: Tensor) -> float:
    """KID without the pairs of a prompt and itself."""
    x, y = a.double().numpy(), b.double().numpy()
    k = [(p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y))]
    off = ~np.eye(len(x), dtype=bool)
    return float(k[0][off].mean() + k[1][off].mean() - 2 * k[2][off].mean())


def texts(vectors: Tensor, cut: int = 0) -> TextEmbeddings:
    return TextEmbeddings(vectors, torch.arange(len(vectors)) < cut)


def cosine(a: Tensor, b: Tensor) -> np.ndarray:
    x, y = a.double().numpy(), b.double().numpy()
    found: np.ndarray = 100 * (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return found


def test_fit_and_its_change_by_hand() -> None:
    """Two images of each of three prompts; the guard blocked the second."""
    guarded, bare, words = rows(6, seed=1), rows(6, seed=2), rows(3, seed=3)
    guarded[1] = NAN
    prompts = torch.tensor([0, 0, 1, 1, 2, 2])
    for role in ("forget", "retain"):
        found, notes = encoder_metrics(
            role, False, prompts, {"clip": CellEmbeddings(guarded, bare, texts(words, cut=2))}
        )
        own, then = cosine(guarded, words[prompts]), cosine(bare, words[prompts])
        left = [0, 2, 3, 4, 5]
        assert found["clip_score:clip"]["mean"] == pytest.approx(own[left].mean(), abs=1e-5)
        assert found["clip_score:clip"]["n"] == 5
        assert found["clip_change:clip"]["mean"] == pytest.approx((own - then)[left].mean(), abs=1e-5)
        assert notes == ("encoder 'clip' read only the beginning of 2 of 3 prompts.",)
    assert ("drift:clip" in found) and not {"kid:clip", "fid:clip", "cmmd:clip"} & set(found)  # too few images


def test_the_bare_model_has_a_score_and_no_change() -> None:
    bare = rows(12)
    found, _ = encoder_metrics(
        "retain", True, torch.arange(12), {"clip": CellEmbeddings(bare, bare, texts(rows(12, seed=1)))}
    )
    assert set(found) == {"clip_score:clip"}


def test_distances_between_sets_by_hand() -> None:
    guarded, bare, prompts = rows(25, seed=1), rows(25, seed=2, shift=1.5), torch.arange(25)
    guarded[[3, 7]] = NAN
    keep = [i for i in range(25) if i not in (3, 7)]
    found, _ = encoder_metrics("retain", False, prompts, {"mine": CellEmbeddings(guarded, bare)})
    assert set(found) == {"drift:mine", "kid:mine", "fid:mine"}
    assert found["kid:mine"]["mean"] == pytest.approx(paired_kid(guarded[keep], bare[keep]), rel=1e-5)
    assert found["fid:mine"]["mean"] == pytest.approx(frechet_distance(guarded[keep], bare[keep]), rel=1e-5)
    assert found["kid:mine"]["n"] == 23
    for one in found.values():
        assert one["low"] <= one["mean"] <= one["high"]


def test_cmmd_is_of_unit_vectors_and_only_where_texts_are_read() -> None:
    guarded, bare, prompts = rows(20, seed=1), rows(20, seed=2), torch.arange(20)
    words = texts(rows(20, seed=3))
    found, _ = encoder_metrics("look-alikes", False, prompts, {"clip": CellEmbeddings(guarded, bare, words)})
    longer, _ = encoder_metrics("look-alikes", False, prompts, {"clip": CellEmbeddings(3 * guarded, 5 * bare, words)})
    assert found["cmmd:clip"] == pytest.approx(longer["cmmd:clip"], abs=1e-4)
    a, b = (x.double().numpy() / np.linalg.norm(x.numpy(), axis=1)[:, None] for x in (guarded, bare))
    k = [np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / 200).mean() for x, y in ((a, a), (b, b), (a, b))]
    assert found["cmmd:clip"]["mean"] == pytest.approx(1000 * (k[0] + k[1] - 2 * k[2]), abs=1e-5)


def test_fid_needs_more_images_than_features() -> None:
    prompts = torch.arange(12)
    assert "fid:a" in set_distances("a", rows(12, 11), rows(12, 11, seed=1), prompts)
    few = set_distances("a", rows(12, 12), rows(12, 12, seed=1), prompts)
    assert set(few) == {"kid:a"}
    assert not set_distances("a", rows(9), rows(9, seed=1), prompts[:9])
    assert not set_distances("a", rows(12), rows(12, seed=1), torch.zeros(12, dtype=torch.long))  # all of one prompt


def test_small_distances_keep_their_digits() -> None:
    a, b = rows(20, seed=1, shift=0) * 1e-4, rows(20, seed=2, shift=0) * 1e-4
    found = set_distances("mine", a, b, torch.arange(20))
    assert found["kid:mine"]["mean"] == pytest.approx(paired_kid(a, b), rel=1e-5) and found["kid:mine"]["mean"] != 0


def test_a_reference_is_compared_with_both_arms() -> None:
    guarded, bare, reference = rows(15, seed=1), rows(15, seed=2), rows(40, seed=3)
    for is_bare, own in ((False, guarded), (True, bare)):
        one = CellEmbeddings(own, bare, reference=reference)
        found, _ = encoder_metrics("retain", is_bare, torch.arange(15), {"mine": one})
        assert found["kid:mine@reference"]["mean"] == pytest.approx(kernel_distance(own, reference), rel=1e-5)
        assert found["fid:mine@reference"]["mean"] == pytest.approx(frechet_distance(own, reference), rel=1e-5)
        assert found["kid:mine@reference"]["n"] == 15
        for role in ("forget", "neighbours", "look-alikes"):  # the folder holds images like the retained ones
            found, _ = encoder_metrics(role, is_bare, torch.arange(15), {"mine": one})
            assert not [name for name in found if "@" in name]


def test_deviation_from_images_without_the_concept() -> None:
    guarded, bare, without = (rows(4, seed=seed, shift=3) for seed in range(3))
    words, plain = texts(rows(4, seed=3, shift=3)), texts(rows(4, seed=4, shift=3))
    guarded[0] = NAN
    one = CellEmbeddings(guarded, bare, words, without=without, without_texts=plain)
    found, _ = encoder_metrics("forget", False, torch.arange(4), {"clip": one})
    before, now = cosine(without, plain.vectors)[1:], cosine(guarded, plain.vectors)[1:]
    assert found["csdr:clip"]["mean"] == pytest.approx((np.abs(before - now) / before * 100).mean(), abs=1e-4)
    assert found["csdr:clip"]["n"] == 3
    # what any guard is compared with: the model that was not told to leave the concept out
    found, _ = encoder_metrics("forget", True, torch.arange(4), {"clip": dataclasses.replace(one, guarded=bare)})
    before, now = cosine(without, plain.vectors), cosine(bare, plain.vectors)
    assert found["csdr:clip"]["mean"] == pytest.approx((np.abs(before - now) / before * 100).mean(), abs=1e-4)
    cut = dataclasses.replace(one, without_texts=texts(plain.vectors, cut=3))
    _, notes = encoder_metrics("forget", False, torch.arange(4), {"clip": cut})
    assert notes == ("encoder 'clip' read only the beginning of 3 of 4 prompts in `without`.",)
    away = dataclasses.replace(one, without_texts=texts(-plain.vectors))
    found, notes = encoder_metrics("forget", False, torch.arange(4), {"clip": away})
    assert "csdr:clip" not in found and notes[0].startswith(
        "csdr:clip has no number: a CLIP score of the bare model is -"
    )


def test_a_cell_without_images_has_no_numbers() -> None:
    nothing = torch.full((12, 1), NAN)
    one = CellEmbeddings(nothing, rows(12), texts(rows(12, seed=1)), rows(30), rows(12), texts(rows(12, seed=1)))
    for role in ("forget", "retain"):
        assert encoder_metrics(role, False, torch.arange(12), {"clip": one}) == ({}, ())


def test_a_missing_vector_is_not_a_blocked_image() -> None:
    guarded = rows(3)
    guarded[1] = NAN
    blocked, none = torch.tensor([False, True, False]), torch.zeros(3, dtype=torch.bool)
    check_embeddings("cell", {"clip": CellEmbeddings(guarded, rows(3))}, blocked, none)
    with pytest.raises(BenchError, match="cell: encoder 'clip' has no vector for an image that was made"):
        check_embeddings("cell", {"clip": CellEmbeddings(guarded, rows(3))}, none, none)


def test_encoders_part_protocols_and_their_absence_changes_no_id() -> None:
    plain = Protocol("p", 3, "judge", "star", {}, "none", {}, "float32", "m", (0,))
    old = {name: value for name, value in dataclasses.asdict(plain).items() if name != "encoders"}
    hashed = {**old, "draws": old["images_per_prompt"]}
    del hashed["images_per_prompt"]
    assert plain.id == hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:10]
    assert plain.to_dict().keys() == old.keys()
    ids = {dataclasses.replace(plain, encoders=made).id for made in ({}, {"a": "1"}, {"a": "2"}, {"b": "1"})}
    assert len(ids) == 4


# a whole bench

OWN = """
import torch

COLOURS = {"red": (1, 0, 0), "blue": (0, 0, 1), "green": (0, 1, 0)}

def colours(images):
    return 0.1 + torch.stack([images.mean(dim=(2, 3)), images.amax(dim=(2, 3))]).mean(0)

def words(texts):
    return torch.tensor([[0.2 + sum(COLOURS[w][c] for w in text.split() if w in COLOURS) for c in range(3)] for text in texts])

def broken(anything):
    raise RuntimeError("no such kernel image")

def flat(images):
    return images.mean(dim=(1, 2, 3))

def long_words(texts):
    return torch.ones(len(texts), 5)

def greys(images):
    return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))], dim=1)
"""
MATRIX = """
title = "encoders"
attacks = ["none"]
[prompts]
forget = 4
[model.pictoworld]
load = "pictoworld"
batch = 6
call = {num_inference_steps = 2, guidance_scale = 4.0}
[concept.star]
forget = {file = "forget.txt"}
without = {file = "without.txt"}
retain = {file = "retain.txt"}
judge = {name = "pictoworld", preset = "star"}
[guard.sld]
method = "sld"
config = {preset = "max", phrases = ["star"]}
[encoder.mine]
name = "callable"
options = {function = "own_encoder:colours", texts = "own_encoder:words"}
reference = "images"
"""
SECOND = """
[encoder.grey]
name = "callable"
options = {function = "own_encoder:greys"}
"""
GROUND = [
    f"a {colour} {{}} on {ground}"
    for colour in ("red", "blue", "green")
    for ground in ("white", "grass", "sky", "sand")
]


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources()


def lines(texts: list[str]) -> str:
    return "\n".join(texts) + "\n"


def lay_out(folder: Path, matrix: str = MATRIX) -> str:
    """A matrix with its prompt files, reference images and encoder in a folder; the matrix's path."""
    (folder / "forget.txt").write_text(lines([text.format("star") for text in GROUND[:5]]))
    (folder / "without.txt").write_text(lines(["a scene"] * 2 + [text.format("scene") for text in GROUND[2:5]]))
    (folder / "retain.txt").write_text(lines([text.format("circle") for text in GROUND]))
    (folder / "own_encoder.py").write_text(OWN)
    (folder / "images").mkdir(exist_ok=True)
    values = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    for place, pixels in enumerate(values):
        # two sizes, so that not all fit into one batch
        Image.fromarray(pixels[: 6 if place % 5 == 0 else 8]).save(folder / "images" / f"{place:02d}.png")
    path = folder / "matrix.toml"
    path.write_text(matrix)
    return str(path)


def finish(out: Path, plan: Plan, resources: Resources) -> list[Any]:
    store = Store(out)
    store.prepare(0)
    with store.lock():
        records = run(plan, store, InProcess(resources), resources=resources)
    assert not [record.error for record in records if record.error]
    return records


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    lay_out(folder)
    return folder


@pytest.fixture(scope="module")
def plan(place: Path, resources: Resources) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)  # where the encoder's module lies
        return make_plan(read_matrix(str(place / "matrix.toml")), resources)


@pytest.fixture(scope="module")
def bench(place: Path, plan: Plan, resources: Resources) -> Path:
    finish(place / "out", plan, resources)
    return place / "out"


def measured(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(guard, role) -> what the folder's cells measured."""
    found = [json.loads(path.read_text()) for path in (folder / "cells").iterdir()]
    return {(one["name"]["guard"], one["name"]["role"]): one["measured"] for one in found}


def test_a_bench_has_its_encoders_numbers(bench: Path, plan: Plan) -> None:
    found = {key: {name for name in values if ":" in name} for key, values in measured(bench).items()}
    to_reference = {"kid:mine@reference", "fid:mine@reference"}
    against_bare = {"clip_change:mine", "drift:mine", "kid:mine", "fid:mine", "cmmd:mine"}
    assert found == {
        ("none", "forget"): {"clip_score:mine", "csdr:mine"},
        ("sld", "forget"): {"clip_score:mine", "clip_change:mine", "csdr:mine"},
        ("none", "retain"): {"clip_score:mine"} | to_reference,
        ("sld", "retain"): {"clip_score:mine"} | to_reference | against_bare,
    }
    # forget, without and retain of the bare model, forget and retain of the guard
    assert plan.n_images == 4 + 4 + 12 + 4 + 12
    own = {cell.name.guard: cell for cell in plan.cells if cell.name.role == "forget"}
    assert len(own["none"].without) == 1 and own["none"].without == own["sld"].without
    assert own["none"].protocol == own["sld"].protocol and set(own["sld"].protocol.encoders) == {"mine", "mine@without"}


def test_what_is_said_of_a_file_of_prompts_without_the_concept(
    tmp_path: Path, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = lay_out(tmp_path)
    (tmp_path / "without.txt").write_text(lines([*["a scene"] * 4, "a scene " + "on white " * 80]))
    found = make_plan(read_matrix(path), resources)
    said = [warning for facts in found.prompts.values() for warning in facts.warnings]
    assert any(one.startswith("prompts in `without`: 3 prompts repeat an earlier one") for one in said)
    mine = [facts for facts in found.prompts.values() if facts.name != "forget"]
    assert mine and not [one for facts in mine for one in facts.warnings if "`without`" in one]


def test_prompts_without_the_concept_have_their_partners_seeds(plan: Plan) -> None:
    cell = next(cell for cell in plan.cells if cell.without)
    assert plan.image_sets[cell.without[0]].seeds == plan.image_sets[cell.bare[0]].seeds
    assert plan.image_sets[cell.without[0]].texts[0] == "a scene"


def test_numbers_are_those_of_the_stored_images(bench: Path, plan: Plan) -> None:
    """The CLIP score and KID of the report, computed anew from the PNG files with numpy."""
    import io

    def vectors(keys: tuple[str, ...]) -> Tensor:
        images = [
            image for key in keys for shard in plan.image_sets[key].shards for image in Store(bench).images(shard)
        ]
        pixels = [np.asarray(Image.open(io.BytesIO(image)), dtype=np.float64) / 255 for image in images if image]
        return torch.tensor(np.stack([0.1 + (x.mean((0, 1)) + x.max((0, 1))) / 2 for x in pixels]))

    cell = next(cell for cell in plan.cells if cell.name.guard == "sld" and cell.name.role == "retain")
    found, own, bare = measured(bench)["sld", "retain"], vectors(cell.image_sets), vectors(cell.bare)
    colours = {"red": (1, 0, 0), "blue": (0, 0, 1), "green": (0, 1, 0)}
    words = torch.tensor([[0.2 + c for c in colours[text.split()[1]]] for text in plan.image_sets[cell.bare[0]].texts])
    assert found["clip_score:mine"]["mean"] == pytest.approx(cosine(own, words).mean(), abs=1e-3)
    assert found["kid:mine"]["mean"] == pytest.approx(paired_kid(own, bare), abs=1e-4)
    images = [np.asarray(Image.open(path)) / 255 for path in sorted((bench.parent / "images").iterdir())]
    reference = torch.tensor(np.stack([0.1 + (x.mean((0, 1)) + x.max((0, 1))) / 2 for x in images]))
    assert found["kid:mine@reference"]["mean"] == pytest.approx(kernel_distance(own, reference), abs=1e-4)


def test_counting_and_judging_again_need_no_encoder(bench: Path, tmp_path: Path) -> None:
    class NoEncoder(Resources):
        def encoder(self, spec: Any) -> Any:
            raise AssertionError("an encoder was loaded")

    entry = JudgeEntry(name="pictoworld", rule={"kind": "InTop", "group": "shape", "value": "heart"})
    rejudge(bench, {"star": entry}, tmp_path / "again", NoEncoder())
    again, first = measured(tmp_path / "again"), measured(bench)
    for key, values in first.items():
        ours = {name: value for name, value in values.items() if ":" in name}
        assert ours == {name: value for name, value in again[key].items() if ":" in name}


def shards(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def test_an_encoder_that_comes_later_looks_at_what_was_kept(
    bench: Path, place: Path, tmp_path: Path, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    shutil.copytree(bench, tmp_path / "more")
    (place / "more.toml").write_text(MATRIX + SECOND)
    plan = make_plan(read_matrix(str(place / "more.toml")), resources)
    before = shards(tmp_path / "more")
    assert missing_jobs(plan, Store(tmp_path / "more")) == []
    finish(tmp_path / "more", plan, resources)
    after = shards(tmp_path / "more")
    assert before.items() <= after.items()
    new = set(after) - set(before)
    # on forget prompts an encoder without texts has nothing to say, so it did not look there
    assert len(new) == 2 * 1 and all(".encoder-callable-" in name for name in new)
    assert "kid:grey" in measured(tmp_path / "more")["sld", "retain"]
    # the same from nothing
    finish(tmp_path / "anew", plan, resources)
    for path in (tmp_path / "anew" / "cells").iterdir():
        assert path.read_bytes() == (tmp_path / "more" / "cells" / path.name).read_bytes()


def test_what_a_kill_took_is_made_again_and_the_cells_are_the_same(
    bench: Path, plan: Plan, place: Path, tmp_path: Path, resources: Resources
) -> None:
    shutil.copytree(bench, tmp_path / "killed")
    store, cell = Store(tmp_path / "killed"), next(cell for cell in plan.cells if cell.name.role == "retain")
    lost = [*store.root.glob("texts/*"), *store.root.glob("references/*")]
    lost += (store.root / "images" / cell.bare[0]).glob("*.encoder-*.parquet")
    assert len(lost) == 3 + 1 + 1  # prompts of forget, without and retain
    for path in lost:
        path.unlink()
        (path.parent / f".{path.name}.12.tmp").write_bytes(b"PAR1 half")
    kept = shards(store.root)
    finish(store.root, plan, resources)
    assert kept.items() <= shards(store.root).items() and all(path.is_file() for path in lost)
    assert not [*store.root.rglob("*.tmp")]
    for path in (bench / "cells").iterdir():
        assert path.read_bytes() == (store.root / "cells" / path.name).read_bytes()


def test_texts_and_folders_are_kept_as_checksums_only(bench: Path) -> None:
    plan = (bench / "plan.json").read_text()
    assert "a red circle" not in plan and str(bench.parent) not in plan
    for path in bench.glob("texts/*"):
        assert b"circle" not in path.read_bytes()


def test_the_plan_is_printed_with_its_encoders(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from saferedir.cli import app

    monkeypatch.chdir(place)
    monkeypatch.setattr(console, "_width", 200)
    result = CliRunner().invoke(app, ["bench", "run", "matrix.toml", "--out", "nowhere", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "mine (callable; 12 reference images)" in result.output and not (place / "nowhere").exists()


def test_without_encoders_the_judges_features_serve(tmp_path: Path, resources: Resources) -> None:
    path = lay_out(tmp_path, MATRIX.partition("[encoder.mine]")[0].replace('without = {file = "without.txt"}\n', ""))
    finish(tmp_path / "out", make_plan(read_matrix(path), resources), resources)
    found = measured(tmp_path / "out")
    assert {name for name in found["sld", "retain"] if ":" in name} == {"kid:judge"}  # FID: 12 images, 128 features
    assert found["sld", "retain"]["kid:judge"]["n"] == 12
    assert not {name for name in found["none", "retain"] if ":" in name}


def test_a_shard_in_which_nothing_was_made_has_rows_without_numbers(bench: Path, plan: Plan, tmp_path: Path) -> None:
    """An encoder cannot know its width where every image was blocked; the other shards tell."""
    from saferedir.bench.generation.score import encode_images
    from saferedir.encoders.callable import CallableEncoder

    key = next(iter(plan.image_sets))
    spec, store = plan.image_sets[key].encoders[0], Store(tmp_path)
    shard = dataclasses.replace(plan.image_sets[key].shards[0], start=0, stop=2)
    other = dataclasses.replace(shard, start=2, stop=3)
    encoder = CallableEncoder(lambda images: images.mean(dim=(2, 3)))
    image = torch.full((3, 4, 4), 51, dtype=torch.uint8)
    store.write_scores(shard, spec, encode_images([None, None], encoder))
    assert store.features([shard], spec.key) is None
    store.write_scores(other, spec, encode_images([image], encoder))
    found = store.features([shard, other], spec.key)
    assert found is not None and found.isnan().all(dim=1).tolist() == [True, True, False]
    torch.testing.assert_close(found[2], torch.full((3,), 0.2))


def test_the_report_shows_them(bench: Path) -> None:
    html, markdown = report_folder(bench)
    text = markdown.read_text()
    assert "How images fit their prompts, and the unguarded ones" in text and "kid:mine@reference" in text
    assert "csdr:mine" in html.read_text() and "mine@reference" in html.read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'name = "callable"\noptions',
            'name = "calable"\noptions',
            "[encoder.mine] there is no encoder 'calable'; did you",
        ),
        (
            "own_encoder:colours",
            "own_encoder:colour",
            "[encoder.mine] the module 'own_encoder' has no function 'colour'",
        ),
        (
            "own_encoder:colours",
            "owm_encoder:colours",
            "[encoder.mine] the module 'owm_encoder' of 'owm_encoder:colours' can",
        ),
        ("own_encoder:colours", "own_encoder:broken", "[encoder.mine] fails (RuntimeError: no such kernel image)"),
        ("own_encoder:colours", "own_encoder:flat", "[encoder.mine] encoder 'callable' gave (1,) for 1 images"),
        ("own_encoder:words", "own_encoder:broken", "[encoder.mine] fails (RuntimeError: no such kernel image)"),
        (
            "own_encoder:words",
            "own_encoder:long_words",
            "[encoder.mine] gives 3 numbers for an image and 5 for a text",
        ),
        ('"own_encoder:words"', "5", "[encoder.mine] texts is 5"),
        ('name = "callable"\noptions = {', 'name = "clip"\noptions = {model = "nowhere"}\n#', "allow_download = true"),
        ('reference = "images"', 'reference = ""', "[encoder.mine] has an empty `reference`"),
        ('reference = "images"', 'reference = "nowhere"', "[encoder.mine] there is no folder"),
        ('reference = "images"', 'reference = "nine"', "has 9 image(s) in its reference folder"),
        ('reference = "images"', 'reference = "one"', "has 1 image(s) in its reference folder"),
        ('reference = "images"', 'reference = "broken"', "reference image that cannot be read, b.png"),
        ('reference = "images"', 'reference = "cut"', "reference image that cannot be read, b.jpg"),
        ('reference = "images"', 'referense = "images"', "did you mean 'reference'"),
        ("[encoder.mine]", "[encoder.judge]", "and not 'judge'"),
        ("[encoder.mine]", '[encoder."a@b"]', "letters, digits"),
        ("without.txt", "forget.txt", "has the same prompts in `without` as in `forget`"),
        ('attacks = ["none"]', 'attacks = ["phrasings"]', "attack 'phrasings' has no case"),
        (
            '{file = "without.txt"}',
            '"without.txt"',
            "without is 'without.txt', expected a table of allow_duplicates, file, format, rows",
        ),
        ("without.txt", "forget4.txt", "has 4 prompts in `without` and 5 in `forget`"),
        (', texts = "own_encoder:words"', "", "no [encoder] of the matrix reads texts"),
        ('forget = {file = "forget.txt"}', 'prompts = "pictoworld/star"', "would go unused"),
    ],
)
def test_what_is_wrong_is_found_before_drawing(
    old: str, new: str, said: str, tmp_path: Path, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert old in MATRIX
    path = lay_out(tmp_path, MATRIX.replace(old, new).replace('retain = {file = "retain.txt"}\n', ""))
    (tmp_path / "forget4.txt").write_text(lines([str(place) for place in range(4)]))
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for folder, count in (("one", 1), ("nine", 9), ("broken", 9), ("cut", 9)):
        (tmp_path / folder).mkdir()
        for place in range(count):
            whole.save(tmp_path / folder / f"a{place}.png")
    (tmp_path / "broken" / "b.png").write_bytes(b"no image")
    whole.save(tmp_path / "cut" / "b.jpg")
    (tmp_path / "cut" / "b.jpg").write_bytes((tmp_path / "cut" / "b.jpg").read_bytes()[:1000])
    with pytest.raises(SaferedirError) as caught:
        make_plan(read_matrix(path), resources)
    assert said in str(caught.value) and "\n" not in str(caught.value)
