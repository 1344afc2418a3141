"""The bench's front door: one context plans, runs and reports; a folder is gone on with; the terminal calls nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.watched import Watched

import saferedir as sr
from saferedir.bench import read_judges, rejudge, write_report
from saferedir.bench.evaluation import calibrate
from saferedir.bench.planning.matrix import JudgeEntry
from saferedir.errors import BenchError

MATRIX = """
title = "small"
[prompts]
forget = 2
retain = 2
neighbours = 1
look_alikes = 1
[model.pictoworld]
load = "pictoworld"
batch = 2
call = {num_inference_steps = 2, guidance_scale = 4.0}
[concept.star]
prompts = "pictoworld/star"
judge = {name = "pictoworld", preset = "star"}
[guard.sld]
recipe = "pictoworld/sld-max"
"""


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(MATRIX)
    return path


def test_a_bench_is_planned_run_gone_on_with_reported_and_judged_again(
    tmp_path: Path, matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "IMAGES", 5)
    out, watched = tmp_path / "bench", Watched()
    with sr.Bench(matrix, out, progress=watched) as bench:
        work = bench.plan
        assert work.images_left == work.plan.n_images > 0 and work.images_again == 0
        assert "guards: none, sld" in work.summary() and f"{work.images_left} still to generate" in work.summary()
        with pytest.raises(BenchError, match="another run is writing"), sr.Bench(matrix, out):
            pass
        records = bench.run()
        assert records and not any(record.error for record in records)
    labels = [label for label, _, _ in watched.steps]
    assert labels[0] == "planning" and "star: sld" in labels
    with sr.Bench.resume(out) as again:
        assert again.plan.images_left == 0 and again.run() == records
        page, markdown = again.report()
    assert page.is_file() and "sld" in markdown.read_text()
    assert write_report(out, calibrate=False) == (page, markdown)
    second = rejudge(out, {"star": JudgeEntry(name="pictoworld", preset="emblem")}, tmp_path / "second")
    assert {record.protocol.preset for record in second} == {"emblem"} != {records[0].protocol.preset}
    third = sr.Bench.rejudge(out, {"star": "pictoworld-template:star"}, tmp_path / "third")
    assert {record.protocol.judge for record in third} == {"pictoworld-template"}
    assert {record.protocol.judge for record in second} == {"pictoworld"} and len(third) == len(second)
    assert sr.Bench.report_of(tmp_path / "third")[0].is_file()


def test_a_dry_run_makes_nothing_and_a_closed_bench_has_no_plan(tmp_path: Path, matrix: Path) -> None:
    with sr.Bench(matrix, tmp_path / "bench", dry_run=True) as bench:
        assert bench.plan.images_left
        with pytest.raises(BenchError, match="dry run"):
            bench.run()
    assert not (tmp_path / "bench").exists()
    with pytest.raises(BenchError, match="the bench is not open"):
        _ = bench.plan
    with pytest.raises(BenchError, match=r"is no bench folder \(it has no matrix.json\)"):
        sr.Bench.resume(tmp_path)
    (tmp_path / "matrix.json").write_text('{"title": "x", "concept": {}}')
    with pytest.raises(BenchError, match=r"is no matrix of this version; run the bench .*: model is missing\.$"):
        sr.Bench.resume(tmp_path)


def test_the_door_lists_presets_and_reads_judges(tmp_path: Path) -> None:
    assert {preset.name for preset in sr.Bench.presets()} >= {"pictoworld-quick", "i2p"}
    assert all(preset.title for preset in sr.Bench.presets())
    file = tmp_path / "judges.toml"
    file.write_text('[star]\nname = "pictoworld"\npreset = "star"\n')
    assert sr.Bench.read_judges(file) == {"star": JudgeEntry(name="pictoworld", preset="star")}
    assert read_judges(str(file)) == sr.Bench.read_judges(file)
    for count_again in (sr.Bench.rejudge, rejudge):
        with pytest.raises(BenchError, match="give JUDGE:PRESET"):
            count_again(tmp_path, {"star": "pictoworld"}, tmp_path / "out")
    with pytest.warns(DeprecationWarning, match="judges="), pytest.raises(BenchError, match="give JUDGE:PRESET"):
        rejudge(tmp_path, choices={"star": "pictoworld"}, out=tmp_path / "out")  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="file="):
        assert "star" in read_judges(path=file)  # type: ignore[call-arg]


def test_a_bench_that_cannot_be_planned_leaves_no_folder(tmp_path: Path, matrix: Path) -> None:
    matrix.write_text(MATRIX.replace("num_inference_steps = 2", 'num_inference_steps = "two"'))
    with pytest.raises(BenchError, match="num_inference_steps"), sr.Bench(matrix, tmp_path / "bench"):
        pass
    assert not (tmp_path / "bench").exists()


def test_importing_the_room_is_cheap() -> None:
    code = "import sys, saferedir.bench; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
