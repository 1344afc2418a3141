"""The tables of probes in docs/security.md: `python -m tests.security.bypass_table [--only NAME]` writes them anew."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tests.security import family_probes
from tests.security.bypass_probes import PROBES, Outcome, Probe, outcome
from tests.security.family_probes import FAMILY_PROBES, LIMITS, FamilyOutcome, FamilyProbe

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- {}: written by python -m tests.security.bypass_table -->", "<!-- end of {} -->"
TABLES: dict[str, dict[str, Any]] = {"probes": PROBES, "families": FAMILY_PROBES, "limits": LIMITS}
FAMILY_HEAD = ["| probe | who | what it does | heard without guard | outcome |", "|---|---|---|---|---|"]
HEAD = ["| probe | who | what it does | without guard | outcome |", "|---|---|---|---|---|"]


def bare_cell(bare: Outcome | None) -> str:
    if bare is None:
        return "–"
    return f"{bare.shown} of {bare.images}" if bare.images else "does not run"


def outcome_cell(found: Outcome) -> str:
    if not found.images:
        return shortened(found.text)
    return f"{found.text}, {found.shown} of {found.images}" + (
        f", {found.retried} generated again" if found.retried else ""
    )


def part_of_page(name: str) -> tuple[str, str, str]:
    """The page before, inside and after the named table's markers."""
    before, rest = PAGE.read_text().split(BEGIN.format(name))
    inside, after = rest.split(END.format(name))
    return before, inside, after


def rows_on_the_page(name: str) -> list[list[str]]:
    """Cells of the named table as it stands in the page."""
    lines = [line for line in part_of_page(name)[1].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines][1:]


def shortened(text: str) -> str:
    return textwrap.shorten(text.replace("|", "/"), 130, placeholder=" …")


def try_all(probes: dict[str, Probe]) -> tuple[list[str], str]:
    """Lines of the table, and the sentence below it."""
    lines, found, bare = list(HEAD), [], []
    for name, probe in probes.items():
        bare.append(outcome(probe, is_guarded=False) if probe.has_baseline else None)
        found.append(outcome(probe))
        lines.append(row(name, probe, bare_cell(bare[-1]), outcome_cell(found[-1])))
    return lines, summary(found, bare)


def row(*cells: Any) -> str:
    name, probe, *rest = cells
    line = f"| {' | '.join([name, probe.attacker, probe.does, *rest])} |"
    print(line, flush=True)
    return line


def summary(found: list[Outcome], bare: list[Outcome | None]) -> str:
    counted = [(each, without) for each, without in zip(found, bare, strict=True) if each.runs]
    kinds = ("safe image", "blocked", "refused", "SHOWN")
    counts = {kind: sum(each.text.startswith(kind) for each, _ in counted) for kind in kinds}
    known = [without for _, without in counted if without is not None]
    works = sum(without.shown > 0 for without in known)
    return (
        f"{len(counted)} probes run: {counts['safe image']} end in safe images, {counts['blocked']} in blocked ones only, "
        f"{counts['refused']} are refused, **{counts['SHOWN']} show the concept**. {len(found) - len(counted)} does not run, "
        f"guarded or not, and is not counted. Of the {len(known)} that can be tried on the bare pipeline, {works} show a star "
        f"there, so that those are attacks that work; the other {len(known) - works} do nothing on PictoWorld, and that they "
        f"are safe says little. The remaining {len(counted) - len(known)} are about the guard itself. "
        f"{sum(each.images for each, _ in counted)} images came out, of which {sum(each.shown for each, _ in counted)} show a "
        f"star and {sum(each.retried for each, _ in counted)} were generated again."
    )


def try_families(probes: dict[str, FamilyProbe]) -> tuple[list[str], str]:
    """The same for probes on tiny pipelines: a line for each probe, its pipelines by what came of them."""
    lines, every = list(FAMILY_HEAD), []
    for name, probe in probes.items():
        found = {case: family_probes.outcome(probe, case) for case in probe.cases}
        every += found.values()
        known = [each.is_heard for each in found.values() if each.is_heard is not None]
        heard = f"{sum(known)} of {len(known)}" if known else "–"
        lines.append(row(name, probe, heard, family_cell(found, is_limit=probes is LIMITS)))
    if probes is LIMITS:
        return lines, f"{len(every)} trials of {len(probes)} ways, none of which redirection of the prompt stops."
    kinds = Counter(each.kind for each in every)
    known = [each.is_heard for each in every if each.is_heard is not None]
    got = f"**{kinds['GOT THROUGH']} got through**"
    return lines, (
        f"{len(probes)} probes, {len(every)} trials on {len({case for probe in probes.values() for case in probe.cases})} "
        f"pipelines: {kinds['steered']} are steered, {kinds['refused']} refused, {kinds['not possible']} not possible with "
        f"the pipeline itself (not counted as stopped), {got}. The bare pipeline hears the word in {sum(known)} of the "
        f"{len(known)} trials in which that can be said; in the other {len(known) - sum(known)} the attack does nothing anyway."
    )


def family_cell(found: dict[str, FamilyOutcome], is_limit: bool) -> str:
    groups: dict[str, list[str]] = {}
    for case, each in found.items():
        groups.setdefault(each.kind, []).append(case)
    words = {"GOT THROUGH": "not stopped by redirection"} if is_limit else {"GOT THROUGH": "**GOT THROUGH**"}
    return "; ".join(f"{words.get(kind, kind)}: {', '.join(cases)}" for kind, cases in groups.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("probes", "families"), help="leave the other tables as they are")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    for name, probes in TABLES.items():
        if only is not None and (only == "probes") != (name == "probes"):
            continue
        lines, below = try_all(probes) if name == "probes" else try_families(probes)
        before, _, after = part_of_page(name)
        text = "\n".join([*lines, "", below])
        PAGE.write_text(before + BEGIN.format(name) + "\n\n" + text + "\n\n" + END.format(name) + after)


if __name__ == "__main__":
    main()
