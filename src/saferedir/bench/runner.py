"""Runs a plan: generates what is missing, keeps each shard at once, tries failures again, then writes every cell's record.

Killed at any moment, it goes on where it was; the cells are the same, bit for bit, however often that happens and
whoever generates. A judge or encoder that fails costs its own numbers only.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from saferedir.bench.evaluation.evaluate import write_cells
from saferedir.bench.evaluation.rescore import Unscored, rescore, shards_to_score
from saferedir.bench.executors import Executor, Job, Outcome
from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import Resources, Scorer
from saferedir.bench.planning.plan import Plan
from saferedir.bench.records import CellRecord
from saferedir.bench.storage.embeddings import store_embeddings
from saferedir.bench.storage.saved_plan import saved_plan
from saferedir.bench.storage.store import Store, write_json
from saferedir.errors import BenchError
from saferedir.utils.progress import SILENT, Progress

#: a shard that fails is tried again so many times, at the end of the run
RETRIES = 2
#: errors after which nothing more can be kept: no room, quota, or no right to write
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def bytes_needed(plan: Plan, resources: Resources | None = None) -> int:
    """About how much the sets of images take on the disk, each model's images at the size that it generates and hard to compress.

    `resources` that made the plan know the sizes; others load every model whose call does not say.
    """
    resources, total = resources or Resources(), 16_000_000
    for spec in plan.image_sets.values():
        height, width = resources.image_size(spec.model) if spec.keep_images else (0, 0)
        total += len(spec) * (2048 + 8192 * len(spec.encoders) + height * width * 3)  # vectors of 2048 numbers at most
    return total


def missing_jobs(plan: Plan, store: Store) -> list[Job]:
    """Shards to generate: those not generated yet, and those that a further judge or encoder must score but that were not stored.

    Model by model, each one's in an order of chance (always the same): a machine that slows down, or is busy for a while, then
    slows all guards alike, and the bare model with them, so that the costs can be compared.
    """
    todo: dict[str, list[Job]] = {}
    for spec in plan.image_sets.values():
        for shard in spec.shards:
            if not store.has(shard) or (store.lacks(spec.scorers, shard) and not store.has_images(shard)):
                todo.setdefault(spec.model.digest, []).append(Job(spec, shard))
    for jobs in todo.values():
        random.Random(0).shuffle(jobs)
    return [job for jobs in todo.values() for job in jobs]


def unscored_shards(plan: Plan, store: Store) -> list[tuple[Shard, Scorer]]:
    """Kept shards, each with a judge or encoder that has not scored it: one that came later, or that failed."""
    shards = {key: spec.shards for key, spec in plan.image_sets.items()}
    todo = shards_to_score(shards, {key: spec.scorers for key, spec in plan.image_sets.items()}, store)
    return [(shard, scorer) for shard, scorer in todo if store.has_images(shard)]


def run(
    plan: Plan,
    store: Store,
    executor: Executor,
    progress: Progress = SILENT,
    resources: Resources | None = None,
) -> list[CellRecord]:
    """Generate, judge and write everything; the records, those of failed cells with their `error`.

    `resources` serve judges and encoders that score stored images, because they came later or failed, and at texts and
    reference images. An earlier run's plan stays until the new one is counted, so that its report can be made meanwhile. Call
    it inside `store.lock()`. An error while keeping a shard counts as the shard's failure. Where that was a full disk or a folder
    that may not be written, nothing more is generated; it is tried again if there is room by then, and the cells that lack
    shards get the error. BenchError if not even the records can be written.
    """
    labels = _labels(plan)
    resources = resources or Resources()
    with _one_sentence(store):
        if not (store.root / "plan.json").is_file():
            _write_plan(plan, store)
    todo = missing_jobs(plan, store)
    errors: dict[str, str] = {}
    unscored: Unscored = {}
    done = plan.n_images - sum(len(job.shard) for job in todo)
    with progress.task("generating", plan.n_images, done) as advance:
        with _one_sentence(store):
            store_embeddings(plan.encoders, plan.texts, store, resources, lambda step: advance(0, step))
        for _ in range(1 + RETRIES):
            failed = _pass(
                todo, store, executor, lambda job: advance(len(job.shard), labels[job.spec.key]), errors, unscored
            )
            todo = failed.jobs
            if not todo or not _has_place(store, failed.needs):
                break
    broken = {job.spec.key: errors[job.spec.key] for job in todo}
    with _one_sentence(store):
        unscored |= rescore(unscored_shards(plan, store), store, resources, progress)
        still = {
            (key, scorer.key)
            for key, spec in plan.image_sets.items()
            for shard in spec.shards
            for scorer in store.lacks(spec.scorers, shard)
        }
        write_json(store.root / "matrix.json", plan.matrix.model_dump(mode="json"))  # the plan itself: `write_cells`
        unscored = {image_set: why for image_set, why in unscored.items() if image_set in still}
        return write_cells(saved_plan(plan), store, broken=broken, unscored=unscored)


def _write_plan(plan: Plan, store: Store) -> None:
    write_json(store.root / "matrix.json", plan.matrix.model_dump(mode="json"))
    write_json(store.root / "plan.json", saved_plan(plan).to_dict())


@dataclass(frozen=True)
class _Failed:
    """What one pass left over; `needs`: bytes of the shard for which there was no place, None if there was for all."""

    jobs: list[Job]
    needs: int | None = None


def _pass(
    todo: Sequence[Job],
    store: Store,
    executor: Executor,
    on_stored: Callable[[Job], None],
    errors: dict[str, str],
    unscored: Unscored,
) -> _Failed:
    """Generate and keep every job once, or as many as can be kept; the sentences of those that fail go into `errors`, those of
    judges and encoders that fail into `unscored`.
    """
    waiting = {job.shard: job for job in todo}
    failed: list[Job] = []
    outcomes = executor.run(todo)
    with contextlib.ExitStack() as stack:
        if isinstance(outcomes, Generator):
            stack.callback(outcomes.close)  # workers must not go on for nothing
        for outcome in outcomes:
            job, error = outcome.job, outcome.error
            waiting.pop(job.shard, None)
            try:
                if outcome.generated is not None:
                    store.write_shard(job.spec, job.shard, outcome.generated)
                    unscored |= {(job.spec.key, other.key): why for other, why in outcome.generated.unscored.items()}
            except OSError as problem:
                error = f"cannot be kept: {(problem.strerror or str(problem)).lower()}"
                if problem.errno in _NO_PLACE:
                    left = [*failed, job, *waiting.values()]
                    errors.update({other.spec.key: error for other in (job, *waiting.values())})
                    return _Failed(left, _bytes_of(outcome))
            if error:
                failed.append(job)
                errors[job.spec.key] = error
            else:
                on_stored(job)
    return _Failed(failed)


def _bytes_of(outcome: Outcome) -> int:
    """About what a shard takes on the disk."""
    images = outcome.generated.images if outcome.generated is not None else []
    return 4096 * (1 + len(outcome.job.shard)) + sum(len(image) for image in images if image is not None)


def _has_place(store: Store, needs: int | None) -> bool:
    """Whether a shard of so many bytes may be kept by now."""
    if needs is None:
        return True
    try:
        store.prepare(needs)
    except BenchError:
        return False
    return True


@contextmanager
def _one_sentence(store: Store) -> Iterator[None]:
    """A full disk, or a folder that may not be written, in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise BenchError(
            f"cannot write {error.filename or store.root} ({(error.strerror or str(error)).lower()}); mend that, and run the "
            "same command again: what was generated is kept."
        ) from error


def _labels(plan: Plan) -> dict[str, str]:
    """ImageSet -> the first cell that it is for, in words."""
    out: dict[str, str] = {}
    for cell in plan.cells:
        for bare, guarded in zip(cell.bare, cell.image_sets, strict=True):
            out.setdefault(bare, f"{cell.name.concept}: bare model")
            out.setdefault(guarded, f"{cell.name.concept}: {cell.name.guard}")
        for key in cell.without:
            out.setdefault(key, f"{cell.name.concept}: bare model, prompts without the concept")
    return out


def check_complete(records: Sequence[CellRecord]) -> None:
    """Raise a BenchError that counts the cells without a number, and says why the first one has none."""
    failed = [record for record in records if record.error]
    if failed:
        raise BenchError(
            f"{len(failed)} of {len(records)} cells have no number; the first, {failed[0].name.slug}: {failed[0].error} "
            "Run the same command again to try them once more."
        )
