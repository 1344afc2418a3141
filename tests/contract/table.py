"""`python -m tests.contract.table`: run the contract checks and write their outcomes into docs/pipelines.md.

`--only FEATURE` (again and again) runs the checks of these features and leaves the page's other rows as they are; `--guard NAME`
likewise those of some guards, a new one's above all, with `--family NAME` on some families. Imports tests.contract.plan, so
that the page says what the tests have seen, and nothing else.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.contract.features import FEATURES
from tests.contract.plan import MODELS, NEWER_FAMILIES, PAGE_FAMILIES, checks, model_of
from tests.contract.speed_features import FIGURES

from saferedir.guards.registry import methods
from saferedir.pipelines.families import FAMILIES
from saferedir.pipelines.schedules import SCHEDULER_KINDS

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
BEGIN = "<!-- made by `python -m tests.contract.table`; do not edit by hand -->"
END = "<!-- end of what tests.contract.table makes -->"

#: (feature, family, guard) -> outcomes of the family's pipelines
Outcomes = dict[tuple[str, str, str], list[tuple[str, str]]]
#: (feature, family) -> guard -> outcome
Cells = dict[tuple[str, str], dict[str, tuple[str, str]]]


def section_of(page: str) -> str:
    """What lies between the marks."""
    return page.partition(BEGIN)[2].partition(END)[0]


def named_in(section: str, what: str) -> list[str]:
    """Names a table gives: the columns after a first one called "Feature" or "Guard", or ("rows") first cells of all."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    if what != "rows":
        header = next(line for line in lines if line.startswith(f"| {what} |"))
        return [cell.strip() for cell in header.strip("|").split("|")][1:]
    return [line.split("**")[1] for line in lines if line.startswith("| **")]


def run_all(only: Sequence[str] = (), guards: Sequence[str] = (), families: Sequence[str] = ()) -> Outcomes:
    """Run every check, or some features', guards' or families', telling how it goes; one that fails leaves the page as it is."""
    found: Outcomes = defaultdict(list)
    plan = [
        check
        for check in checks(with_scripts=False, families=families)
        if (not only or check.feature.name in only)
        and (not guards or check.guard.name in guards)
        and (not families or check.case.family in families)
    ]
    broken = []
    for number, check in enumerate(plan, 1):
        start = time.time()
        try:
            outcome = check.outcome()
        except Exception as error:
            outcome = ("FAILS", f"{type(error).__name__}: {error}")
            broken.append(check.id)
        found[check.feature.name, check.case.family, check.guard.name].append(outcome)
        print(f"{number}/{len(plan)} {check.id}: {' '.join(outcome)} ({time.time() - start:.1f} s)", flush=True)
    if broken:
        raise SystemExit(f"{len(broken)} checks fail, so {PAGE.name} stays as it is: {', '.join(broken)}")
    return found


def as_sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


class Footnotes:
    """Numbered sentences, each once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def mark(self, sentence: str) -> str:
        sentence = as_sentence(sentence)
        if sentence not in self.sentences:
            self.sentences.append(sentence)
        return f"[^{self.sentences.index(sentence) + 1}]"

    def __str__(self) -> str:
        return "\n".join(f"[^{number}]: {sentence}" for number, sentence in enumerate(self.sentences, 1))


#: the outcome of a family of which one pipeline refuses what another one does
SOME = "refused on some"


def merged(outcomes: list[tuple[str, str]]) -> tuple[str, str]:
    """One outcome of several: what one pipeline of a family refuses is refused, "on some" where it works on another."""
    refused = [sentence for word, sentence in outcomes if word in ("refused", SOME)]
    if refused and any(word in ("works", SOME) for word, _ in outcomes):
        return (SOME, refused[0])
    for kind in ("refused", "works"):
        for outcome in outcomes:
            if outcome[0] == kind:
                return outcome
    return outcomes[0]


def per_guard(
    found: Outcomes, feature: str, family: str, attached: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Outcome of every method; what scripted guards, or the first of its kind, showed holds for it too.

    `attached`: the outcomes of "acts", because a guard that is refused there has no others.
    """
    each = {guard: merged(seen) for (one, other, guard), seen in found.items() if (one, other) == (feature, family)}
    if FEATURES[feature].about == "script":
        return dict.fromkeys(methods(), merged(list(each.values())))
    shown = {}
    for guard in methods():
        model = guard if guard in each else model_of(FEATURES[feature], guard)
        is_refused = model != guard and attached[guard][0] == "refused"
        shown[guard] = attached[guard] if is_refused else each[model]
    return shown


