"""From a bench folder to its cells: reads what is generated, writes every cell's record and costs.json. Needs no model.

The same sets of images always give the same records, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from saferedir.bench.evaluation.cells import evaluate_cell, failed_cell
from saferedir.bench.evaluation.costs import measure_costs
from saferedir.bench.evaluation.counted import Counted
from saferedir.bench.evaluation.rescore import Unscored
from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.records import CellRecord
from saferedir.bench.storage.embeddings import EmbeddingReader
from saferedir.bench.storage.generated_set import GeneratedSet, concatenated
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.bench.storage.store import Store, write_json
from saferedir.errors import SaferedirError


def write_cells(
    planned: SavedPlan,
    store: Store,
    source: Store | None = None,
    broken: Mapping[str, str] | None = None,
    unscored: Unscored | None = None,
) -> list[CellRecord]:
    """Count every cell that is not kept from an earlier count of the same, and keep the records, in the plan's order.

    Args:
        store: takes the records.
        source: holds the sets of images, the same folder by default.
        broken: set of images -> why it could not be generated; its cells are kept with that as `error`.
        unscored: judges and encoders that have not scored all of a set of images: where it is the protocol's judge, that is the
            `error` of its cells; another's own metrics are absent, with a warning.
    """
    source, broken, unscored = source or store, broken or {}, unscored or {}
    read: dict[tuple[str, str], GeneratedSet] = {}
    vectors = EmbeddingReader(source, planned.shards)
    earlier = Counted(store, source, planned)

    def generated(keys: tuple[str, ...], judge: str) -> GeneratedSet:
        for key in keys:
            if (key, judge) not in read:
                judges = [spec for spec in planned.judges[key] if (key, spec.key) not in unscored]
                read[key, judge] = source.read(planned.shards[key], judges, features_of=judge)
        return concatenated([read[key, judge] for key in keys])

    write_json(store.root / "plan.json", planned.to_dict())
    records, timed = [], []
    for cell in planned.cells:
        facts = planned.prompts[cell.prompts]
        counted, notes = _scored_parts(cell, unscored)
        why = next((broken[key] for key in cell.needs if key in broken), "") or _judge_failed(cell, unscored)
        key = earlier.key(cell, why, notes)
        if (kept := earlier.record(cell, key)) is not None:
            records.append(kept)
            timed.append(cell)
            continue
        if why:
            record = failed_cell(cell, facts, why)
        else:
            try:
                guarded, bare = (generated(keys, cell.judge) for keys in (cell.image_sets, cell.bare))
                record = evaluate_cell(
                    dataclasses.replace(counted, encoders=cell.encoders), facts, guarded, bare, vectors.of(counted)
                )
                record = dataclasses.replace(record, warnings=(*record.warnings, *notes))
                timed.append(cell)
            except SaferedirError as error:  # one cell that cannot be counted must not take the others with it
                record = failed_cell(cell, facts, str(error))
        earlier.write(record, key)
        records.append(record)
    write_json(store.root / "costs.json", [dataclasses.asdict(cost) for cost in measure_costs(timed, earlier)])
    earlier.save()
    return records


def _judge_failed(cell: CellSpec, unscored: Unscored) -> str:
    """Why there is no number: the protocol's judge has not scored all images; "" where it has."""
    why = _reason(unscored, (*cell.image_sets, *cell.bare), cell.judge)
    return why and f"judge {cell.protocol.judge!r} could not score all images: {why}"


def _scored_parts(cell: CellSpec, unscored: Unscored) -> tuple[CellSpec, tuple[str, ...]]:
    """The cell without the second judges and encoders that have not scored all of its images, and a sentence for each."""
    second = {
        name: _reason(unscored, (*cell.image_sets, *cell.bare), further["judge"])
        for name, further in cell.second.items()
    }
    encoders = {name: _reason(unscored, cell.needs, use.key) for name, use in cell.encoders.items()}
    notes = [f"second judge {name!r} has no number, for it failed: {why}" for name, why in second.items() if why]
    notes += [f"encoder {name!r} has no number, for it failed: {why}" for name, why in encoders.items() if why]
    left = dataclasses.replace(
        cell,
        second={name: further for name, further in cell.second.items() if not second[name]},
        encoders={name: use for name, use in cell.encoders.items() if not encoders[name]},
    )
    return left, tuple(notes)


def _reason(unscored: Unscored, image_sets: Sequence[str], scorer: str) -> str:
    return next((unscored[key, scorer] for key in image_sets if (key, scorer) in unscored), "")
