"""Counting again by other judges, presets or rules, without generating: `saferedir bench rejudge`.

Scores that are stored are used as they are; a judge that was not there scores the stored images.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path

from saferedir.bench.evaluation.evaluate import write_cells
from saferedir.bench.evaluation.rescore import check_images_stored, rescore, shards_to_score
from saferedir.bench.generation.resources import Resources
from saferedir.bench.planning.config import JudgeEntry
from saferedir.bench.planning.judges import judge_spec, rule_of
from saferedir.bench.records import CellRecord
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError
from saferedir.utils.names import unknown_name_message
from saferedir.utils.progress import SILENT, Progress

#: at the end of the title
_AGAIN = ", judged again"


def _description(choices: Mapping[str, JudgeEntry], others: Collection[str]) -> str:
    """Whose numbers these are, for the description."""
    judged = ", ".join(
        f"{concept} by {entry.name} ({entry.preset or 'own rule'})" for concept, entry in choices.items()
    )
    return f"Judged again: {judged}." + (f" As at first: {', '.join(sorted(others))}." if others else "")


def rejudge(
    folder: Path,
    choices: Mapping[str, JudgeEntry],
    out: Path,
    resources: Resources,
    progress: Progress = SILENT,
) -> list[CellRecord]:
    """Judge the concepts in `choices` (concept -> judge and preset or rule) anew; records, plan and costs go to `out`.

    `progress` counts shards that a new judge scores. Raises BenchError where images that a new judge would
    need were not kept, or were never generated.
    """
    plan, source, target = read_saved_plan(folder), Store(folder), Store(out)
    if plan.images_at != ".":
        source = Store((folder / plan.images_at).resolve())
    concepts = {cell.name.concept for cell in plan.cells}
    for concept in choices:
        if concept not in concepts:
            raise BenchError(unknown_name_message("concept in this bench", concept, concepts))
    specs = {concept: judge_spec(entry, resources) for concept, entry in choices.items()}
    rules = {concept: rule_of(entry) for concept, entry in choices.items()}
    cells, judges = [], {key: list(specs_of_set) for key, specs_of_set in plan.judges.items()}
    for cell in plan.cells:
        if cell.name.concept in choices:
            entry, spec = choices[cell.name.concept], specs[cell.name.concept]
            for key in (*cell.image_sets, *cell.bare):
                judges[key] = list(dict.fromkeys([*judges[key], spec]))
            protocol = dataclasses.replace(
                cell.protocol,
                judge=entry.name,
                judge_digest=spec.digest,
                preset=entry.preset or "own rule",
                rule=rules[cell.name.concept].to_dict(),
            )
            cell = dataclasses.replace(cell, protocol=protocol, judge=spec.key, second={})
        cells.append(cell)
    plan = dataclasses.replace(
        plan,
        title=plan.title if plan.title.endswith(_AGAIN) else plan.title + _AGAIN,
        description=f"{plan.description.rstrip()} {_description(choices, concepts - choices.keys())}".lstrip(),
        cells=tuple(cells),
        judges={key: tuple(specs_of_set) for key, specs_of_set in judges.items()},
        images_at=os.path.relpath(source.root.resolve(), out.resolve()),
    )
    target.prepare(0)
    with source.lock() if source.root.resolve() != target.root.resolve() else nullcontext():
        if not all(source.has(shard) for shards in plan.shards.values() for shard in shards):
            raise BenchError(f"the bench in {source.root} is not finished; end it with `saferedir bench run` first.")
        todo = shards_to_score(plan.shards, plan.scorers, source)
        check_images_stored(todo, specs.values(), source)
        return write_cells(plan, target, source, unscored=rescore(todo, source, resources, progress))
