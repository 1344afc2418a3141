"""The front door: one bench folder, opened, planned, run and reported. The command line calls nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from saferedir.bench.evaluation.calibrate import calibrate_worlds
from saferedir.bench.evaluation.costs import estimate_seconds
from saferedir.bench.evaluation.rejudge import rejudge as rejudge_folder
from saferedir.bench.executors import Executor, make_executor
from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import Resources, Scorer
from saferedir.bench.planning.config import Preset, presets, read_judges, read_matrix
from saferedir.bench.planning.matrix import JudgeEntry, Matrix
from saferedir.bench.planning.plan import Plan, make_plan
from saferedir.bench.planning.validation import validated
from saferedir.bench.records import CellRecord
from saferedir.bench.report.from_folder import report_folder
from saferedir.bench.runner import bytes_needed, check_complete, missing_jobs, run, unscored_shards
from saferedir.bench.storage.saved_plan import read_saved_plan
from saferedir.bench.storage.store import Store, read_json
from saferedir.errors import BenchError
from saferedir.utils.extras import require_extra
from saferedir.utils.progress import SILENT, Progress
from saferedir.utils.renamed import old_argument

#: guards with rows of their own take up to so many times as long as the bare model
_SLOWEST = 1.6
#: room on the disk for records and a report
_ROOM = 16_000_000


class BenchPlan:
    """What a bench will do, and what of it is done already.

    Attributes:
        plan: all the work of the matrix.
        images_left: images still to generate.
        images_again: those of them that were generated before but not stored, and are needed by a judge or encoder.
        unscored: stored shards, each with a judge or encoder that has not scored it.
    """

    def __init__(self, plan: Plan, store: Store, resources: Resources) -> None:
        jobs = missing_jobs(plan, store)
        self.plan = plan
        self.images_left = sum(len(job.shard) for job in jobs)
        self.images_again = sum(len(job.shard) for job in jobs if store.has(job.shard))
        self.unscored: list[tuple[Shard, Scorer]] = unscored_shards(plan, store)
        self._resources = resources

    @property
    def missing(self) -> tuple[str, ...]:
        """A sentence for each guard that cannot be had for a concept."""
        return self.plan.missing

    @property
    def warnings(self) -> list[str]:
        """What a reader must know of the prompts, sorted."""
        return sorted({warning for facts in self.plan.prompts.values() for warning in facts.warnings})

    @cached_property
    def seconds(self) -> tuple[float, float]:
        """At least and at most how long the rest takes with one worker like this process: one batch is generated to find out."""
        if not self.images_left:
            return 0.0, 0.0
        bare = next(spec for spec in self.plan.image_sets.values() if not spec.guards)
        least = estimate_seconds(bare, self._resources) * self.images_left
        return least, _SLOWEST * least

    def summary(self) -> str:
        """The plan in a few lines of text."""
        matrix, (least, most) = self.plan.matrix, self.seconds
        lines = [
            matrix.title,
            f"models: {', '.join(matrix.model)}",
            f"concepts: {', '.join(matrix.concept)}",
            f"guards: {', '.join(['none', *matrix.guard])}",
            f"attacks: {', '.join(matrix.attacks)}",
            f"cells: {len(self.plan.cells)}",
            f"images: {self.plan.n_images}, {self.images_left} still to generate",
        ]
        lines += [f"time for the rest: {least:.0f} to {most:.0f} s with one worker like this one"] if most else []
        lines += [f"left out: {sentence}" for sentence in self.missing]
        lines += [f"note: {sentence}" for sentence in self.warnings]
        return "\n".join(lines)

    def __repr__(self) -> str:
        done = self.plan.n_images - self.images_left
        return f"BenchPlan({len(self.plan.cells)} cells, {done} of {self.plan.n_images} images generated)"


class Bench:
    """A bench folder, held while the context lasts.

    Entering it reads and checks the matrix, locks the folder and makes the plan; a second process is refused. A folder that was
    begun is gone on with: nothing that was generated is generated again.

    Args:
        matrix: a TOML file, the name of a preset, or a matrix that was read.
        out: the folder for images, scores, cells and report.
        needs: what the matrix asks for (`--with NAME=VALUE`).
        executor: who generates: "local" (this process) or "ray".
        workers: Ray workers; each loads the model.
        address: a Ray cluster to join, None for a new one on this machine.
        progress: shows how far it is.
        dry_run: plan only: nothing is locked, made or generated.

    Raises:
        BenchError: one sentence about the first thing that is wrong.

    Example:
        >>> import saferedir as sr  # skipped: minutes of computing
        >>> with sr.Bench("pictoworld-quick", out="runs/bench") as bench:  # doctest: +SKIP
        ...     records, pages = bench.run(), bench.report()
    """

    def __init__(
        self,
        matrix: str | Path | Matrix,
        out: str | Path,
        *,
        needs: Mapping[str, str] | None = None,
        executor: str = "local",
        workers: int = 1,
        address: str | None = None,
        progress: Progress = SILENT,
        dry_run: bool = False,
    ) -> None:
        self.out = Path(out)
        self._matrix, self._needs, self._progress, self._dry_run = matrix, needs, progress, dry_run
        self._store, self._resources = Store(self.out), Resources()
        self._executor: Executor = make_executor(executor, workers=workers, address=address, resources=self._resources)
        self._plan: BenchPlan | None = None
        self._stack = ExitStack()

    @classmethod
    def resume(cls, out: str | Path, *, progress: Progress = SILENT, executor: str = "local", workers: int = 1) -> Self:
        """The bench of a folder that was begun, by the matrix that lies in it."""
        path = Path(out) / "matrix.json"
        if not path.is_file():
            raise BenchError(
                f"{out} is no bench folder (it has no matrix.json); give the folder of a bench that was begun."
            )
        matrix = validated(
            Matrix, read_json(path), f"{path} is no matrix of this version; run the bench from its TOML file"
        )
        return cls(matrix, out, progress=progress, executor=executor, workers=workers)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if not self._dry_run:
                stack.enter_context(self._store.lock())
                self._store.prepare(0)  # before anything that takes time
            self._plan = self._planned()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plan = None
        self._stack.__exit__(kind, error, trace)

    def _planned(self) -> BenchPlan:
        with self._progress.task("planning") as advance:
            matrix = self._matrix if isinstance(self._matrix, Matrix) else read_matrix(str(self._matrix), self._needs)
            plan = make_plan(matrix, self._resources, lambda step: advance(0, f"planning: {step}"))
        work = BenchPlan(plan, self._store, self._resources)
        if not self._dry_run:  # before the batch that an estimate generates
            share = work.images_left / max(plan.n_images, 1)
            self._store.prepare(int(bytes_needed(plan, self._resources) * share))
        return work

    @property
    def plan(self) -> BenchPlan:
        """What will be done; BenchError outside the context."""
        if self._plan is None:
            raise BenchError(
                'the bench is not open; use it as `with Bench("pictoworld-quick", out="runs/bench") as bench:`.'
            )
        return self._plan

    def run(self) -> list[CellRecord]:
        """Generate, score and count what is missing; every cell's record, those without a number with their `error`."""
        plan = self.plan.plan
        if self._dry_run:
            raise BenchError("this bench is a dry run, which generates nothing; open it without dry_run.")
        with self._executor as executor:
            return run(plan, self._store, executor, self._progress, self._resources)

    def report(self, *, images: bool = False) -> tuple[Path, Path]:
        """Calibrate the judges of built-in worlds, then write report.html and report.md; their paths.

        Args:
            images: show images of prompts from the user's own files, too, the bare model's among them.
        """
        return write_report(self.out, images=images, resources=self._resources, progress=self._progress)

    @staticmethod
    def check_complete(records: list[CellRecord]) -> None:
        """BenchError where a cell has no number; the first reason is named."""
        check_complete(records)

    @staticmethod
    def check_extras(*, report: bool = True) -> None:
        """MissingExtraError now for what `run` needs and, with `report`, what the report needs."""
        require_extra("pyarrow.parquet", "bench", "the bench")
        if report:
            require_extra("jinja2", "bench", "the bench's report")

    @staticmethod
    def presets() -> list[Preset]:
        """The matrix files that come with the library, and what each needs from the caller."""
        return presets()

    @staticmethod
    def read_judges(file: str | Path) -> dict[str, JudgeEntry]:
        """Concept -> judge of a TOML file with a section for each concept, for thresholds of one's own.

        Args:
            file: each section has `name` and either `preset` or `rule`.

        Returns:
            What `Bench.rejudge` takes.
        """
        return read_judges(file)

    @staticmethod
    def report_of(
        folder: str | Path, *, images: bool = False, calibrate: bool = False, progress: Progress = SILENT
    ) -> tuple[Path, Path]:
        """Write report.html and report.md of a bench folder; their paths.

        Args:
            folder: of the bench.
            images: show images of prompts from the user's own files, too, the bare model's among them.
            calibrate: first calibrate the judges of built-in worlds that have no calibration yet, which loads them.
            progress: shows how far it is.
        """
        return write_report(folder, images=images, calibrate=calibrate, progress=progress)

    @staticmethod
    def rejudge(
        folder: str | Path,
        judges: Mapping[str, str | JudgeEntry],
        out: str | Path,
        *,
        progress: Progress = SILENT,
    ) -> list[CellRecord]:
        """Count a bench again by other judges, without generating; the new records, which are in `out`, too.

        Args:
            folder: of the bench.
            judges: concept -> "JUDGE:PRESET", or an entry of `Bench.read_judges`.
            out: the folder for the new cells; `Bench.report_of(out)` makes their report.
            progress: shows how many shards a new judge has scored.
        """
        return rejudge(folder, judges, out, progress=progress)


