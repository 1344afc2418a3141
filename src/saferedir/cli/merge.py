"""`saferedir guards merge`: guards of many concepts that share their trunk, as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saferedir.cli.common import console, escape
from saferedir.cli.output import MEGABYTE, check_guard_folder, check_space, holds_out


@holds_out
def merge(
    guards: Annotated[
        list[str], typer.Argument(metavar="GUARD…", help="Guards of many concepts, grown from one start.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the merged guard.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the guard at --out.")] = False,
) -> None:
    """Merge SafeRedir guards of many concepts that were grown from one start; every decision stays as it was.

    Guards with trunks of their own are refused: train their concepts together, or name the guards in one policy.

    Example:  `saferedir guards merge runs/shapes-and-foxes runs/shapes-and-owls --out runs/all`
    """
    check_guard_folder(out, force)
    check_space(out, 256 * MEGABYTE)
    from saferedir.guards.base import Guard
    from saferedir.guards.merging import merged

    guard = merged([Guard.from_pretrained(name) for name in guards])
    guard.save_pretrained(out)
    console.print(f"{len(guard.config.concepts)} concepts: {escape(', '.join(guard.config.concepts))}", highlight=False)
    console.print(f"Guard written to {escape(str(out))}", soft_wrap=True, highlight=False)
