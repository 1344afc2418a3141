"""The bench: a matrix of models, guards, concepts and attacks: images generated, scored, stored and reported.

    with Bench("pictoworld-quick", out="runs/bench") as bench:
        print(bench.plan.summary())
        bench.run()
        bench.report()

planning/ reads the matrix and lists the work, generation/ makes the images of one shard, executors/ say where, storage/ keeps
them, evaluation/ turns scores into numbers, report/ makes the page; runner.py drives them all, bench.py is the front door.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saferedir.utils.lazy import lazy_names

if TYPE_CHECKING:
    from saferedir.bench.bench import Bench, rejudge, write_report
    from saferedir.bench.planning.config import preset_names, read_judges, read_matrix

__all__ = ["Bench", "preset_names", "read_judges", "read_matrix", "rejudge", "write_report"]

_HOMES = {
    "Bench": "bench",
    "rejudge": "bench",
    "write_report": "bench",
    "preset_names": "planning.config",
    "read_judges": "planning.config",
    "read_matrix": "planning.config",
}

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _HOMES)