def cell(outcomes: dict[str, tuple[str, str]], notes: Footnotes) -> str:
    """One word if all guards agree, else the first's, and who differs."""

    def word(outcome: tuple[str, str]) -> str:
        return outcome[0] + (notes.mark(outcome[1]) if outcome[1] else "")

    (most, _), *_ = Counter(outcomes.values()).most_common(1)
    others = [f"{guard}: {word(outcome)}" for guard, outcome in outcomes.items() if outcome != most]
    return "; ".join([word(most), *others])


def cells_of_guards(found: Outcomes, page: Cells, guards: Sequence[str]) -> Cells:
    """The page's cells, but for some guards: those of their checks; about pipelines, what the first of a kind showed."""
    cells: Cells = {}
    for (feature, family), outcomes in page.items():
        cells[feature, family] = dict(outcomes)
        for guard in guards:
            acts = found.get(("acts", family, guard))
            if (feature, family, guard) in found:
                cells[feature, family][guard] = merged(found[feature, family, guard])
            elif acts and FEATURES[feature].about == "pipeline":
                model = outcomes[model_of(FEATURES[feature], guard)]
                cells[feature, family][guard] = merged(acts) if merged(acts)[0] == "refused" else model
    spelt = {
        key: {g: (kind, text and as_sentence(text)) for g, (kind, text) in each.items()} for key, each in cells.items()
    }
    return spelt


def cells_of(found: Outcomes, page: Cells) -> Cells:
    """Those of the checks that were run, and the page's for the others."""
    cells: Cells = {}
    for feature in FEATURES:
        was_run = any(name == feature for name, _, _ in found)
        for family in PAGE_FAMILIES:
            acting = page.get(("acts", family), {})
            if any(name == "acts" for name, _, _ in found):
                acting = {guard: merged(found["acts", family, guard]) for guard in methods()}
            if was_run:
                cells[feature, family] = per_guard(found, feature, family, acting)
            elif (feature, family) in page:
                cells[feature, family] = page[feature, family]
            else:
                print(f"{PAGE.name} has no row {feature!r} for {family} yet: run its checks, too", flush=True)
    return cells


def read_cells(section: str) -> Cells:
    """The cells of a page that was made before, footnotes spelt out."""
    notes = dict(re.findall(r"^\[\^(\d+)\]: (.*)$", section, flags=re.MULTILINE))
    families = named_in(section, "Feature")
    cells: Cells = {}

    def outcome(word: str) -> tuple[str, str]:
        kind, _, mark = word.partition("[^")
        return kind, notes[mark.rstrip("]")] if mark else ""

    table = section.partition("| Feature |")[2].partition("\n\n")[0]
    for line in table.splitlines():
        if not line.startswith("| **"):
            continue
        name, columns = line.split("**")[1], line.strip("|").split("|")[1:]
        for family, column in zip(families, columns, strict=True):
            most, *others = column.strip().split("; ")
            cells[name, family] = dict.fromkeys(methods(), outcome(most))
            cells[name, family] |= {guard: outcome(word) for guard, word in (each.split(": ", 1) for each in others)}
    return cells


