"""`saferedir inspect`: what an image file says of its making, and what the audit says of the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saferedir.cli.audit import DEFAULT, opened_audit
from saferedir.cli.common import console, errors, escape, print_json
from saferedir.cli.options import AsJson
from saferedir.utils.extras import require_extra

if TYPE_CHECKING:
    from saferedir.server.provenance import Match


def inspect(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, WebP or JPEG file that the service made.")],
    audit: Annotated[
        str | None, typer.Option(metavar="URL", help=f"The audit's database, such as {DEFAULT}; none: the file alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what an image's text, content credentials and watermark tell and, with --audit, whether the file is as it left.

    The text can be taken out or forged by anybody, credentials be taken out, and a watermark be lost or copied; the hash in the
    audit record cannot, as long as the chain is whole. Where no watermark can be read, the image may have had one; where one can,
    it may fit several records, or one by chance, and all that it fits are listed. The exit code is 1 where the audit was asked
    and has no such file, or is not whole.

    Example:  `saferedir inspect image.png --audit sqlite:///runs/serve/audit.sqlite`
    """
    require_extra("sqlalchemy", "server", "the audit")
    from saferedir.server.provenance import match_records, read_facts
    from saferedir.server.watermark import read_watermarks

    facts = read_facts(image)
    credentials = _credentials(image)
    marks = list(read_watermarks(image))
    result: dict[str, Any] = {
        "file": image.name,
        "text": facts,
        "credentials": credentials,
        "watermarks": {
            mark.name: {"payload": mark.payload and mark.payload.hex(), "problem": mark.problem} for mark in marks
        },
    }
    if audit is not None:
        with opened_audit(audit) as store:
            payloads = [mark.payload for mark in marks if mark.payload is not None]
            match = match_records(store, image, facts or credentials, payloads)
            is_whole = store.verify().is_whole
        result |= {
            "record": match.records[0] if len(match.records) == 1 else None,
            "records": list(match.records),
            "record_by": match.by,
            "delivered": match.delivered,
            "by_chance": {"this_payload": match.chance, "some_pair": match.pair_chance},
            "as_it_left": match.by == "hash",
            "chain_is_whole": is_whole,
        }
    if as_json:
        print_json(result)
    else:
        for name, value in (facts or {"text": "nothing of saferedir"}).items():
            console.print(f"{escape(str(name))}: {escape(str(value))}", soft_wrap=True, highlight=False)
        _print_credentials(credentials)
        for mark in marks:
            text = f"not known: {mark.problem}" if mark.problem else "none that can be read; there may have been one"
            text = mark.payload.hex() if mark.payload is not None else text
            console.print(f"watermark {escape(mark.name)}: {escape(text)}", soft_wrap=True, highlight=False)
        if audit is not None:
            _print_match(match)
            if not is_whole:
                errors.print("[bold red]error:[/] the audit's chain is not whole: `saferedir audit verify` says where.")
    if audit is not None and not (result["as_it_left"] and result["chain_is_whole"]):
        raise typer.Exit(1)


def _print_match(match: Match) -> None:
    """The records that match; of a watermark also that it is no proof."""
    if not match.records:
        errors.print("[bold red]error:[/] the audit has no record of this file among its delivered images.")
        return
    for record in match.records:
        facts = ", ".join(record[name] for name in ("image_id", "time", "action"))
        console.print(f"record: {facts}", soft_wrap=True, highlight=False)
    if match.by == "hash":
        text = "as it left the service"
        if len(match.records) > 1:
            text += f", {len(match.records)} times, with the same bytes"
    elif match.by == "name":
        text = f"it claims to be {match.records[0]['image_id']} and is not the file that left as that; this proves nothing of it."
    else:
        text = _mark_text(match)
    console.print(f"file: {text}", soft_wrap=True, highlight=False)


def _mark_text(match: Match) -> str:
    from saferedir.server.watermark import PAYLOAD

    count, fits = len(match.records), "its watermark fits the record above"
    if count > 1:
        fits = f"its watermark fits {count} records, listed above, and does not tell which of them it is"
    return (
        f"{fits}; the file was changed since, or the mark was copied, or it fits by chance: a mark has {8 * PAYLOAD} bits, "
        f"a strange one fits some of {match.delivered} delivered images with probability {match.chance:.2g}, and some two of "
        f"them share one with probability {match.pair_chance:.2g}."
    )


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
