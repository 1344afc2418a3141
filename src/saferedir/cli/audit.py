"""`saferedir audit`: the records that `saferedir serve` keeps, checked, exported and pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saferedir.cli.common import console, errors, print_json
from saferedir.cli.options import AsJson
from saferedir.utils.extras import require_extra

if TYPE_CHECKING:
    from saferedir.server.audit.store import AuditStore

audit_app = typer.Typer(
    name="audit", no_args_is_help=True, help="The records of `saferedir serve`: check, export, prune."
)
Audit = Annotated[
    str,
    typer.Option(metavar="URL", help="The audit's database: sqlite:///FILE or postgresql://…"),
]
DEFAULT = "sqlite:///runs/serve/audit.sqlite"


@contextmanager
def opened_audit(url: str, is_read_only: bool = True) -> Iterator[AuditStore]:
    """The store at a URL that must be there; read-only, nothing in it is changed, not even to a later form."""
    require_extra("sqlalchemy", "server", "the audit")
    from saferedir.server.audit.store import AuditStore
    from saferedir.server.audit.tables import check_exists

    check_exists(url)
    store = AuditStore(url, is_read_only)
    try:
        yield store
    finally:
        store.close()


@audit_app.command("verify")
def verify(
    audit: Audit = DEFAULT,
    expect: Annotated[
        str | None, typer.Option(metavar="HASH", help="A head that was noted earlier; it must still be in the chain.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no record was changed, inserted or removed; exit code 1 if one was.

    Whoever can write the database can also write a whole new chain: note the printed head elsewhere from time to time, and give
    it later as --expect.

    Example:  `saferedir audit verify --audit sqlite:///runs/serve/audit.sqlite`
    """
    with opened_audit(audit) as store:
        result = store.verify(expect)
    if as_json:
        print_json(
            {
                "whole": result.is_whole, "records": result.records, "first": result.first, "last": result.last,
                "head": result.head, "problems": list(result.problems),
            }
        )  # fmt: skip
    elif result.is_whole:
        console.print(f"{result.records} records, whole; head {result.head}", soft_wrap=True, highlight=False)
    for problem in () if as_json else result.problems:
        errors.print(f"[bold red]error:[/] {problem}", soft_wrap=True, highlight=False)
    if not result.is_whole:
        raise typer.Exit(1)


@audit_app.command("export")
def export(
    out: Annotated[Path, typer.Option(help="A file that ends in .jsonl or .parquet (extra bench).")],
    audit: Audit = DEFAULT,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out.")] = False,
) -> None:
    """Write all records to a file, as JSON lines or Parquet.

    Example:  `saferedir audit export --out records.jsonl`
    """
    from saferedir.utils.files import check_file, make_parents

    if out.suffix not in (".jsonl", ".parquet"):
        raise typer.BadParameter(f"{out.name} ends neither in .jsonl nor in .parquet.", param_hint="--out")
    check_file(out, force)
    make_parents(out)
    with opened_audit(audit) as store:
        from saferedir.server.audit.export import export_json_lines, export_parquet

        count = (export_parquet if out.suffix == ".parquet" else export_json_lines)(store, out)
    console.print(f"{count} records written to {out}", soft_wrap=True, highlight=False)


@audit_app.command("prune")
def prune(
    days: Annotated[float, typer.Option(min=0, help="Records older than so many days are deleted.")],
    audit: Audit = DEFAULT,
    trust_clock: Annotated[
        bool, typer.Option("--trust-clock", help="Count gaps of more than half of --days between records, too.")
    ] = False,
) -> None:
    """Delete old records, and reports that are as old; leave a checkpoint by which the rest can still be verified.

    A clock that jumped makes no record old: a gap of more than half of --days from one record to the next does not count.

    Example:  `saferedir audit prune --days 180`
    """
    with opened_audit(audit, is_read_only=False) as store:
        from saferedir.server.reports.store import ReportStore  # the extra is there

        removed, doubtful = store.prune(timedelta(days=days), trust_clock)
        reports = ReportStore(store).prune()
    console.print(f"{removed} records deleted, and {reports} decided reports.", highlight=False)
    if doubtful:
        errors.print(
            f"[bold yellow]warning:[/] {doubtful} more are that old by the clock alone, which moved ahead by more than "
            f"{days / 2:g} days at once; if nothing was recorded in that time, --trust-clock deletes them.",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
