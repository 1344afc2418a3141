"""A small bench from plan to report: each image generated once, the same cells always, judged again without generating."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from saferedir.bench.evaluation.rejudge import rejudge
from saferedir.bench.executors import InProcess, make_executor
from saferedir.bench.generation.resources import ModelSpec, Resources
from saferedir.bench.planning.config import JudgeEntry, Matrix
from saferedir.bench.planning.plan import make_plan
from saferedir.bench.planning.plan_checks import check_attacks, check_call
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.runner import missing_jobs, run
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError, JudgeError, SaferedirError
from saferedir.judges.calibration import Calibration
from saferedir.prompts import ConceptPrompts, PromptItem, PromptSet

SMALL = {
    "title": "small",
    "attacks": ["none", "phrasings"],
    "prompts": {"forget": 2, "rephrased": 1, "retain": 2, "neighbours": 1, "look_alikes": 1},
    "model": {
        "pictoworld": {"load": "pictoworld", "batch": 2, "call": {"num_inference_steps": 2, "guidance_scale": 4.0}}
    },
    "concept": {"star": {"prompts": "pictoworld/star", "judge": {"name": "pictoworld", "preset": "star"}}},
    "guard": {"saferedir": {"load": "pictoworld/{concept}"}, "sld": {"recipe": "pictoworld/sld-max"}},
}


def matrix(**changes: object) -> Matrix:
    return Matrix.model_validate({**json.loads(json.dumps(SMALL)), **changes})


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, resources: Resources) -> Path:
    """A bench that was run to its end."""
    folder = tmp_path_factory.mktemp("bench")
    finish(folder, matrix(), resources)
    return folder


def finish(folder: Path, small: Matrix, resources: Resources) -> int:
    """Run a bench; how many shards were generated."""
    plan, store = make_plan(small, resources), Store(folder)
    store.prepare(0)
    todo = len(missing_jobs(plan, store))
    with store.lock():
        records = run(plan, store, InProcess(resources))
    assert not any(record.error for record in records)
    return todo


def cells(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "cells").iterdir())}


def test_every_cell_has_its_numbers(bench: Path) -> None:
    plan = read_saved_plan(bench)
    assert len(cells(bench)) == len(plan.cells)
    guards = {cell.name.guard for cell in plan.cells}
    assert guards == {"none", "saferedir", "sld"}
    forget = [cell for cell in plan.cells if cell.name.role == "forget"]
    assert len(forget) == 3 * 4  # one as trained, three phrasings
    for path in (bench / "cells").iterdir():
        values = json.loads(path.read_text())
        assert values["measured"]["concept"]["n"] == values["protocol"]["n"]
        assert not values["error"]


def test_nothing_is_drawn_twice(bench: Path, resources: Resources) -> None:
    before = cells(bench)
    assert finish(bench, matrix(), resources) == 0
    assert cells(bench) == before
    # a second concept that needs the bare model's retain images anew, but not the star's
    assert finish(bench, matrix(title="renamed"), resources) == 0


def test_the_bare_models_images_serve_all(resources: Resources) -> None:
    plan = make_plan(matrix(guard={}), resources)
    more = make_plan(matrix(guard={"a": SMALL["guard"]["sld"], "b": SMALL["guard"]["sld"]}), resources)  # type: ignore[index]
    # two names for one guard cost one
    assert more.n_images == 2 * plan.n_images
    assert more.shared == plan.n_images


def test_more_seeds_are_more_cases_in_the_same_cells(bench: Path, tmp_path: Path, resources: Resources) -> None:
    shutil.copytree(bench, tmp_path / "more")
    # the first seed's images are there already: only the second one's are generated
    one = len(missing_jobs(make_plan(matrix(guard={}), resources), Store(tmp_path)))
    assert finish(tmp_path / "more", matrix(guard={}, seeds=[0, 1]), resources) == one > 0
    cell = next(cell for cell in read_saved_plan(tmp_path / "more").cells if cell.name.role == "retain")
    assert cell.name.slug.endswith("seed0-1") and len(cell.image_sets) == 2
    record = json.loads((tmp_path / "more" / "cells" / f"{cell.name.slug}.json").read_text())
    assert record["measured"]["concept"]["n"] == 2 * record["protocol"]["n"]


def test_a_shard_of_the_same_plan_is_the_same_anywhere(bench: Path, tmp_path: Path) -> None:
    """In another folder, from a model loaded anew, beside fewer guards: the same bytes."""
    finish(tmp_path, matrix(guard={"sld": SMALL["guard"]["sld"]}), Resources())  # type: ignore[index]
    found, whole = cells(tmp_path), cells(bench)
    assert found and found == {name: whole[name] for name in found}
    assert {json.loads(text)["name"]["guard"] for text in found.values()} == {"none", "sld"}


def test_judged_again_without_drawing(bench: Path, tmp_path: Path, resources: Resources) -> None:
    entry = JudgeEntry(name="pictoworld-template", preset="star")
    records = rejudge(bench, {"star": entry}, tmp_path / "again", resources)
    assert {record.protocol.judge for record in records} == {"pictoworld-template"}
    old = read_saved_plan(bench).cells[0].protocol
    assert records[0].protocol.id != old.id
    told = read_saved_plan(tmp_path / "again")
    assert told.title == f"{read_saved_plan(bench).title}, judged again"
    assert told.description.endswith("Judged again: star by pictoworld-template (star).")
    report_folder(tmp_path / "again")
    assert (tmp_path / "again" / "report.html").stat().st_size > 10_000
    with pytest.raises(BenchError, match="did you mean 'star'"):
        rejudge(bench, {"stars": entry}, tmp_path / "again", resources)
    # the first judge's scores are still there, and give the first cells
    same = rejudge(bench, {"star": JudgeEntry(name="pictoworld", preset="star")}, tmp_path / "first", resources)
    assert [record.measured for record in same] == [json.loads(text)["measured"] for text in _in_plan_order(bench)]


def test_a_calibration_of_that_very_judge_and_rule_corrects_the_rates_of_a_report(bench: Path, tmp_path: Path) -> None:
    cell = read_saved_plan(bench).cells[0]
    (judge,) = read_saved_plan(bench).judges[cell.image_sets[0]]
    for name, rule, is_fitting in (
        ("other", {**cell.protocol.rule, "x": 1}, False),
        ("same", cell.protocol.rule, True),
    ):
        folder = tmp_path / name
        shutil.copytree(bench, folder)
        (folder / "calibrations").mkdir()
        Calibration(90, 5, 95, 10, judge.facts, rule).save(folder / "calibrations" / "star.json")
        page, markdown = (path.read_text(encoding="utf-8") for path in report_folder(folder))
        assert ("corrected for the judge&#39;s errors</summary>" in page) is is_fitting
        assert ("recall 90.0" in markdown) is is_fitting and ("is uncalibrated" in markdown) is not is_fitting


def test_of_two_calibrations_that_fit_the_larger_is_taken_and_said(bench: Path, tmp_path: Path) -> None:
    cell = read_saved_plan(bench).cells[0]
    (judge,) = read_saved_plan(bench).judges[cell.image_sets[0]]
    shutil.copytree(bench, tmp_path / "two")
    (tmp_path / "two" / "calibrations").mkdir()
    for name, found in (("a", 18), ("b", 180), ("c", 9)):
        counts = found, 0, found, found // 9
        Calibration(*counts, judge.facts, cell.protocol.rule).save(tmp_path / "two" / "calibrations" / f"{name}.json")
    for path in report_folder(tmp_path / "two"):
        text = path.read_text(encoding="utf-8").replace("\u00a0", " ")
        assert "recall 90.0 % (85.1 to 93.4, n = 200)" in text
        assert (
            "3 calibrations fit; b.json, with the most images (380), is used, and not a.json (38), c.json (19)." in text
        )


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "true_positives": "x"}'])
def test_a_calibration_that_cannot_be_read_is_named(bench: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(bench, tmp_path / "bad")
    (tmp_path / "bad" / "calibrations").mkdir()
    (tmp_path / "bad" / "calibrations" / "mine.json").write_text(text)
    with pytest.raises(JudgeError, match=r"mine\.json"):
        report_folder(tmp_path / "bad")


def _in_plan_order(folder: Path) -> list[bytes]:
    return [(folder / "cells" / f"{cell.name.slug}.json").read_bytes() for cell in read_saved_plan(folder).cells]


def test_a_judge_that_comes_later_looks_at_what_was_kept(bench: Path, tmp_path: Path, resources: Resources) -> None:
    shutil.copytree(bench, tmp_path / "more")
    second = [{"name": "pictoworld-template", "preset": "star"}]
    star = {**SMALL["concept"]["star"], "second_judges": second}  # type: ignore[index]
    assert finish(tmp_path / "more", matrix(concept={"star": star}), resources) == 0
    cell = json.loads(next((tmp_path / "more" / "cells").iterdir()).read_text())
    assert cell["measured"]["concept:pictoworld-template/star"]["n"] == cell["protocol"]["n"]


def test_images_that_were_not_kept_cannot_be_judged_again(tmp_path: Path, resources: Resources) -> None:
    finish(tmp_path, matrix(keep_images=False, guard={}, attacks=[]), resources)
    with pytest.raises(BenchError, match="none was kept"):
        rejudge(
            tmp_path, {"star": JudgeEntry(name="pictoworld-template", preset="star")}, tmp_path / "again", resources
        )
    report_folder(tmp_path)


def test_a_damaged_shard_costs_its_cells_and_no_others(bench: Path, tmp_path: Path, resources: Resources) -> None:
    finish(tmp_path, matrix(guard={}), resources)
    victim = next((tmp_path / "images").rglob("*.parquet"))
    victim.write_bytes(b"not parquet")
    with Store(tmp_path).lock():
        records = run(make_plan(matrix(guard={}), resources), Store(tmp_path), InProcess(resources))
    assert [record for record in records if "missing or damaged" in record.error]
    assert [record for record in records if not record.error]
    victim.unlink()
    assert (
        finish(tmp_path, matrix(guard={}), resources) == 0 or victim.is_file()
    )  # a judge's file needs no set of images
    assert cells(tmp_path).keys() <= cells(bench).keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attacks": ["none", "phrasing"]}, "did you mean 'phrasings'"),
        (
            {"concept": {"star": {"prompts": "pictoworld/sta", "judge": SMALL["concept"]["star"]["judge"]}}},
            "did you mean 'star'",
        ),  # type: ignore[index]
        (
            {"concept": {"star": {"prompts": "pictoworld/star", "judge": {"name": "pictoword", "preset": "star"}}}},
            "'pictoworld'",
        ),
        (
            {"concept": {"star": {"prompts": "pictoworld/star", "judge": {"name": "pictoworld", "preset": "sta"}}}},
            "'star'",
        ),
        (
            {"concept": {"star": {"prompts": "pictoworld/star", "judge": {"name": "pictoworld", "preset": "uda2024"}}}},
            "made for",
        ),
        ({"guard": {"a": {"method": "sldd"}}}, "did you mean 'sld'"),
        ({"guard": {"a": {"recipe": "pictoworld/sld-mx"}}}, "did you mean 'sld-max'"),
        ({"guard": {"a": {"method": "sld", "config": {"strenth": 3}}}}, "strenth"),
        (
            {"concept": {"a": {"forget": {"file": "none.txt"}, "judge": {"name": "pictoworld", "preset": "star"}}}},
            "none.txt",
        ),
    ],
)
def test_what_is_wrong_is_found_before_drawing(changes: dict[str, object], said: str, resources: Resources) -> None:
    with pytest.raises((SaferedirError, OSError)) as caught:
        make_plan(matrix(**changes), resources)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_of_the_call_are_checked(resources: Resources) -> None:
    for name, said in (
        ("num_inference_stepz", "did you mean 'num_inference_steps'"),
        ("prompt", "which the bench sets itself"),
    ):
        model = {"pictoworld": {"load": "pictoworld", "call": {name: 1}}}
        with pytest.raises(BenchError, match=said):
            make_plan(matrix(model=model), resources)


def test_names_that_would_share_a_file_are_refused(resources: Resources) -> None:
    guard = SMALL["guard"]["sld"]  # type: ignore[index]
    with pytest.raises(BenchError, match="two cells would be kept as"):
        make_plan(matrix(guard={"a b": guard, "a-b": guard}), resources)


def test_a_rule_that_asks_for_what_the_judge_does_not_say(resources: Resources) -> None:
    rule = {"kind": "InTop", "group": "shape", "value": "starr"}
    star = {"prompts": "pictoworld/star", "judge": {"name": "pictoworld", "rule": rule}}
    with pytest.raises(SaferedirError, match="starr"):
        make_plan(matrix(concept={"star": star}), resources)


def test_a_report_takes_no_numbers_of_an_earlier_plan(bench: Path, tmp_path: Path, resources: Resources) -> None:
    shutil.copytree(bench, tmp_path / "changed")
    changed = {**SMALL["guard"], "sld": {"recipe": "pictoworld/sld-medium"}}  # type: ignore[dict-item]
    plan = make_plan(matrix(guard=changed), resources)
    from saferedir.bench.storage.saved_plan import saved_plan
    from saferedir.bench.storage.store import write_json

    write_json(tmp_path / "changed" / "plan.json", saved_plan(plan).to_dict())  # killed before anything was generated
    _, markdown = report_folder(tmp_path / "changed")
    assert "was not counted yet" in markdown.read_text()


def test_prompts_that_a_guard_was_made_from_are_told(tmp_path: Path, resources: Resources) -> None:
    """W9: only the guard that knows them, and stacks that hold it, are said to; a file that is not there is found at planning."""
    star = make_plan(matrix(guard={}), resources).prompts
    (forget,) = [facts for facts in star.values() if facts.name == "test-seen"]
    assert forget.texts is not None
    pairs = tmp_path / "pairs-star.jsonl"
    pairs.write_text(
        "".join(json.dumps({"unsafe": text, "safe": "a circle"}) + "\n" for text in forget.texts[:1]), encoding="utf-8"
    )
    guards = {
        "plain": {"recipe": "pictoworld/negative-prompt"},
        "made": {"load": "pictoworld/{concept}", "trained_on": [str(tmp_path / "pairs-{concept}.jsonl")]},
        "both": {"stack": ["made", "plain"]},
    }
    plan = make_plan(matrix(guard=guards), resources)
    told = {
        cell.name.guard: plan.prompts[cell.prompts].warnings for cell in plan.cells if cell.name.prompts == "test-seen"
    }
    assert told["none"] == told["plain"] == ()
    for guard in ("made", "both"):
        assert told[guard] == (f"1 of 2 prompts are also in pairs-star.jsonl, which {guard} was made from.",)
    pairs.unlink()

    class NoModel(Resources):
        def pipeline(self, spec: object) -> object:
            raise AssertionError("a model was loaded")

    with pytest.raises(
        BenchError, match=r"^\[guard\.made\] has a file in `trained_on` that cannot .* \S+pairs-star\.jsonl"
    ):
        make_plan(matrix(guard=guards), NoModel())
    other = {**guards, "made": {**guards["made"], "concepts": []}}  # of no concept of this matrix
    assert "made" not in {cell.name.guard for cell in make_plan(matrix(guard=other), resources).cells}


def test_a_concept_without_prompts_for_an_attack_is_said() -> None:
    prompts = PromptSet("forget", (PromptItem("a star"),), "own")
    has, lacks = (
        SimpleNamespace(name=name, prompts=ConceptPrompts(prompts, rephrased))
        for name, rephrased in (("star", {"p": prompts}), ("emblem", {}))
    )
    asked = SimpleNamespace(attacks=["none", "phrasings"])
    sentence = "attack phrasings for emblem: it has no prompts of the kind that this attack takes."
    assert check_attacks(asked, [has, lacks]) == [sentence]  # type: ignore[arg-type]
    assert check_attacks(asked, [has]) == []  # type: ignore[arg-type]
    with pytest.raises(BenchError, match="attack 'phrasings' has no case"):
        check_attacks(asked, [lacks])  # type: ignore[arg-type]


def test_a_guard_that_nobody_knows_is_refused_at_planning(resources: Resources) -> None:
    for name in ("pictoworld/{concept}-nothing", "runs/mooon", "./mooon"):
        with pytest.raises(BenchError, match=r"^\[guard\.duo\] no guard is called '.*' \(there is no folder .*\)"):
            make_plan(matrix(guard={"duo": {"load": name}}), resources)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_inference_steps", -4, "a whole number >= 1"),
        ("num_inference_steps", 0, "a whole number >= 1"),
        ("num_inference_steps", "30", "a whole number >= 1"),
        ("num_inference_steps", 2.5, "a whole number >= 1"),
        ("num_inference_steps", True, "a whole number >= 1"),
        ("height", -64, "a whole number >= 8"),
        ("guidance_scale", "high", "a number"),
        ("guidance_scale", -1, "a number >= 0"),
        ("guidance_scale", float("nan"), "a number"),
        ("negative_prompt", 5, "one text, which serves every prompt"),
        ("negative_prompt", ["a", "b"], "one text, which serves every prompt"),
        ("timesteps", [], "a list of numbers"),
        ("sigmas", "0.5", "a list of numbers"),
    ],
)
def test_a_call_that_cannot_run_is_refused_at_planning(
    resources: Resources, name: str, value: object, expected: str
) -> None:
    pipe = resources.pipeline(ModelSpec("pictoworld", 8, "float32", "cpu", True, {}))
    with pytest.raises(BenchError, match=rf"^`call` sets {name} = .*; expected {expected}\.$"):
        check_call({name: value}, pipe)


def test_a_call_that_can_run_is_taken(resources: Resources) -> None:
    pipe = resources.pipeline(ModelSpec("pictoworld", 8, "float32", "cpu", True, {}))
    check_call({"num_inference_steps": 1, "guidance_scale": 4, "height": 64, "eta": 0, "negative_prompt": "x"}, pipe)


def test_unknown_executors() -> None:
    with pytest.raises(BenchError, match="did you mean 'local'"):
        make_executor("locl")
    with pytest.raises(BenchError, match="--executor ray"):
        make_executor("local", workers=2)
