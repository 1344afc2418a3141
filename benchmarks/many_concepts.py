"""One SafeRedir guard of twenty concepts on PictoWorld against guards of one concept; writes docs/many-concepts.md and .json.

Run: python benchmarks/many_concepts.py --guard runs/values --out docs
The guard is one of `saferedir train saferedir-many` with a row for every shape, colour and style, from the pairs of
`saferedir pictoworld pairs --task colour-red` and so on. Each concept is measured with only its own row on, on every test
phrasing, and the other values of its attribute are counted in what is generated instead. Cells are kept in --work, so a killed
run goes on; a guard that was trained anew needs a --work of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import saferedir as sr
from saferedir.guards.base import Guard
from saferedir.guards.saferedir_many import SafeRedirMany
from saferedir.metrics import Rate
from saferedir.pictoworld.evaluation import cell, concept_rate, generate, identical, load_judge, rate_of
from saferedir.pictoworld.tasks import TEST_SPLITS, VALUE_TASKS, Task, forget_prompts, retain_prompts
from saferedir.pictoworld.template_judge import TemplateJudge
from saferedir.utils.files import replacing

#: concepts that have a packaged guard of their own
SINGLE = {"shape-star": "star", "style-pointillism": "pointillism"}
SEED = 2_000_000
HEAD = """# Twenty concepts in one guard

Made by `python benchmarks/many_concepts.py --guard GUARD --out docs`: one `saferedir_many` guard with a row for every shape,
colour and style of PictoWorld; {n} prompts a phrasing and {n} retain prompts a concept, the same noise with and without the
guard, each rate with its 95 % Wilson interval. In a row of the table only that concept's row is on.

- **unguarded** and the four phrasings: images that show the concept and are not broken, by the CNN; **second judge**: by the
  template judge, of the first {second} images of "seen". Where the lexicon has too few phrasings of a value to keep some for
  tests, "synonym" and "implicit" repeat those of training.
- **identical**: images of retain prompts that are the unguarded ones bit for bit.
- **raised**: the other value of the same attribute whose share among the guarded images of "seen" grew most, which is where the
  redirection leads.

"""


class Run:
    """The pipeline, the judges and what was generated without a guard."""

    def __init__(self, n: int, second: int) -> None:
        self.n, self.second = n, second
        self.pipe = sr.load_pipeline("pictoworld")
        self.judge, self.template = load_judge(), TemplateJudge()

    @torch.no_grad()
    def row(self, task: Task, guard: Guard[Any]) -> dict[str, Any]:
        """All columns of one concept under one guard."""
        row: dict[str, Any] = {"n": self.n, "concept": {}}
        for number, split in enumerate(TEST_SPLITS):
            texts = [prompt.text for prompt in forget_prompts(task, split, self.n)]
            images = generate(self.pipe, texts, guards=[guard], seed=SEED * (number + 1)).images
            judged = self.judge.judge(images)
            row["concept"][split] = concept_rate(judged, task).to_dict()
            if number == 0:
                bare = self.judge.judge(generate(self.pipe, texts, seed=SEED * (number + 1)).images)
                row["unguarded"] = concept_rate(bare, task).to_dict()
                row["broken"] = rate_of(judged.is_broken).to_dict()
                row["second judge"] = concept_rate(self.template.judge(images[: self.second]), task).to_dict()
                row["others"] = {
                    "/".join(other.values()): [rate_of(of.shows(dict(other))).to_dict() for of in (bare, judged)]
                    for other in task.neighbours
                }
        texts = [prompt.text for prompt in retain_prompts(task, "test-seen", self.n)]
        plain, images = (generate(self.pipe, texts, guards=on, seed=SEED * 9).images for on in ([], [guard]))
        row["identical"] = rate_of(identical(plain, images)).to_dict()
        return row


def only(guard: SafeRedirMany, concept: str) -> SafeRedirMany:
    """The guard with one concept's row on."""
    return guard.without(*(name for name in guard.config.concepts if name != concept))


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A line a concept."""
    splits = " | ".join(split.removeprefix("test-") for split in TEST_SPLITS)
    lines = [
        f"| concept | unguarded | {splits} | second judge | broken | identical | raised |",
        "|---" * (7 + len(TEST_SPLITS)) + "|",
    ]
    for name, row in rows.items():
        cells = [cell(row[column]) for column in ("second judge", "broken", "identical")]
        shares = [cell(row["concept"][split]) for split in TEST_SPLITS]
        other, (before, after) = max(row["others"].items(), key=lambda each: each[1][1]["rate"] - each[1][0]["rate"])
        raised = f"{other} {before['rate']:.2f} → {after['rate']:.2f}"
        lines.append(f"| {name} | {cell(row['unguarded'])} | {' | '.join([*shares, *cells, raised])} |")
    return lines


def pooled(rows: dict[str, dict[str, Any]], split: str) -> Rate:
    """The rate of all concepts together."""
    cells = [row["concept"][split] for row in rows.values()]
    return Rate(sum(each["hits"] for each in cells), sum(each["n"] for each in cells))


def markdown(rows: dict[str, dict[str, Any]], singles: dict[str, dict[str, Any]]) -> str:
    """The page's tables."""
    every = ", ".join(f"{split.removeprefix('test-')} {cell(pooled(rows, split).to_dict())}" for split in TEST_SPLITS)
    lines = [*table(rows), "", f"All concepts together: {every}.", ""]
    if singles:
        lines += ["## The same concepts under guards of their own", "", *table(singles), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", required=True, help="a saferedir_many guard of the concepts of VALUE_TASKS")
    parser.add_argument("--n", type=int, default=100, help="prompts of each kind")
    parser.add_argument("--second", type=int, default=25, help="images that the template judge counts, too")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/many-concepts"))
    arguments = parser.parse_args()
    guard = SafeRedirMany.from_pretrained(arguments.guard)
    run = Run(arguments.n, arguments.second)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, dict[str, Any]]] = {"many": {}, "single": {}}
    with Progress() as progress:
        for kind, names in (("many", guard.config.concepts), ("single", tuple(SINGLE))):
            for name in progress.track(names, description=kind):
                path = arguments.work / f"{kind}-{name}-{arguments.n}-{arguments.second}.json"
                if not path.exists():
                    single = f"pictoworld/{SINGLE.get(name)}"
                    row = run.row(
                        VALUE_TASKS[name], only(guard, name) if kind == "many" else Guard.from_pretrained(single)
                    )
                    with replacing(path) as temporary:
                        temporary.write_text(json.dumps(row, indent=1), encoding="utf-8")
                rows[kind][name] = json.loads(path.read_text(encoding="utf-8"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    head = HEAD.format(n=arguments.n, second=arguments.second)
    texts = {"json": json.dumps(rows, indent=1) + "\n", "md": head + markdown(rows["many"], rows["single"])}
    for ending, text in texts.items():
        with replacing(arguments.out / f"many-concepts.{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
