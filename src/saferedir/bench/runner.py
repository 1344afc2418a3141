"""Runs a plan: draws what is missing, keeps each shard at once, tries failures again, then writes every cell's record.

Killed at any moment, it goes on where it was; the cells are the same, bit for bit, however often that happens and whoever draws.
Imports plan, executors, looking, store, counting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saferedir.bench.counting import write_cells
from saferedir.bench.executors import Executor, Task
from saferedir.bench.looking import can_look, look
from saferedir.bench.plan import Plan
from saferedir.bench.planned import planned
from saferedir.bench.records import CellRecord
from saferedir.bench.resources import Resources
from saferedir.bench.store import Store, write_json
from saferedir.errors import BenchError

#: a shard that fails is tried again so many times, at the end of the run
RETRIES = 2


@dataclass(frozen=True)
class Progress:
    """One shard is done: `pictures` of `total`; `label` says which guard and concept it was for."""

    pictures: int
    total: int
    label: str


def bytes_needed(plan: Plan) -> int:
    """About how much the drawings take on the disk, pictures included."""
    call = next(iter(plan.matrix.model.values())).call
    side = max(int(call.get("height", 0) or 0), int(call.get("width", 0) or 0), 64)
    a_picture = 2048 + (side * side * 3 if plan.matrix.keep_images else 0)
    return a_picture * plan.pictures + 16_000_000


def missing_tasks(plan: Plan, store: Store) -> list[Task]:
    """Shards to draw, bare models first: those not drawn yet, and those that a further judge must see but that were not kept."""
    return [
        Task(spec, shard)
        for spec in plan.drawings.values()
        for shard in spec.shards
        if not store.has(shard) or (store.lacks(spec.judges, shard) and not can_look(store, shard))
    ]


def run(
    plan: Plan,
    store: Store,
    executor: Executor,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    resources: Resources | None = None,
) -> list[CellRecord]:
    """Draw, judge and write everything; the records, those of failed cells with their `error`.

    `resources` serve judges that look at pictures kept by an earlier run. Call it inside `store.lock()`. An error while
    keeping a shard (a full disk) counts as the shard's failure.
    """
    labels = _labels(plan)
    write_json(store.root / "matrix.json", plan.matrix.model_dump(mode="json"))
    write_json(store.root / "plan.json", planned(plan).to_dict())
    judges = {key: spec.judges for key, spec in plan.drawings.items()}
    unseen = {
        key: [one for one in spec.shards if store.has(one) and store.lacks(judges[key], one) and can_look(store, one)]
        for key, spec in plan.drawings.items()
    }
    look(unseen, judges, store, resources or Resources())
    todo = missing_tasks(plan, store)
    total = plan.pictures
    done = total - sum(len(task.shard) for task in todo)
    errors: dict[str, str] = {}
    for _ in range(1 + RETRIES):
        failed = []
        for outcome in executor.run(todo):
            error = outcome.error
            if outcome.pictures is not None:
                try:
                    store.write_shard(outcome.task.spec, outcome.task.shard, outcome.pictures)
                except OSError as problem:
                    error = f"cannot be kept: {(problem.strerror or str(problem)).lower()}"
            if error:
                failed.append(outcome.task)
                errors[outcome.task.spec.key] = error
                continue
            done += len(outcome.task.shard)
            on_progress(Progress(done, total, labels[outcome.task.spec.key]))
        todo = failed
        if not todo:
            break
    broken = {task.spec.key: errors[task.spec.key] for task in todo}
    return write_cells(planned(plan), store, broken=broken)


def _labels(plan: Plan) -> dict[str, str]:
    """Drawing -> the first cell that it is for, in words."""
    out: dict[str, str] = {}
    for cell in plan.cells:
        for bare, own in zip(cell.bare, cell.drawings, strict=True):
            out.setdefault(bare, f"{cell.name.concept}: bare model")
            out.setdefault(own, f"{cell.name.concept}: {cell.name.guard}")
    return out


def check_complete(records: Sequence[CellRecord]) -> None:
    """Raise a BenchError that counts the cells without a number, and says why the first one has none."""
    failed = [record for record in records if record.error]
    if failed:
        raise BenchError(
            f"{len(failed)} of {len(records)} cells have no number; the first, {failed[0].name.slug}: {failed[0].error} "
            "Run the same command again to try them once more."
        )
