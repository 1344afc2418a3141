"""`saferedir inspect`: what an image file says of its making, and what the audit says of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.audit import DEFAULT, opened_audit
from saferedir.cli.common import console, errors, escape, print_json
from saferedir.cli.options import AsJson
from saferedir.utils.extras import require_extra


def inspect(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, WebP or JPEG file that the service made.")],
    audit: Annotated[
        str | None, typer.Option(metavar="URL", help=f"The audit's database, such as {DEFAULT}; none: the file alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what an image's text and content credentials tell and, with --audit, whether the file is as it left the service.

    The text can be taken out or forged by anybody, and credentials be taken out; the hash in the audit record cannot, as long as
    the chain is whole. The exit code is 1 where the audit was asked and has no such file, or is not whole.

    Example:  `saferedir inspect image.png --audit sqlite:///runs/serve/audit.sqlite`
    """
    require_extra("sqlalchemy", "server", "the audit")
    from saferedir.server.provenance import find_record, read_facts

    facts = read_facts(image)
    credentials = _credentials(image)
    result: dict[str, Any] = {"file": image.name, "text": facts, "credentials": credentials}
    if audit is not None:
        with opened_audit(audit) as store:
            record, is_same = find_record(store, image, facts or credentials)
            is_whole = store.verify().is_whole
        result |= {"record": record, "as_it_left": is_same, "chain_is_whole": is_whole}
    if as_json:
        print_json(result)
    else:
        for name, value in (facts or {"text": "nothing of saferedir"}).items():
            console.print(f"{escape(str(name))}: {escape(str(value))}", soft_wrap=True, highlight=False)
        _print_credentials(credentials)
        if audit is not None:
            _print_record(result)
    if audit is not None and not (result["as_it_left"] and result["chain_is_whole"]):
        raise typer.Exit(1)


def _print_record(result: dict[str, Any]) -> None:
    record = result["record"]
    if record is None:
        errors.print("[bold red]error:[/] the audit has no record of this file.")
    else:
        if result["as_it_left"]:
            console.print(f"record: {record['image_id']}, {record['time']}, {record['action']}", highlight=False)
            console.print("file: as it left the service", highlight=False)
        else:
            console.print(
                f"file: it claims to be {record['image_id']}, and is not the file that left as that; this proves nothing of it.",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    if not result["chain_is_whole"]:
        errors.print("[bold red]error:[/] the audit's chain is not whole: `saferedir audit verify` says where.")


def _credentials(image: Path) -> dict[str, Any] | None:
    """Content credentials as plain data; None where there are none, or the extra that reads them is not installed."""
    from dataclasses import asdict

    from saferedir.errors import MissingExtraError
    from saferedir.server.credentials import read_credentials

    try:
        credentials = read_credentials(image)
    except MissingExtraError:
        return None
    return None if credentials is None else asdict(credentials)


def _print_credentials(credentials: dict[str, Any] | None) -> None:
    if credentials is None:
        console.print("content credentials: none that can be read here", highlight=False)
        return
    test = "; a TEST certificate, which proves nothing" if credentials["is_test"] else " (who that is was not checked)"
    console.print(
        f"content credentials: {credentials['state'].lower()}, signed by {escape(credentials['signer'] or 'nobody')}{test}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    if credentials["problems"]:
        console.print(f"  {escape(', '.join(credentials['problems']))}", soft_wrap=True, highlight=False)
