"""From a bench folder to its cells: reads what is drawn, writes every cell's record and costs.json. Needs no model.

Imports planned, store, vectors, cells, costs. The same drawings always give the same records, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from saferedir.bench.cells import evaluate_cell, failed_cell
from saferedir.bench.costs import measure_costs
from saferedir.bench.drawn import Drawn, joined
from saferedir.bench.planned import Planned
from saferedir.bench.records import CellRecord
from saferedir.bench.store import Store, write_json
from saferedir.bench.vectors import Vectors
from saferedir.errors import SaferedirError


def write_cells(
    planned: Planned, store: Store, source: Store | None = None, broken: Mapping[str, str] | None = None
) -> list[CellRecord]:
    """Count every cell and keep the records, in the plan's order.

    Args:
        store: takes the records; source: holds the drawings, the same folder by default.
        broken: drawing -> why it could not be drawn; its cells are kept with that as `error`.
    """
    source, broken = source or store, broken or {}
    read: dict[tuple[str, str], Drawn] = {}
    vectors = Vectors(source, planned.shards)

    def drawn(keys: tuple[str, ...], judge: str) -> Drawn:
        for key in keys:
            if (key, judge) not in read:
                read[key, judge] = source.read(planned.shards[key], planned.judges[key], features_of=judge)
        return joined([read[key, judge] for key in keys])

    write_json(store.root / "plan.json", planned.to_dict())
    records, timed = [], []
    for cell in planned.cells:
        facts = planned.prompts[cell.prompts]
        why = next((broken[key] for key in cell.needs if key in broken), "")
        if why:
            record = failed_cell(cell, facts, why)
        else:
            try:
                guarded, bare = (drawn(keys, cell.judge) for keys in (cell.drawings, cell.bare))
                record = evaluate_cell(cell, facts, guarded, bare, vectors.of(cell))
                timed.append((cell, guarded, bare))
            except SaferedirError as error:  # one cell that cannot be counted must not take the others with it
                record = failed_cell(cell, facts, str(error))
        store.write_cell(record)
        records.append(record)
    write_json(store.root / "costs.json", [dataclasses.asdict(cost) for cost in measure_costs(timed)])
    return records
