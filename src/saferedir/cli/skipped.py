"""Files that a command left out, on the terminal: how many, the first names, and why."""

from __future__ import annotations

from collections.abc import Mapping

from saferedir.cli.common import errors, escape

MAX_SHOWN = 10


def show_skipped(skipped: Mapping[str, str]) -> None:
    """One line for each of the first files (name -> why), and how many there are beside these."""
    for name, reason in list(skipped.items())[:MAX_SHOWN]:
        errors.print(f"skipped {escape(name)}: {escape(reason)}.", soft_wrap=True, highlight=False)
    if len(skipped) > MAX_SHOWN:
        errors.print(f"… and {len(skipped) - MAX_SHOWN} more, {len(skipped)} in all.", highlight=False)
