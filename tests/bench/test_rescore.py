"""Judges and encoders that fail, or come late: the images stay, others are counted, and the next run makes up for it."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.watched import Watched
from torch import Tensor

from saferedir.bench import bench as bench_module
from saferedir.bench import runner as runner_module
from saferedir.bench.evaluation.rejudge import rejudge
from saferedir.bench.executors import InProcess
from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import Resources
from saferedir.bench.generation.score import from_png
from saferedir.bench.planning import plan as plan_module
from saferedir.bench.planning.config import JudgeEntry, Matrix
from saferedir.bench.planning.plan import Plan, make_plan
from saferedir.bench.records import CellRecord
from saferedir.bench.report import from_folder as reporting_module
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.runner import missing_jobs, run, unscored_shards
from saferedir.bench.storage.saved_plan import SavedPlan, saved_plan
from saferedir.bench.storage.store import Store
from saferedir.cli.common import console
from saferedir.errors import SaferedirError
from saferedir.utils.progress import SILENT, Progress

SMALL: dict[str, Any] = {
    "title": "small",
    "prompts": {"forget": 3, "retain": 4, "neighbours": 1, "look_alikes": 1},
    "model": {
        "pictoworld": {"load": "pictoworld", "batch": 2, "call": {"num_inference_steps": 2, "guidance_scale": 4.0}}
    },
    "concept": {"star": {"prompts": "pictoworld/star", "judge": {"name": "pictoworld", "preset": "star"}}},
    "guard": {"sld": {"recipe": "pictoworld/sld-max"}},
}
ENCODER = {"mine": {"name": "callable", "options": {"function": "moody:means"}}}
OWN_RULE = {"kind": "AnyAbove", "labels": ["bright"], "threshold": 0.5}
JUDGE = {"name": "callable", "options": {"function": "moody:bright", "labels": "bright"}, "rule": OWN_RULE}


@pytest.fixture(scope="module")
def functions() -> Iterator[Any]:
    """A module of functions that raise whenever `fails(images)` says so; one for all tests, as `resources` keep them."""
    module: Any = types.ModuleType("moody")

    def means(images: Tensor) -> Tensor:
        if module.fails(images):
            raise RuntimeError("no such kernel image")
        return images.mean(dim=(2, 3))

    module.means, module.bright = means, lambda images: means(images).mean(dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "moody", module)
        yield module


@pytest.fixture(autouse=True)
def moody(functions: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    functions.fails = lambda images: False
    monkeypatch.setattr(plan_module, "SHARD", 2)
    return functions


@pytest.fixture(scope="module")
def resources() -> Resources:
    return Resources()


@pytest.fixture(scope="module")
def plan(resources: Resources, functions: Any) -> Plan:
    functions.fails = lambda images: False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "SHARD", 2)
        return make_plan(matrix(encoder=ENCODER), resources)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, plan: Plan, resources: Resources) -> Path:
    """A bench in which nothing failed."""
    folder = tmp_path_factory.mktemp("whole")
    done(folder, plan, resources)
    return folder


class Counting(InProcess):
    """Counts the shards that were generated."""

    generated = 0

    def run(self, tasks: Any) -> Any:
        for outcome in super().run(tasks):
            self.generated += 1
            yield outcome


def matrix(**changes: Any) -> Matrix:
    return Matrix.model_validate({**json.loads(json.dumps(SMALL)), **changes})


def done(
    folder: Path, plan: Plan, resources: Resources, progress: Progress = SILENT
) -> tuple[dict[str, CellRecord], int]:
    """Records by their files' names, and how many shards were generated."""
    store, executor = Store(folder), Counting(resources)
    store.prepare(0)
    with store.lock():
        records = run(plan, store, executor, progress, resources)
    return {record.name.slug: record for record in records}, executor.generated


def shards(plan: Plan) -> int:
    return sum(len(spec.shards) for spec in plan.image_sets.values())


def cells(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "cells").iterdir())}


def own(record: CellRecord) -> dict[str, Any]:
    """What the cell measured but for encoders."""
    return {name: value for name, value in record.measured.items() if not name.endswith(":mine")}


