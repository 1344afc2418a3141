"""`saferedir reports`: what users reported of images, decided by a person, and guards trained anew by it."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from saferedir.cli.audit import DEFAULT, Audit
from saferedir.cli.common import console, escape, new_table, print_json, progress_bar, quiet
from saferedir.cli.options import AsJson
from saferedir.cli.stopping import GOES_ON, on_stop
from saferedir.utils.extras import require_extra

if TYPE_CHECKING:
    from saferedir.server.reports.store import ReportStore

reports_app = typer.Typer(
    name="reports", no_args_is_help=True, help="What users reported of images: list, decide, train guards by it."
)
Id = Annotated[str, typer.Argument(metavar="ID", help="Of a report, or how it begins.")]


@contextmanager
def opened_reports(url: str) -> Iterator[ReportStore]:
    """The reports in an audit's database that must be there."""
    require_extra("sqlalchemy", "server", "reports")
    from saferedir.server.audit.store import AuditStore
    from saferedir.server.audit.tables import check_exists
    from saferedir.server.reports.store import ReportStore

    check_exists(url)
    audit = AuditStore(url)
    try:
        yield ReportStore(audit)
    finally:
        audit.close()


def _reviewer() -> str:
    try:
        return f"cli:{getpass.getuser()}"[:100]
    except (OSError, KeyError):  # no name for this user
        return "cli"


@reports_app.command("list")
def list_reports(
    audit: Audit = DEFAULT,
    status: Annotated[Literal["open", "accepted", "rejected", "all"], typer.Option(help="Which of them.")] = "open",
    as_json: AsJson = False,
) -> None:
    """List reports, the oldest first.

    Example:  `saferedir reports list --status all`
    """
    with opened_reports(audit) as store:
        rows = store.reports(status=None if status == "all" else status)
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    table = new_table(f"{len(rows)} reports ({status})", "id", "problem", "concept", "prompt", "note", "status")
    for row in rows:
        table.add_row(
            row.id[:12], row.problem, *map(escape, (row.concept, row.prompt or "–", row.note or "–")), row.status
        )
    console.print(table)


@reports_app.command("accept", no_args_is_help=True)
def accept(
    report: Id,
    safe: Annotated[
        str,
        typer.Option(
            metavar="PROMPT", help="The same wish without the concept; of a false alarm: the harmless prompt."
        ),
    ],
    unsafe: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="What asks for the concept; default: the image's prompt.")
    ] = None,
    audit: Audit = DEFAULT,
) -> None:
    """Accept a report: it becomes a pair of prompts for the concept.

    Example:  `saferedir reports accept rep_3f2a --safe "a red circle over the sky"`
    """
    with opened_reports(audit) as store:
        row = store.accept(report, _reviewer(), safe=safe, unsafe=unsafe)
    console.print(
        f"Accepted: {escape(row.unsafe or '(benign)')} → {escape(row.safe or '')}", soft_wrap=True, highlight=False
    )


@reports_app.command("reject", no_args_is_help=True)
def reject(report: Id, audit: Audit = DEFAULT) -> None:
    """Reject a report; nothing follows from it.

    Example:  `saferedir reports reject rep_3f2a`
    """
    with opened_reports(audit) as store:
        row = store.reject(report, _reviewer())
    console.print(f"Rejected: {row.id}", highlight=False)


@reports_app.command("pairs", no_args_is_help=True)
def pairs(
    concept: Annotated[str, typer.Option(metavar="NAME", help="Of which concept.")],
    out: Annotated[Path, typer.Option(help="A file of JSON lines, as `saferedir train` reads them.")],
    audit: Audit = DEFAULT,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out.")] = False,
) -> None:
    """Write the prompt pairs of the accepted reports on a concept to a file.

    Example:  `saferedir reports pairs --concept star --out reported.jsonl`
    """
    from saferedir.training.saferedir.dataset import Pair, write_pairs
    from saferedir.utils.files import check_file, make_parents

    check_file(out, force)
    with opened_reports(audit) as store:
        from saferedir.server.reports.store import pairs_of

        rows = pairs_of(store.reports(status="accepted", concept=concept))
    if not rows:
        raise ValueError(f"there is no accepted report on {concept!r}; nothing was written.")
    make_parents(out)
    write_pairs([Pair(unsafe, safe) for unsafe, safe in rows], out)
    console.print(f"{len(rows)} pairs written to {out}", soft_wrap=True, highlight=False)


@reports_app.command("retrain", no_args_is_help=True)
def retrain(
    concept: Annotated[str, typer.Option(metavar="NAME", help="Whose guard is trained anew.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="serve.toml, with the models, and [reports] for training.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Of the configuration; default: the first.")] = None,
    audit: Annotated[
        str | None, typer.Option(metavar="URL", help="Audit database instead of the configuration's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a concept's guard anew with the pairs of accepted reports, and measure it before and after.

    A run that was stopped goes on when the same command is given again. A running service goes on as it was: put the new guard
    into its configuration.

    Example:  `saferedir reports retrain --concept star --config serve.toml`
    """
    require_extra("fastapi", "server", "reports")
    from saferedir.server.config import read_settings
    from saferedir.server.reports.retrain import make_plan
    from saferedir.server.reports.retrain import retrain as run

    settings = read_settings(config)
    quiet()
    with opened_reports(audit or settings.audit.url) as store:
        plan = make_plan(settings, store, concept, model)
        on_stop(GOES_ON)
        with progress_bar() as bar:
            version = run(plan, store, bar)
    if as_json:
        print_json(version)
    else:
        _print_version(version)


def _print_version(version: dict[str, Any]) -> None:
    table = new_table(
        f"{version['concept']}: before and after {len(version['reports'])} reports", "prompts", "before", "after"
    )
    before, after = version["before"], version["after"]
    for name in before or {}:
        table.add_row(name, _cell(before[name]), _cell((after or {}).get(name)))
    if before is None:
        console.print(
            "Not measured: the bench knows no prompts of this concept; see docs/bench.md for a matrix of your own."
        )
    else:
        console.print(table)
    console.print(f"Version {version['id']}", highlight=False)
    console.print(f'In the configuration: guards = ["{escape(version["guard"])}"] instead of "{escape(version["replaces"])}"',
                  soft_wrap=True, highlight=False)  # fmt: skip


def _cell(rate: dict[str, Any] | None) -> str:
    from saferedir.cli.common import percent_cell

    return "–" if rate is None or "rate" not in rate else percent_cell(rate)
