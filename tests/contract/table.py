"""`python -m tests.contract.table`: run the contract checks and write their outcomes into docs/pipelines.md.

Imports tests.contract.plan, so that the page says what the tests have seen, and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from pathlib import Path

from tests.contract.features import FEATURES
from tests.contract.guards import GUARDS
from tests.contract.plan import MODELS, checks

from saferedir.families import FAMILIES
from saferedir.guards.registry import methods
from saferedir.schedules import SCHEDULER_KINDS

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
BEGIN = "<!-- made by `python -m tests.contract.table`; do not edit by hand -->"
END = "<!-- end of what tests.contract.table makes -->"

#: (feature, family, guard) -> outcomes of the family's pipelines
Outcomes = dict[tuple[str, str, str], list[tuple[str, str]]]


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


def run_all() -> Outcomes:
    """Run every check, telling how it goes; one that fails leaves the page as it is."""
    found: Outcomes = defaultdict(list)
    plan, broken = list(checks(with_scripts=False)), []
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


def merged(outcomes: list[tuple[str, str]]) -> tuple[str, str]:
    """One outcome of several: what works on one pipeline of a family works, unless another one refuses it."""
    for kind in ("refused", "works"):
        for outcome in outcomes:
            if outcome[0] == kind:
                return outcome
    return outcomes[0]


def per_guard(found: Outcomes, feature: str, family: str) -> dict[str, tuple[str, str]]:
    """Outcome of every method; what scripted guards, or the first of its kind, showed holds for it too."""
    each = {guard: merged(seen) for (one, other, guard), seen in found.items() if (one, other) == (feature, family)}
    if FEATURES[feature].about == "script":
        return dict.fromkeys(methods(), merged(list(each.values())))
    shown = {}
    for guard in methods():
        attached = merged(found["acts", family, guard])
        model = guard if guard in each else MODELS[GUARDS[guard].is_in_weights].name
        shown[guard] = attached if model != guard and attached[0] == "refused" else each[model]
    return shown


def cell(outcomes: dict[str, tuple[str, str]], notes: Footnotes) -> str:
    """One word if all guards agree, else the first's, and who differs."""

    def word(outcome: tuple[str, str]) -> str:
        return outcome[0] + (notes.mark(outcome[1]) if outcome[1] else "")

    (most, _), *_ = Counter(outcomes.values()).most_common(1)
    others = [f"{guard}: {word(outcome)}" for guard, outcome in outcomes.items() if outcome != most]
    return "; ".join([word(most), *others])


def make_section(found: Outcomes) -> str:
    """The tables, in Markdown."""
    notes, families = Footnotes(), list(FAMILIES)
    rule = "|---" * (len(families) + 1) + "|"
    models = " and ".join(
        f"{guard.name} (edits {'weights' if kind else 'steps'})" for kind, guard in sorted(MODELS.items())
    )
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
        for family in families:
            outcomes = per_guard(found, feature.name, family)
            for guard, (kind, _) in outcomes.items():
                counts[guard, family][kind] += 1
            row.append(cell(outcomes, notes))
        lines.append(f"| **{feature.name}**: {feature.text} | {' | '.join(row)} |")
    lines += ["", "Features that work / are refused / do not apply, for each guard:", ""]
    lines += [f"| Guard | {' | '.join(families)} |", rule]
    for guard in methods():
        kinds = [[counts[guard, family][kind] for kind in ("works", "refused", "n.a.")] for family in families]
        lines.append(f"| **{guard}** | {' | '.join(' / '.join(map(str, kind)) for kind in kinds)} |")
    lines += ["", "Pipelines of each family:", ""]
    lines += [f"- {name}: {', '.join(f'`{each}`' for each in family.pipelines)}" for name, family in FAMILIES.items()]
    lines += ["", "Schedulers, by the way they keep their latents (`saferedir.schedules`); subclasses count:", ""]
    for kind in dict.fromkeys(SCHEDULER_KINDS.values()):
        lines.append(f"- {kind}: {', '.join(f'`{name}`' for name, own in SCHEDULER_KINDS.items() if own == kind)}")
    return "\n".join([*lines, "", str(notes), ""])


def main() -> None:
    start = time.time()
    section = make_section(run_all())
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}", encoding="utf-8")
    print(f"{PAGE} written after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
