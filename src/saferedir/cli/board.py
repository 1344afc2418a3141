"""`saferedir board`: guards ranked by their worst rung, once the program has checked the rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from saferedir.cli.common import console


def board(
    results: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of cells, the bare model's among them.")
    ] = Path("results"),
    submission: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="A folder with submission.json, a guard and cells/; repeat for more."),
    ] = None,
    preservation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help='What benign prompts keep, JSON: {"cells": {"star/NAME": {"retain_kept": a rate}}}.'
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page, Markdown.")] = Path("board.md"),
) -> None:
    """Rank guards by the worst attack of any rung, with what they preserve beside it.

    A row that breaks a rule (two judges, 50 prompts a cell, every rung, the presets' budgets, adaptive at least as good as
    transferred, few broken images) is listed with the rule, and not ranked. A submission's cells must be of the guard that it
    brings, by its checksum.

    Example:  `saferedir board results --preservation docs/methods.json --out docs/board.md`
    """
    from saferedir.bench.ladder.board import board_rows, read_submission, render_board
    from saferedir.bench.ladder.cells import read_cells
    from saferedir.errors import BenchError
    from saferedir.utils.files import write_text

    cells = [*read_cells(results), *(entry for folder in submission or [] for entry in read_submission(folder))]
    kept = {}
    if preservation is not None:
        try:
            rates = json.loads(preservation.read_text(encoding="utf-8"))["cells"]
            kept = {name: values["retain_kept"] for name, values in rates.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(
                f"{preservation.name} cannot be read ({error}); expected JSON as in docs/methods.json."
            ) from error
    rows = board_rows(cells, kept)
    write_text(out, render_board(rows))
    ranked = sum(not row.faults for row in rows)
    console.print(
        f"{ranked} ranked and {len(rows) - ranked} unranked rows, written to {out}", soft_wrap=True, highlight=False
    )