def write_report(
    folder: str | Path,
    *,
    images: bool = False,
    calibrate: bool = True,
    resources: Resources | None = None,
    progress: Progress = SILENT,
) -> tuple[Path, Path]:
    """Write report.html and report.md from what a bench folder holds; their paths.

    Args:
        folder: of the bench.
        images: show images of prompts from the user's own files, too, the bare model's among them.
        calibrate: first calibrate the judges of built-in worlds that have no calibration yet, which loads them.
        resources: what is loaded already.
        progress: shows how far it is.
    """
    folder = Path(folder)
    if calibrate:
        with progress.task("calibrating judges") as advance:
            calibrate_worlds(read_saved_plan(folder), folder, resources or Resources(), lambda step: advance(0, step))
    return report_folder(folder, images=images)


def judge_entry(choice: str | JudgeEntry) -> JudgeEntry:
    """A judge by "JUDGE:PRESET"; BenchError for another form."""
    if isinstance(choice, JudgeEntry):
        return choice
    name, _, preset = choice.partition(":")
    if not (name and preset):
        raise BenchError(f"{choice!r} is no judge and preset; give JUDGE:PRESET, such as pictoworld-template:star.")
    return JudgeEntry(name=name, preset=preset)


@old_argument("choices", "judges")
def rejudge(
    folder: str | Path, judges: Mapping[str, str | JudgeEntry], out: str | Path, *, progress: Progress = SILENT
) -> list[CellRecord]:
    """Count a bench again by other judges, presets or rules, without generating; the new records, which are in `out`, too.

    Args:
        folder: of the bench.
        judges: concept -> "JUDGE:PRESET", or an entry of `read_judges`; other concepts stay as they were.
        out: the folder for the new cells; `write_report(out)` makes their report.
        progress: shows how many shards a new judge has scored.
    """
    entries = {concept: judge_entry(choice) for concept, choice in judges.items()}
    target = Store(Path(out))
    with target.lock():
        target.prepare(_ROOM)
        return rejudge_folder(Path(folder), entries, Path(out), Resources(), progress)