def test_an_encoder_that_fails_costs_its_own_numbers_only(
    tmp_path: Path, plan: Plan, whole: Path, resources: Resources, moody: Any
) -> None:
    moody.fails = lambda images: True
    records, generated = done(tmp_path, plan, resources)
    undisturbed = {record.name.slug: record for record in Store(whole).read_cells(list(records))}
    assert generated == shards(plan)  # each once
    for slug, record in records.items():
        assert not record.error and record.measured == own(undisturbed[slug]) and record.measured["concept"]
        used = record.name.role != "forget"  # an encoder without texts has nothing to say on forget prompts
        said = ("encoder 'mine' has no number, for it failed: RuntimeError: no such kernel image",) if used else ()
        assert record.warnings == (*undisturbed[slug].warnings, *said)
    assert any(":mine" in name for record in undisturbed.values() for name in record.measured)
    # the next run looks at what was kept
    assert missing_jobs(plan, Store(tmp_path)) == [] != unscored_shards(plan, Store(tmp_path))
    moody.fails = lambda images: False
    assert done(tmp_path, plan, resources)[1] == 0
    assert cells(tmp_path) == cells(whole)


def test_one_failure_is_made_up_for_in_the_same_run(
    tmp_path: Path, plan: Plan, whole: Path, resources: Resources, moody: Any
) -> None:
    moments = iter([False, True])
    moody.fails = lambda images: next(moments, False)
    assert done(tmp_path, plan, resources)[1] == shards(plan)
    assert cells(tmp_path) == cells(whole)


def test_one_image_that_an_encoder_cannot_read_costs_the_cells_of_its_drawing(
    tmp_path: Path, plan: Plan, whole: Path, resources: Resources, moody: Any
) -> None:
    cell = next(cell for cell in plan.cells if cell.name.guard == "sld" and cell.name.role == "retain")
    victim = from_png(Store(whole).images(Shard(cell.image_sets[0], 2, 4))[0])
    assert victim is not None
    moody.fails = lambda images: any(torch.equal((one * 255).round().to(torch.uint8), victim) for one in images)
    records, _ = done(tmp_path, plan, resources)
    failed = {slug for slug, record in records.items() if any("failed" in sentence for sentence in record.warnings)}
    assert failed == {cell.name.slug}


@pytest.mark.parametrize("kind", ["judge", "second_judges"])
def test_a_judge_that_fails_costs_its_own_cells_or_numbers_only(
    tmp_path: Path, resources: Resources, moody: Any, kind: str
) -> None:
    star = SMALL["concept"]["star"]
    other = {**star, kind: JUDGE if kind == "judge" else [JUDGE]}
    few = {"forget": 1, "retain": 2, "neighbours": 1, "look_alikes": 1}
    plan = make_plan(matrix(concept={"star": star, "other": other}, prompts=few, guard={}), resources)
    whole, _ = done(tmp_path / "whole", plan, resources)
    moody.fails = lambda images: True
    records, generated = done(tmp_path / "out", plan, resources)
    assert generated == shards(plan)
    for slug, record in records.items():
        if record.name.concept == "star":  # though the bare model's images are the same
            assert record == whole[slug]
        elif kind == "judge":
            assert record.error == "judge 'callable' could not score all images: RuntimeError: no such kernel image"
        else:
            assert "concept:callable/own rule" in whole[slug].measured and not record.error
            assert "concept:callable/own rule" not in record.measured and record.measured["concept"]
            assert record.warnings[-1].startswith(
                "second judge 'callable/own rule' has no number, for it failed: Runtime"
            )
    moody.fails = lambda images: False
    assert done(tmp_path / "out", plan, resources)[1] == 0
    assert cells(tmp_path / "out") == cells(tmp_path / "whole")


def test_images_that_were_not_kept_are_drawn_again(
    tmp_path: Path, whole: Path, resources: Resources, moody: Any
) -> None:
    plan = make_plan(matrix(encoder=ENCODER, keep_images=False), resources)
    moody.fails = lambda images: True
    records, generated = done(tmp_path / "out", plan, resources)
    assert generated == shards(plan) and not any(record.error for record in records.values())
    assert any("failed: RuntimeError" in sentence for record in records.values() for sentence in record.warnings)
    again = missing_jobs(plan, Store(tmp_path / "out"))
    assert {task.spec.key for task in again} == {key for key, spec in plan.image_sets.items() if spec.encoders}
    assert unscored_shards(plan, Store(tmp_path / "out")) == []
    # counting by another judge needs neither them nor the encoder
    entry = JudgeEntry(name="pictoworld", rule={"kind": "InTop", "group": "shape", "value": "heart"})
    judged = rejudge(tmp_path / "out", {"star": entry}, tmp_path / "again", resources)
    assert not any(record.error for record in judged)
    assert any("were not kept" in sentence for record in judged for sentence in record.warnings)
    moody.fails = lambda images: False
    assert done(tmp_path / "out", plan, resources)[1] == len(again)
    assert cells(tmp_path / "out") == cells(whole)


