"""Counting again takes what was counted from the same, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bench.synthetic import synthetic_bench, write_shard

from saferedir.bench.evaluation import cells, counted, evaluate
from saferedir.bench.evaluation.counted import FILE
from saferedir.bench.storage.store import Store


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The guards whose cells were counted, in order."""
    names: list[str] = []
    original = cells.evaluate_cell

    def noted(cell, *args):  # type: ignore[no-untyped-def]
        names.append(cell.name.guard)
        return original(cell, *args)

    monkeypatch.setattr(evaluate, "evaluate_cell", noted)
    yield names


def taken(names: list[str]) -> list[str]:
    answer, names[:] = list(names), []
    return answer


def test_a_second_count_of_ten_thousand_images_counts_no_cell(tmp_path: Path, counts: list[str]) -> None:
    plan, store = synthetic_bench(tmp_path / "bench", guards=9, images=1000)
    first = evaluate.write_cells(plan, store)
    assert len(taken(counts)) == 10
    before = {path.name: path.read_bytes() for path in (store.root / "cells").iterdir()}
    costs = (store.root / "costs.json").read_bytes()
    assert evaluate.write_cells(plan, Store(store.root)) == first
    assert taken(counts) == []
    assert {path.name: path.read_bytes() for path in (store.root / "cells").iterdir()} == before
    assert (store.root / "costs.json").read_bytes() == costs
    assert evaluate.write_cells(plan, store) == first and taken(counts) == []


def test_only_cells_of_what_is_new_are_counted(tmp_path: Path, counts: list[str]) -> None:
    plan, store = synthetic_bench(tmp_path / "bench", guards=3, images=200)
    evaluate.write_cells(plan, store)
    taken(counts)
    # other scores of one guard's images
    key = plan.cells[2].image_sets[0]
    write_shard(store, plan.shards[key][1], plan.judges[key][0], shown=1.0)
    records = evaluate.write_cells(plan, store)
    assert taken(counts) == ["guard-1"]
    assert records == evaluate.write_cells(plan, store) and taken(counts) == []
    # another rule for one cell, as of a judge of another preset
    protocol = dataclasses.replace(plan.cells[1].protocol, preset="other")
    changed = dataclasses.replace(plan.cells[1], protocol=protocol)
    plan = dataclasses.replace(plan, cells=(plan.cells[0], changed, *plan.cells[2:]))
    evaluate.write_cells(plan, store)
    assert taken(counts) == ["guard-0"]
    # the bare model's images are in every cell
    bare = plan.cells[0].bare[0]
    write_shard(store, plan.shards[bare][0], plan.judges[bare][0], shown=0.0)
    evaluate.write_cells(plan, store)
    assert len(taken(counts)) == 4


def test_a_record_that_was_touched_is_counted_again(tmp_path: Path, counts: list[str]) -> None:
    plan, store = synthetic_bench(tmp_path / "bench", guards=2, images=100)
    first = evaluate.write_cells(plan, store)
    taken(counts)
    path = store.root / "cells" / f"{plan.cells[1].name.slug}.json"
    path.write_text(path.read_text().replace('"hits": ', '"hits": 1'))
    assert evaluate.write_cells(plan, store) == first and taken(counts) == ["guard-0"]
    path.unlink()
    assert evaluate.write_cells(plan, store) == first and taken(counts) == ["guard-0"]
    (store.root / FILE).write_text("{")
    assert evaluate.write_cells(plan, store) == first and len(taken(counts)) == 3


def test_a_failed_cell_is_tried_again(tmp_path: Path, counts: list[str]) -> None:
    plan, store = synthetic_bench(tmp_path / "bench", guards=1, images=100)
    key = plan.cells[1].image_sets[0]
    broken = evaluate.write_cells(plan, store, broken={key: "no luck"})
    assert broken[1].error == "no luck" and taken(counts) == ["none"]
    assert not evaluate.write_cells(plan, store)[1].error and taken(counts) == ["guard-0"]
    store.path(plan.shards[key][0], plan.judges[key][0].key).unlink()
    assert evaluate.write_cells(plan, store)[1].error


def test_counts_go_along_into_another_folder(tmp_path: Path, counts: list[str]) -> None:
    plan, store = synthetic_bench(tmp_path / "bench", guards=3, images=100)
    first = evaluate.write_cells(plan, store)
    taken(counts)
    target = Store(tmp_path / "again")
    target.prepare(0)
    assert evaluate.write_cells(plan, target, store) == first and taken(counts) == []
    assert len(list((target.root / "cells").iterdir())) == 4
    shutil.copytree(store.root, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times of writing
    assert evaluate.write_cells(plan, Store(tmp_path / "copy")) == first and taken(counts) == []
    assert json.loads((tmp_path / "copy" / "costs.json").read_text())


def test_other_code_counts_anew(tmp_path: Path, counts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store = synthetic_bench(tmp_path / "bench", guards=1, images=100)
    first = evaluate.write_cells(plan, store)
    taken(counts)
    monkeypatch.setattr(counted, "code_checksum", lambda: "other code")
    assert evaluate.write_cells(plan, store) == first and len(taken(counts)) == 2
    assert evaluate.write_cells(plan, store) == first and taken(counts) == []


def test_the_checksum_is_of_every_file_that_counts(tmp_path: Path) -> None:
    root = tmp_path / "package"
    shutil.copytree(Path(counted.__file__).parents[2], root, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    assert counted.code_checksum(root) == counted.code_checksum()
    for number, name in enumerate(("metrics/rates.py", "judges/rules.py", "bench/evaluation/cells.py")):
        (root / name).write_text((root / name).read_text() + "# more\n")
        other = Path(shutil.move(root, tmp_path / f"package-{number}"))  # each folder is read once
        assert counted.code_checksum(other) != counted.code_checksum()
        (other / name).write_text((other / name).read_text().removesuffix("# more\n"))
        root = other


def test_what_is_counted_before_a_run_is_cut_off_is_kept(
    tmp_path: Path, counts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = synthetic_bench(tmp_path / "bench", guards=3, images=100)
    first = evaluate.write_cells(plan, store)
    taken(counts)
    key = plan.cells[1].image_sets[0]
    write_shard(store, plan.shards[key][0], plan.judges[key][0], shown=1.0)
    monkeypatch.setattr(counted, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(evaluate, "measure_costs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.write_cells(plan, store)
    assert taken(counts) == ["guard-0"]
    monkeypatch.undo()
    assert evaluate.write_cells(plan, store)[2:] == first[2:]
    assert taken(counts) == []
