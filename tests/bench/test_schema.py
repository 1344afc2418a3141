"""Folders of schema 1, as an earlier release wrote them: read, reported, judged again, gone on with; not one digit moves.

`golden/bench_schema1.zip`: a small bench of PictoWorld, written by that release.
"""

import json
import zipfile
from pathlib import Path

import pytest

from saferedir.bench.evaluation.evaluate import write_cells
from saferedir.bench.evaluation.rejudge import rejudge
from saferedir.bench.executors import InProcess
from saferedir.bench.generation.resources import Resources
from saferedir.bench.metric_keys import REFERENCE, MetricKey
from saferedir.bench.planning import plan as plan_module
from saferedir.bench.planning.matrix import JudgeEntry, Matrix
from saferedir.bench.planning.plan import make_plan
from saferedir.bench.records import CellRecord
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.report.plots.kept import FIGURES
from saferedir.bench.runner import missing_jobs, run
from saferedir.bench.schema import METRICS, SCHEMA, read_plan, read_record
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError

GOLDEN = Path(__file__).parents[1] / "golden" / "bench_schema1.zip"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bench folder of schema 1."""
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "bench"


def cells(folder: Path) -> dict[str, dict[str, object]]:
    return {path.name: json.loads(path.read_text()) for path in sorted((folder / "cells").iterdir())}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("report.")
    }


def test_every_renamed_metric_occurs_in_the_old_folder_and_none_in_its_converted_records(old: Path) -> None:
    before, after = set(), set()
    for values in cells(old).values():
        before |= {MetricKey.parse(name).metric for name in values["measured"]}  # type: ignore[attr-defined]
        record = CellRecord.from_dict(values)
        after |= {MetricKey.parse(name).metric for name in record.measured}
        assert record.protocol.id == values["protocol"]["id"]
        assert CellRecord.from_dict(record.to_dict()) == record and record.to_dict()["schema"] == SCHEMA == 2
        assert sorted(map(json.dumps, record.measured.values())) == sorted(map(json.dumps, values["measured"].values()))  # type: ignore[attr-defined]
    assert set(METRICS) <= before and not set(METRICS) & after and set(METRICS.values()) <= after


def test_counting_an_old_folder_again_gives_its_numbers_to_the_digit(old: Path, tmp_path: Path) -> None:
    new = Store(tmp_path / "new")
    new.prepare(0)
    write_cells(read_saved_plan(old), new, Store(old))
    assert cells(tmp_path / "new") == {name: read_record(values) for name, values in cells(old).items()}


def test_a_report_reads_an_old_folder_and_rewrites_nothing(old: Path) -> None:
    before = contents(old)
    _, markdown = report_folder(old)
    (old / FIGURES).unlink()  # the report's own
    assert "sld-max" in markdown.read_text() and contents(old) == before


def test_an_old_folder_is_judged_again(old: Path, tmp_path: Path) -> None:
    records = rejudge(
        old, {"star": JudgeEntry(name="pictoworld-template", preset="star")}, tmp_path / "second", Resources()
    )
    assert records and not any(record.error for record in records)
    again = {record.name.slug: record.measured["concept"] for record in records}
    first = {name.removesuffix(".json"): values["measured"] for name, values in cells(old).items()}
    assert again == {name: found["concept:pictoworld-template/star"] for name, found in first.items() if name in again}
    assert read_saved_plan(tmp_path / "second").images_at == "../bench"


def test_an_old_folder_is_gone_on_with(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is generated twice; what is missing is added beside the old files, in the new layout."""
    versions = next(iter(cells(old).values()))["versions"]
    monkeypatch.setattr(plan_module, "library_versions", lambda: versions)
    resources, store = Resources(), Store(old)
    plan = make_plan(Matrix.model_validate(json.loads((old / "matrix.json").read_text())), resources)
    assert missing_jobs(plan, store) == []
    before = cells(old)
    (old / "cells" / next(iter(before))).unlink()
    lost = next(spec for spec in plan.image_sets.values() if spec.guards).shards[0]
    for path in (old / "drawings" / lost.key).glob(f"{lost.start:06d}-*"):
        path.unlink()
    assert [job.shard for job in missing_jobs(plan, store)] == [lost]
    with store.lock():
        run(plan, store, InProcess(resources))
    assert not (old / "images").exists() and missing_jobs(plan, store) == []
    assert json.loads((old / "plan.json").read_text())["schema"] == SCHEMA
    after = cells(old)
    assert after.keys() == before.keys()
    for name, values in after.items():
        if lost.key not in values["image_sets"]:  # another machine may generate other last digits
            assert values == read_record(before[name])


def test_an_unknown_schema_is_refused(old: Path) -> None:
    with pytest.raises(BenchError, match=r"plan\.json has schema 3, expected 1 or 2; update saferedir"):
        read_plan({"schema": 3})


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("concept", MetricKey("concept")),
        ("concept:nudenet/p4d2024", MetricKey("concept", "nudenet/p4d2024")),
        ("concept:pkg.mod:fn@x/own rule", MetricKey("concept", "pkg.mod:fn@x/own rule")),
        ("kid:clip@reference", MetricKey("kid", "clip", REFERENCE)),
        ("drift", MetricKey("drift")),
    ],
)
def test_a_metric_key_is_read_and_written(text: str, key: MetricKey) -> None:
    assert MetricKey.parse(text) == key and str(key) == text