def test_an_encoder_that_comes_late_says_how_far_it_is(
    tmp_path: Path, plan: Plan, whole: Path, resources: Resources
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.encoder-*.parquet"):
        path.unlink()
    watched = Watched()
    todo = unscored_shards(plan, Store(tmp_path))
    assert done(tmp_path, plan, resources, watched)[1] == 0
    assert watched.steps[0] == ("generating", plan.n_images, plan.n_images)
    assert watched.steps[1:] == [("scoring stored images", len(todo), done) for done in range(len(todo) + 1)]


def test_the_report_of_an_earlier_run_can_be_made_until_the_next_is_counted(
    tmp_path: Path, plan: Plan, whole: Path, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    done(tmp_path, make_plan(matrix(), resources), resources)

    def reported() -> set[str]:
        told: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(reporting_module, "write_report", lambda data, out: told.append(data))
            report_folder(tmp_path)
        return {name for record in told[0].cells for name in record.measured}

    before = reported()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "rescore", killed)
        with pytest.raises(KeyboardInterrupt):
            done(tmp_path, plan, resources)
    assert reported() == before
    done(tmp_path, plan, resources)
    assert reported() > before - {"kid:judge", "fid:judge"} and "drift:mine" in reported()


def test_a_plan_of_an_earlier_release_is_read(resources: Resources) -> None:
    plan = saved_plan(make_plan(matrix(), resources))
    values = json.loads(json.dumps(plan.to_dict()))
    for name in ("images_at", "encoders"):
        del values[name]
    for cell in values["cells"]:
        del cell["encoders"], cell["without"]
    assert SavedPlan.from_dict(values).cells == plan.cells and SavedPlan.from_dict(values).scorers == plan.scorers


def invoke(folder: Path, text: str, *options: str) -> str:
    from typer.testing import CliRunner

    from saferedir.cli import app

    (folder / "small.toml").write_text(text)
    command = ["bench", "run", str(folder / "small.toml"), "--out", str(folder / "out"), "--no-report", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("keeps", [True, False])
def test_the_printed_plan_says_what_a_late_encoder_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: Resources, moody: Any, keeps: bool
) -> None:
    monkeypatch.setattr(console, "_width", 250)
    monkeypatch.setattr(bench_module, "Resources", lambda: resources)
    text = f"""
title = "small"
keep_images = {str(keeps).lower()}
prompts = {{forget = 1, retain = 2, neighbours = 1, look_alikes = 1}}
[model.pictoworld]
load = "pictoworld"
call = {{num_inference_steps = 1, guidance_scale = 4.0}}
[concept.star]
prompts = "pictoworld/star"
judge = {{name = "pictoworld", preset = "star"}}
"""
    invoke(tmp_path, text)
    late = text + '[encoder.mine]\nname = "callable"\noptions = {function = "moody:means"}\n'
    first = invoke(tmp_path, late, "--dry-run")
    if keeps:
        assert "still to generate │ 0" in first and "kept images: " in first and " by mine" in first
    else:
        assert "of them once more" in first and "keep_images = false" in first and "still to score" not in first
    moody.fails = lambda images: not keeps and len(images) > 1  # but not for the one image that it is tried with
    said = invoke(tmp_path, late)
    assert ("encoder 'mine' has no number" in said) is (not keeps)


def test_judges_and_encoders_of_wrong_options_are_one_sentence(resources: Resources) -> None:
    named = {**JUDGE, "options": {**JUDGE["options"], "name": "q"}}  # type: ignore[dict-item]
    star = {**SMALL["concept"]["star"], "judge": named}
    (spec,) = {
        one
        for found in saved_plan(make_plan(matrix(concept={"star": star}), resources)).judges.values()
        for one in found
    }
    assert spec.facts["id"] == "q" and spec.facts["function"] == "moody:bright"
    for options, said in (
        ({"function": 3}, "function is 3"),
        ({"labels": 5}, "labels is 5, expected a text or a list"),
    ):
        judge = {**JUDGE, "options": {**JUDGE["options"], **options}}  # type: ignore[dict-item]
        with pytest.raises(SaferedirError, match=said):
            make_plan(matrix(concept={"star": {**star, "judge": judge}}), resources)
    clip = {"name": "clip", "options": {"model": "nowhere", "texts": 5}, "rule": OWN_RULE}
    with pytest.raises(SaferedirError, match="judge 'clip' cannot be made with its options model, texts"):
        make_plan(matrix(concept={"star": {**star, "judge": clip}}), resources)
