"""`saferedir bench …`: plan, run, report and re-judge a matrix of models, guards, concepts and attacks. Thin: see bench/.

What is printed: bench_printing.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.bench_printing import print_cells, print_notes, print_plan
from saferedir.cli.common import Bars, console, errors, escape, new_table, quiet
from saferedir.cli.stopping import GOES_ON, on_stop

if TYPE_CHECKING:
    from saferedir.bench import Bench

#: old name of an option -> its name; taken, and not in the help
OLD_OPTIONS = {"pictures": "images"}

bench_app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Compare guards under attack: plan, run, resume, report.",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: OLD_OPTIONS.get(name, name),
    },
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
    quiet()
    opened = open_bench(matrix, out, with_, executor, workers, address, dry_run)
    _work(opened, report=report, images=images, dry_run=dry_run)


@bench_app.command(no_args_is_help=True)
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of a bench (--out of `bench run`).")],
    executor: Annotated[str, typer.Option(help="Who generates: local (this process), or ray.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Ray workers; each loads the model.")] = 1,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html and report.md at the end.")
    ] = True,
    images: ShowImages = False,
) -> None:
    """Go on with a bench by the matrix that lies in its folder; nothing is generated twice."""
    from saferedir.bench import Bench

    quiet()
    _work(Bench.resume(folder, progress=Bars(), executor=executor, workers=workers), report=report, images=images)


def open_bench(
    matrix: str,
    out: Path,
    with_: list[str] | None,
    executor: str,
    workers: int,
    address: str | None,
    dry_run: bool,
) -> Bench:
    """The bench that the options name, not entered yet."""
    from saferedir.bench import Bench

    return Bench(
        matrix,
        out,
        needs=_answers(with_ or []),
        executor=executor,
        workers=workers,
        address=address,
        progress=Bars(),
        dry_run=dry_run,
    )


def _work(bench: Bench, *, report: bool, images: bool, dry_run: bool = False) -> None:
    """Print the plan, then run and report, unless the plan is all that was asked for."""
    with bench:
        print_plan(bench.plan)
        if dry_run:
            bench.check_extras(report=report)
            return
        on_stop(GOES_ON)
        records, plan = bench.run(), bench.plan
        print_cells(records)
        print_notes(records, plan.plan)
        if report:
            _print_written(*bench.report(images=images))
    for sentence in plan.missing:
        errors.print(f"[yellow]left out:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
    bench.check_complete(records)


@bench_app.command(no_args_is_help=True)
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a bench (--out of `bench run`).")],
    images: ShowImages = False,
) -> None:
    """Write report.html and report.md from what a bench folder holds; needs neither the model nor the guards."""
    from saferedir.bench import Bench

    _print_written(*Bench.report_of(folder, images=images))


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
    from saferedir.bench import Bench

    choices: dict[str, str] = {}
    for item in judge or []:
        concept, equals, rest = item.partition("=")
        name, colon, preset = rest.partition(":")
        if not (concept and equals and name and colon and preset):
            raise typer.BadParameter(f"{item!r} is not CONCEPT=JUDGE:PRESET.", param_hint="--judge")
        choices[concept] = rest
    entries: dict[str, Any] = {**(Bench.read_judges(judges) if judges is not None else {}), **choices}
    if not entries:
        raise typer.BadParameter("give --judge or --judges.", param_hint="--judge / --judges")
    bars = Bars()
    records = Bench.rejudge(folder, entries, out, progress=bars)
    print_cells(records)
    _print_written(*Bench.report_of(out, images=images, calibrate=True, progress=bars))
    Bench.check_complete(records)


@bench_app.command()
def presets() -> None:
    """List the matrix files that come with the library, and what each needs from you."""
    from saferedir.bench import Bench

    table = new_table("bench presets", "preset", "what it measures", "bring along (--with)")
    for preset in Bench.presets():
        needs = "\n".join(f"{key}: {what}" for key, what in preset.needs.items())
        table.add_row(preset.name, escape(preset.title), escape(needs) or "nothing")
    console.print(table)


def _answers(given: list[str]) -> dict[str, str]:
    answers = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{item!r} is not NAME=VALUE.", param_hint="--with")
        answers[name] = value
    return answers


def _print_written(html: Path, markdown: Path) -> None:
    console.print(f"wrote {escape(str(html))} and {escape(str(markdown))}", soft_wrap=True, highlight=False)