def make_section(cells: Cells, page: str = "") -> str:
    """The tables, in Markdown; figures that were not measured anew are taken from those of `page`."""
    notes, families = Footnotes(), list(PAGE_FAMILIES)
    rule = "|---" * (len(families) + 1) + "|"
    edits = {"steps": "edits steps", "weights": "edits weights", "rows": "adds rows; caches only"}
    models = ", ".join(f"{guard.name} ({edits[kind]})" for kind, guard in MODELS.items())
    shared = ", ".join(feature.name for feature in FEATURES.values() if feature.about == "pipeline")
    lines = [
        "",
        f"Not every cell is a run of its own. These rows were run with {models} only, and are taken to hold for the",
    ]
    lines += [
        f"other methods of the same kind that can be attached: {shared}. Those about the seam itself were run with"
    ]
    lines += ["scripted guards: " + ", ".join(f.name for f in FEATURES.values() if f.about == "script") + "."]
    lines += ["", f"| Feature | {' | '.join(families)} |", rule]
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for feature in FEATURES.values():
        row = []
        if any((feature.name, family) not in cells for family in families):
            continue
        for family in families:
            outcomes = cells[feature.name, family]
            for guard, (kind, _) in outcomes.items():
                counts[guard, family]["refused" if kind == SOME else kind] += 1
            row.append(cell(outcomes, notes))
        lines.append(f"| **{feature.name}**: {feature.text} | {' | '.join(row)} |")
    lines += figures_of_caches(page)
    lines += ["", "Features that work / are refused / do not apply, for each guard:", ""]
    lines += [f"| Guard | {' | '.join(families)} |", rule]
    for guard in methods():
        kinds = [[counts[guard, family][kind] for kind in ("works", "refused", "n.a.")] for family in families]
        lines.append(f"| **{guard}** | {' | '.join(' / '.join(map(str, kind)) for kind in kinds)} |")
    lines += ["", "Pipelines of each family:", ""]
    lines += [f"- {name}: {', '.join(f'`{each}`' for each in family.pipelines)}" for name, family in FAMILIES.items()]
    lines += [
        "",
        "Schedulers, by the way they keep their latents (`saferedir.pipelines.schedules`); subclasses count:",
        "",
    ]
    for kind in dict.fromkeys(SCHEDULER_KINDS.values()):
        lines.append(f"- {kind}: {', '.join(f'`{name}`' for name, own in SCHEDULER_KINDS.items() if own == kind)}")
    return "\n".join([*lines, "", str(notes), ""])


FIGURES_TITLE = "How far runs with a cache are from runs without it"


def figures_of_caches(page: str) -> list[str]:
    """The table of what the checks of caches measured; the page's own where none of them was run."""
    if not FIGURES:
        _, title, rest = page.partition(FIGURES_TITLE)
        return ["", *(title + rest).partition("\n\nFeatures that")[0].splitlines()] if title else []
    families = [name for name in PAGE_FAMILIES if any(family == name for _, family, _ in FIGURES)]
    guards = [guard.name for guard in MODELS.values()]
    lines = [
        "",
        f"{FIGURES_TITLE} (RMS of the final latents' difference, relative to the",
        f"unguarded image): unguarded, the worst of three prompts / guarded by {', '.join(guards)} (– where it is refused):",
        "",
        f"| Cache | {' | '.join(families)} |",
        "|---" * (len(families) + 1) + "|",
    ]
    for name in dict.fromkeys(feature for feature, _, _ in FIGURES):
        row = []
        for family in families:
            found = [FIGURES.get((name, family, guard)) for guard in guards]
            worst = next((each.unguarded for each in found if each), None)
            of_guards = ", ".join(f"{each.guarded:.3f}" if each else "–" for each in found)
            row.append("" if worst is None else f"{worst:.3f} / {of_guards}")
        lines.append(f"| {name} | {' | '.join(row)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], choices=list(FEATURES), metavar="FEATURE")
    parser.add_argument("--guard", action="append", default=[], choices=methods(), metavar="NAME")
    parser.add_argument("--family", action="append", default=[], choices=list(PAGE_FAMILIES), metavar="NAME")
    parser.add_argument("--newer", action="append", default=[], choices=list(NEWER_FAMILIES), metavar="NAME")
    arguments = parser.parse_args()
    if arguments.newer:
        run_all(families=arguments.newer)  # every check; the page has no column for these
        return
    only, guards, families = arguments.only, arguments.guard, arguments.family
    if (only and guards) or (families and not guards):
        parser.error("give --only or --guard, not both, and --family with --guard")
    start = time.time()
    found = run_all(only, guards, families)
    page = PAGE.read_text(encoding="utf-8")
    old = section_of(page)
    known = read_cells(old) if only or guards else {}
    if guards:
        FIGURES.clear()  # the page's stay, which are of all families
    section = make_section(cells_of_guards(found, known, guards) if guards else cells_of(found, known), old)
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}", encoding="utf-8")
    print(f"{PAGE} written after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
