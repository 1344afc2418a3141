"""What guards cost: seconds an image beside the bare model's, from the sets of images of the same prompts; and an estimate
before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from saferedir.bench.evaluation.counted import Counted, SetCost
from saferedir.bench.generation.generate import GenerationSpec, Shard, generate_shard
from saferedir.bench.generation.resources import Resources
from saferedir.bench.planning.cell_spec import CellSpec
from saferedir.bench.records import BARE, Cost
from saferedir.metrics import bootstrap_ratio


def measure_costs(cells: Sequence[CellSpec], earlier: Counted) -> list[Cost]:
    """One `Cost` for each model and guard, in the order they come; those that were measured from the same before are kept.

    Guarded and bare images were generated in the same bench, though not at the same moment, so a busy machine shows in the ratio.
    """
    groups: dict[tuple[str, str], list[CellSpec]] = {}
    for cell in cells:
        groups.setdefault((cell.name.model, cell.name.guard), []).append(cell)
    costs = []
    for (model, guard), of_guard in groups.items():
        name = f"{model} {guard}"
        key, cost = earlier.cost(name, [image_set for cell in of_guard for image_set in (*cell.image_sets, *cell.bare)])
        if cost is None:
            sets = [(earlier.set_cost(cell.image_sets), earlier.set_cost(cell.bare)) for cell in of_guard]
            cost = _cost(model, guard, sets)
        earlier.keep_cost(name, key, cost)
        costs.append(cost)
    return costs


def _cost(model: str, guard: str, entries: Sequence[tuple[SetCost, SetCost]]) -> Cost:
    guarded_seconds = torch.tensor(
        [seconds for guarded, _ in entries for seconds in guarded.seconds], dtype=torch.float64
    )
    bare_seconds = torch.tensor([seconds for _, plain in entries for seconds in plain.seconds], dtype=torch.float64)
    is_timed = guard != BARE and bool(bare_seconds.sum() > 0)
    ratio = float(guarded_seconds.sum() / bare_seconds.sum()) if is_timed else None
    spread = bootstrap_ratio(guarded_seconds, bare_seconds) if is_timed and len(guarded_seconds) > 1 else None
    peaks = [guarded.peak_bytes for guarded, _ in entries if guarded.peak_bytes is not None]
    return Cost(
        model=model,
        guard=guard,
        seconds=round(float(guarded_seconds.median()), 5),
        ratio=None if ratio is None else round(ratio, 3),
        low=None if spread is None else round(spread.low, 3),
        high=None if spread is None else round(spread.high, 3),
        peak_bytes=max(peaks, default=None),
        images=sum(guarded.images for guarded, _ in entries),
        device=entries[0][0].device,
    )


def estimate_seconds(bare: GenerationSpec, resources: Resources) -> float:
    """Wall seconds an image of the bare model, from one batch generated and thrown away. Guards with rows of their own take up to
    half as long again.
    """
    probe = Shard(bare.key, 0, min(len(bare), bare.model.batch))
    started = time.perf_counter()
    generate_shard(bare, probe, resources)
    return (time.perf_counter() - started) / len(probe)
