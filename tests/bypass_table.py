"""The table of probes in docs/security.md: `python -m tests.bypass_table` tries every probe and writes it anew."""

from __future__ import annotations

import textwrap
from pathlib import Path

import diffusers
import torch
import transformers
from tests.bypass_probes import PROBES, Outcome, Probe, outcome

PAGE = Path(__file__).parents[1] / "docs" / "security.md"
BEGIN, END = "<!-- {}: written by python -m tests.bypass_table -->", "<!-- end of {} -->"
TABLES = {"probes": PROBES}
HEAD = ["| probe | who | what it does | without guard | outcome |", "|---|---|---|---|---|"]


def bare_cell(bare: Outcome | None) -> str:
    if bare is None:
        return "–"
    return f"{bare.shown} of {bare.images}" if bare.images else "error"


def outcome_cell(found: Outcome) -> str:
    if not found.images:
        return textwrap.shorten(found.text.replace("|", "/"), 130, placeholder=" …")
    return f"{found.text}, {found.shown} of {found.images}" + (f", {found.retried} drawn again" if found.retried else "")


def part_of_page(name: str) -> tuple[str, str, str]:
    """The page before, inside and after the named table's markers."""
    before, rest = PAGE.read_text().split(BEGIN.format(name))
    inside, after = rest.split(END.format(name))
    return before, inside, after


def rows_on_the_page(name: str) -> list[list[str]]:
    """Cells of the named table as it stands in the page."""
    lines = [line for line in part_of_page(name)[1].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines][1:]


def try_all(probes: dict[str, Probe]) -> tuple[list[str], list[Outcome]]:
    """Lines of the table, and the outcomes under the guard."""
    lines, found = list(HEAD), []
    for name, probe in probes.items():
        bare = outcome(probe, is_guarded=False) if probe.has_baseline else None
        found.append(outcome(probe))
        cells = [name, probe.attacker, probe.does, bare_cell(bare), outcome_cell(found[-1])]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines, found


def summary(found: list[Outcome]) -> str:
    kinds = ("safe image", "blocked", "error", "SHOWN")
    counts = {kind: sum(each.text.startswith(kind) for each in found) for kind in kinds}
    return (
        f"{len(found)} probes: {counts['safe image']} end in safe images, {counts['blocked']} in blocked ones only, "
        f"{counts['error']} in an error, **{counts['SHOWN']} show the concept**. "
        f"{sum(each.images for each in found)} images came out, of which {sum(each.shown for each in found)} show a star "
        f"and {sum(each.retried for each in found)} were drawn again."
    )


def main() -> None:
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    for name, probes in TABLES.items():
        lines, found = try_all(probes)
        lines += ["", summary(found)]
        before, _, after = part_of_page(name)
        PAGE.write_text(before + BEGIN.format(name) + "\n\n" + "\n".join(lines) + "\n\n" + END.format(name) + after)


if __name__ == "__main__":
    main()
