"""What a bench of 10^5 images in 10^3 cells costs to go on with, judge again and report, when little or nothing in it is new.

Images are made-up scores (tests/bench/synthetic.py), so that no model runs: seconds are of reading, counting and writing. The
folder has 100 concepts, each with the bare model and nine guards.

- first count, first report: everything is new.
- resume: `bench run` once more, after planning; nothing is new, 1 % of the sets of images are, or one set is.
- rejudge: another rule for one concept (ten cells) into a folder of its own, then the same once more.
- report: report.html and report.md of all cells.

    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py --out docs/bench-scale.json --table
    OMP_NUM_THREADS=1 python benchmarks/bench_scale.py --concepts 20 --table          # does it work? ten guards each, as above
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ makes the folder

from tests.bench.synthetic import cell, shards_of, synthetic_bench, write_set

from saferedir.bench import runner
from saferedir.bench.evaluation import rejudge as rejudging
from saferedir.bench.executors import Executor
from saferedir.bench.planning.config import JudgeEntry
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.bench.storage.store import Store
from saferedir.judges.rules import InTop
from saferedir.utils.packaged import library_version

#: cells of each concept: the bare model and nine guards
GUARDS = 10


def folder(root: Path, concepts: int, images: int) -> tuple[SavedPlan, Store]:
    """A folder of `GUARDS` cells for each concept, `images` in each, and its plan; nothing is counted."""
    first, store = synthetic_bench(root, guards=0, images=images)
    (judge,) = first.judges[first.cells[0].image_sets[0]]
    names = ["none", *(f"guard-{number}" for number in range(GUARDS - 1))]
    cells, shards = [], {}
    for concept in range(concepts):
        keys = {name: f"{1 + concept * GUARDS + number:016x}" for number, name in enumerate(names)}
        for name, key in keys.items():
            write_set(store, key, images, judge, shown=0.9 if name == "none" else 0.1)
            made = cell(name, key, keys["none"], images, judge)
            cells.append(
                dataclasses.replace(made, name=dataclasses.replace(made.name, concept=f"concept-{concept:03d}"))
            )
            shards[key] = shards_of(key, images)
    plan = dataclasses.replace(first, cells=tuple(cells), shards=shards, judges=dict.fromkeys(shards, (judge,)))
    return plan, store


class Nobody(Executor):
    """Generates nothing, for nothing is missing."""

    def run(self, jobs: Any) -> Iterator[Any]:
        assert not list(jobs), "something is missing"
        return iter(())


def resume(plan: SavedPlan, store: Store) -> None:
    """`bench run` once more, after planning."""
    sets = {
        key: SimpleNamespace(shards=shards, scorers=plan.judges[key], model=SimpleNamespace(digest="m"))
        for key, shards in plan.shards.items()
    }
    planned: Any = SimpleNamespace(
        image_sets=sets,
        n_images=sum(len(shard) for shards in plan.shards.values() for shard in shards),
        cells=plan.cells,
        encoders={},
        texts={},
        matrix=SimpleNamespace(model_dump=lambda mode: {}),
    )
    fresh = Store(store.root)
    with fresh.lock(), mock.patch.object(runner, "saved_plan", lambda _: plan):
        records = runner.run(planned, fresh, Nobody())
    assert len(records) == len(plan.cells) and not any(record.error for record in records)


@contextmanager
def timed(record: dict[str, Any], name: str) -> Iterator[None]:
    """Adds the CPU seconds of this process, and those of the clock, to `record`."""
    started, clock = time.process_time(), time.perf_counter()
    yield
    entry = {"cpu": time.process_time() - started, "clock": time.perf_counter() - clock}
    record.setdefault(name, []).append({kind: round(seconds, 3) for kind, seconds in entry.items()})
    print(f"{name}: {record[name][-1]}", file=sys.stderr, flush=True)


def measure(concepts: int, images: int, repetitions: int) -> dict[str, Any]:
    """Seconds of everything, each as often as `repetitions` says but for the first count."""
    chance, record = random.Random(0), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        plan, store = folder(root / "bench", concepts, images)
        (judge,) = plan.judges[plan.cells[0].image_sets[0]]
        with timed(record, "first count"):
            resume(plan, store)
        with timed(record, "first report"):
            report_folder(store.root)

        def renew(count: int) -> None:
            for key in chance.sample(list(plan.shards), count):
                write_set(store, key, images, judge, shown=chance.random())

        def rejudge(concept: str, place: Path) -> None:
            rule = InTop("shape", "circle").to_dict()
            with mock.patch.object(rejudging, "judge_spec", lambda *_: judge):
                rejudging.rejudge(
                    store.root, {concept: JudgeEntry(name="pictoworld", rule=rule)}, place, SimpleNamespace()
                )

        for number in range(repetitions):
            with timed(record, "resume, nothing new"):
                resume(plan, store)
            with timed(record, "report, nothing new"):
                report_folder(store.root)
            renew(max(1, concepts * GUARDS // 100))
            with timed(record, "resume, 1 % of the sets new"):
                resume(plan, store)
            renew(1)
            with timed(record, "resume, one set new"):
                resume(plan, store)
            place = root / f"rejudged-{number}"
            with timed(record, "rejudge one concept"):
                rejudge(f"concept-{number:03d}", place)
            with timed(record, "rejudge the same again"):
                rejudge(f"concept-{number:03d}", place)
    return {
        "cells": len(plan.cells),
        "images": len(plan.cells) * images,
        "files": 2 * sum(map(len, plan.shards.values())),
        "repetitions": repetitions,
        "seconds": record,
    }


def table(record: dict[str, Any]) -> str:
    """Markdown: medians of CPU seconds, and all of them."""
    lines = ["| what | CPU seconds, median | all |", "|---|---|---|"]
    for name, entries in record["seconds"].items():
        seconds = [entry["cpu"] for entry in entries]
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {', '.join(f'{each:.2f}' for each in seconds)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=100)
    parser.add_argument("--images", type=int, default=100, help="in each cell")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--table", action="store_true", help="print the table of docs/bench.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = measure(arguments.concepts, arguments.images, arguments.repetitions)
    record = {"made_by": f"saferedir {library_version()}", **record}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record) if arguments.table else json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
