"""What guards cost: seconds a picture beside the bare model's, from the drawings of the same prompts; and an estimate before.

Imports cells, drawing, records, store.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from saferedir.bench.cells import CellSpec
from saferedir.bench.drawing import DrawingSpec, Shard, draw_shard
from saferedir.bench.records import BARE, Cost
from saferedir.bench.resources import Resources
from saferedir.bench.store import Drawn


def measure_costs(drawn: Sequence[tuple[CellSpec, Drawn, Drawn]]) -> list[Cost]:
    """One `Cost` for each model and guard, in the order they come.

    The ratio is of the summed seconds a picture over the same prompt sets, guarded by bare; both were drawn in the same bench,
    though not at the same moment, so a busy machine shows in it.
    """
    groups: dict[tuple[str, str], list[tuple[CellSpec, Drawn, Drawn]]] = {}
    for entry in drawn:
        groups.setdefault((entry[0].name.model, entry[0].name.guard), []).append(entry)
    costs = []
    for (model, guard), entries in groups.items():
        own = [statistics.median(guarded.seconds) for _, guarded, _ in entries]
        bare = [statistics.median(plain.seconds) for _, _, plain in entries]
        peaks = [guarded.peak_bytes for _, guarded, _ in entries if guarded.peak_bytes is not None]
        costs.append(
            Cost(
                model=model,
                guard=guard,
                seconds=round(statistics.median(own), 5),
                ratio=None if guard == BARE else round(sum(own) / max(sum(bare), 1e-9), 3),
                peak_bytes=max(peaks, default=None),
                pictures=sum(len(guarded.checksums) for _, guarded, _ in entries),
                device=entries[0][1].device,
            )
        )
    return costs


def estimate_seconds(bare: DrawingSpec, resources: Resources) -> float:
    """Wall seconds a picture of the bare model, from one batch drawn and thrown away. Guards with rows of their own take up to
    half as long again.
    """
    probe = Shard(bare.key, 0, min(len(bare), bare.model.batch))
    started = time.perf_counter()
    draw_shard(bare, probe, resources)
    return (time.perf_counter() - started) / len(probe)
