"""`saferedir bench …`: plan, run, report and re-judge a matrix of models, guards, concepts and attacks. Thin: see bench/.

What is printed: bench_printing.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.bench_printing import print_cells, print_notes, print_plan
from saferedir.cli.common import console, errors, escape, new_table, quiet
from saferedir.cli.stopping import GOES_ON, on_stop

if TYPE_CHECKING:
    from saferedir.bench.planning.plan import Plan

bench_app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Compare guards under attack: plan, run, resume, report.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

MatrixName = Annotated[
    str, typer.Argument(help="A preset (see `saferedir bench presets`), or a TOML file.", metavar="FILE|PRESET")
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", help="What a preset needs from you, NAME=VALUE; may be given several times.", metavar="NAME=VALUE"
    ),
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder for images, scores, cells and report; a started one is gone on with.")
]
ShowImages = Annotated[
    bool,
    typer.Option(
        "--images",
        "--pictures",
        help="Show images of prompts from files, too, the bare model's among them. Look before you share.",
    ),
]


@bench_app.command(no_args_is_help=True)
def run(
    matrix: MatrixName,
    out: Out,
    with_: With = None,
    executor: Annotated[str, typer.Option(help="Who generates: local (this process), or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Ray workers; each loads the model.")] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join ('auto'); default: a new one here.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, generate nothing.")] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html and report.md at the end.")
    ] = True,
    images: ShowImages = False,
) -> None:
    """Run a matrix and write a report.

    The plan and what it will take come first. A killed run goes on where it was: give the same command again. Nothing
    generated is ever generated twice, also not by another matrix with the same --out.

    Example:  `saferedir bench run pictoworld-quick --out runs/bench`
    """
    from saferedir.bench.executors import make_executor
    from saferedir.bench.generation.resources import Resources
    from saferedir.bench.report.from_folder import report_folder
    from saferedir.bench.runner import bytes_needed, check_complete, missing_jobs, unscored_shards
    from saferedir.bench.runner import run as run_plan
    from saferedir.bench.storage.store import Store

    resources, store = Resources(), Store(out)
    chosen = make_executor(executor, workers=workers, address=address, resources=resources)
    with nullcontext() if dry_run else store.lock():
        if not dry_run:  # before anything that takes time
            store.prepare(0)
        plan = _plan(matrix, with_, resources)
        tasks = missing_jobs(plan, store)
        left = sum(len(task.shard) for task in tasks)
        if not dry_run:  # before the batch that the estimate generates
            store.prepare(bytes_needed(plan, resources) * left // max(plan.n_images, 1))
        again = sum(len(task.shard) for task in tasks if store.has(task.shard))
        print_plan(plan, left, again, unscored_shards(plan, store), resources)
        if dry_run:
            _check_extras(report)
            return
        on_stop(GOES_ON)
        with chosen, _bar(plan.n_images, plan.n_images - left) as advance:
            records = run_plan(plan, store, chosen, advance, resources)
        print_cells(records)
        print_notes(records, plan)
        if report:
            _calibrate_worlds(out, resources)
            _say_written(*report_folder(out, images=images))
    for sentence in plan.missing:
        errors.print(f"[yellow]left out:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
    check_complete(records)


@bench_app.command(no_args_is_help=True)
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a bench (--out of `bench run`).")],
    images: ShowImages = False,
) -> None:
    """Write report.html and report.md from what a bench folder holds; needs neither the model nor the guards."""
    from saferedir.bench.report.from_folder import report_folder

    _say_written(*report_folder(folder, images=images))


@bench_app.command(no_args_is_help=True)
def rejudge(
    folder: Annotated[Path, typer.Argument(help="Folder of a bench (--out of `bench run`).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the new cells and report.")],
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Concept, judge and preset; may be given several times.", metavar="CONCEPT=JUDGE:PRESET"),
    ] = None,
    judges: Annotated[
        Path | None,
        typer.Option(
            help="TOML with a section for each concept: name, preset or rule, options. For thresholds of your own."
        ),
    ] = None,
    images: ShowImages = False,
) -> None:
    """Count again by another judge, preset or threshold, without generating.

    Stored scores are used as they are; a judge that was not there scores the stored images. Concepts that are not named stay
    as they were. The models and guards are not needed.

    Example:  `saferedir bench rejudge runs/bench --judge star=pictoworld-template:star --out runs/second`
    """
    from saferedir.bench.evaluation.rejudge import rejudge as rejudge_folder
    from saferedir.bench.generation.resources import Resources
    from saferedir.bench.planning.config import JudgeEntry, read_judges
    from saferedir.bench.report.from_folder import report_folder
    from saferedir.bench.runner import check_complete
    from saferedir.bench.storage.store import Store
    from saferedir.cli.common import progress_bar

    choices = {} if judges is None else read_judges(judges)
    for item in judge or []:
        concept, equals, rest = item.partition("=")
        name, colon, preset = rest.partition(":")
        if not (concept and equals and name and colon and preset):
            raise typer.BadParameter(f"{item!r} is not CONCEPT=JUDGE:PRESET.", param_hint="--judge")
        choices[concept] = JudgeEntry(name=name, preset=preset)
    if not choices:
        raise typer.BadParameter("give --judge or --judges.", param_hint="--judge / --judges")
    target = Store(out)
    resources = Resources()
    with target.lock(), progress_bar() as progress:
        target.prepare(16_000_000)
        task = progress.add_task("scoring", total=None)
        records = rejudge_folder(
            folder, choices, out, resources, lambda done, total: progress.update(task, completed=done, total=total)
        )
    print_cells(records)
    _calibrate_worlds(out, resources)
    _say_written(*report_folder(out, images=images))
    check_complete(records)


@bench_app.command()
def presets() -> None:
    """List the matrix files that come with the library, and what each needs from you."""
    import tomllib

    from saferedir.bench.planning.config import PRESETS, preset_names

    table = new_table("bench presets", "preset", "what it measures", "bring along (--with)")
    for name in preset_names():
        values = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
        needs = "\n".join(f"{key}: {what}" for key, what in values.get("needs", {}).items())
        table.add_row(name, escape(values["title"]), escape(needs) or "nothing")
    console.print(table)


def _plan(matrix: str, with_: list[str] | None, resources: Any) -> Plan:
    from saferedir.bench.planning.config import read_matrix
    from saferedir.bench.planning.plan import make_plan

    quiet()
    read = read_matrix(matrix, _answers(with_ or []))
    with console.status("planning") as status:
        return make_plan(read, resources, lambda text: status.update(f"planning: {escape(text)}"))


def _check_extras(report: bool) -> None:
    """What the run itself will need, said before."""
    from saferedir.utils.extras import require_extra

    require_extra("pyarrow.parquet", "bench", "the bench")
    if report:
        require_extra("jinja2", "bench", "the bench's report")


def _calibrate_worlds(folder: Path, resources: Any) -> None:
    from saferedir.bench.evaluation.calibrate import calibrate_worlds
    from saferedir.bench.storage.saved_plan import read_saved_plan

    with console.status("calibrating") as status:
        calibrate_worlds(read_saved_plan(folder), folder, resources, lambda text: status.update(escape(text)))


def _answers(given: list[str]) -> dict[str, str]:
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE.", param_hint="--with")
        found[name] = value
    return found


def _bar(total: int, done: int) -> Any:
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager

    from saferedir.bench.runner import Progress
    from saferedir.cli.common import progress_bar

    @contextmanager
    def bar() -> Iterator[Callable[[Progress], None]]:
        with progress_bar() as progress:
            task = progress.add_task("generating", total=total, completed=done)
            yield lambda at: progress.update(task, completed=at.images, description=escape(at.label))

    return bar()


def _say_written(html: Path, markdown: Path) -> None:
    console.print(f"wrote {escape(str(html))} and {escape(str(markdown))}", soft_wrap=True, highlight=False)
