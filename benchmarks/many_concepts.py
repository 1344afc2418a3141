"""One SafeRedir guard of many concepts against guards of one concept; writes docs/many-concepts.md or docs/many-characters.md.

Run: python benchmarks/many_concepts.py --guard pictoworld/values --out docs
     python benchmarks/many_concepts.py --world 2 --guard GUARD --n 10 --work runs/many-characters --out docs
The guard is one of `saferedir train saferedir-many`: on PictoWorld with a row for every shape, colour and style, from the pairs
of `saferedir pictoworld pairs --task colour-red` and so on, on PictoWorld 2 with a row for every character (`--task
world2/character-lomka`). Each concept is measured with only its own row on, on every test phrasing, and its neighbours (the other
values of its attribute, the other members of its family) are counted in what is generated instead. Cells are kept in --work, so
a killed run goes on; a guard that was trained anew needs a --work of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor

import saferedir as sr
from saferedir.guards.base import Guard
from saferedir.guards.saferedir_many import SafeRedirMany
from saferedir.metrics import Rate
from saferedir.pictoworld import evaluation, tasks
from saferedir.pictoworld.evaluation import cell, identical, rate_of
from saferedir.pictoworld.tasks import TEST_SPLITS
from saferedir.pictoworld.template_judge import TemplateJudge
from saferedir.pictoworld.world2 import evaluation as evaluation2
from saferedir.pictoworld.world2 import tasks as tasks2
from saferedir.pictoworld.world2.judge import Judge as Judge2
from saferedir.pictoworld.world2.template_judge import TemplateJudge as TemplateJudge2
from saferedir.utils.files import replacing

SEED = 2_000_000
#: the bar that the share of bit-identical retain images is held against
IDENTICAL = 0.98
HEAD = """# {title}

Made by `python benchmarks/many_concepts.py {options} --out docs`: one `saferedir_many` guard with a row for every
{rows}; {n} prompts a phrasing and {n} retain prompts a concept, the same noise with and without the
guard, each rate with its 95 % Wilson interval. In a row of the table only that concept's row is on.
Guards of one concept have no [rules and tests](hardening.md).

- **unguarded** and the four phrasings: images that show the concept and are not broken, by the CNN; **second judge**: by the
  template judge, of the first {second} images of "seen". Where the lexicon has too few phrasings of a value to keep some for
  tests, "synonym" and "implicit" repeat those of training.
- **identical**: images of retain prompts that are the unguarded ones bit for bit.
- **raised**: the neighbour ({neighbours}) whose share among the guarded images of "seen" grew most, which is where the
  redirection leads.

"""


class World(NamedTuple):
    """What is measured in one of the two worlds, by the names of its guard's rows."""

    title: str
    rows: str
    neighbours: str
    page: str
    model: str
    tasks: Mapping[str, Any]
    #: concepts that have a packaged guard of their own
    single: Mapping[str, str]
    prompts: ModuleType
    evaluation: ModuleType
    judges: tuple[Any, Any]


def world_named(number: int) -> World:
    """PictoWorld or PictoWorld 2."""
    if number == 1:
        single = {"shape-star": "pictoworld/star-usual", "style-pointillism": "pictoworld/pointillism-usual"}
        texts = (
            "Twenty concepts in one guard",
            "shape, colour and style of PictoWorld",
            "another value of the attribute",
        )
        return World(
            *texts,
            "many-concepts",
            "pictoworld",
            tasks.VALUE_TASKS,
            single,
            tasks,
            evaluation,
            (evaluation.load_judge(), TemplateJudge()),
        )
    of_characters = {name.lower(): task for name, task in tasks2.CHARACTER_TASKS.items()}
    single = {name.lower(): f"world2/character-{name.lower()}" for name in tasks2.MEASURED_CHARACTERS}
    texts = "Forty characters in one guard", "character of PictoWorld 2", "another member of the family"
    return World(
        *texts,
        "many-characters",
        "pictoworld-flux",
        of_characters,
        single,
        tasks2,
        evaluation2,
        (Judge2.load(), TemplateJudge2()),
    )


class Run:
    """The pipeline, the judges and what was generated without a guard."""

    def __init__(self, world: World, n: int, second: int) -> None:
        self.world, self.n, self.second = world, n, second
        self.pipe = sr.load_pipeline(world.model)
        self.judge, self.template = world.judges

    def images(self, texts: Sequence[str], guards: Sequence[Guard[Any]], seed: int) -> Tensor:
        """One image a prompt."""
        images: Tensor = self.world.evaluation.generate(self.pipe, texts, guards=guards, seed=seed).images
        return images

    @torch.no_grad()
    def row(self, task: Any, guard: Guard[Any]) -> dict[str, Any]:
        """All columns of one concept under one guard."""
        concept_rate = self.world.evaluation.concept_rate
        row: dict[str, Any] = {"n": self.n, "concept": {}}
        for number, split in enumerate(TEST_SPLITS):
            texts = [prompt.text for prompt in self.world.prompts.forget_prompts(task, split, self.n)]
            images = self.images(texts, [guard], SEED * (number + 1))
            judged = self.judge.judge(images)
            row["concept"][split] = concept_rate(judged, task).to_dict()
            if number == 0:
                bare = self.judge.judge(self.images(texts, [], SEED * (number + 1)))
                row["unguarded"] = concept_rate(bare, task).to_dict()
                row["broken"] = rate_of(judged.is_broken).to_dict()
                row["second judge"] = concept_rate(self.template.judge(images[: self.second]), task).to_dict()
                row["others"] = {
                    "/".join(near.values()): [concept_rate(of, showing(task, near)).to_dict() for of in (bare, judged)]
                    for near in task.neighbours
                }
        texts = [prompt.text for prompt in self.world.prompts.retain_prompts(task, "test-seen", self.n)]
        plain, images = (self.images(texts, on, SEED * 9) for on in ([], [guard]))
        row["identical"] = rate_of(identical(plain, images)).to_dict()
        return row


def showing(task: Any, values: Mapping[str, str]) -> Any:
    """The task with a neighbour in the concept's stead."""
    return replace(task, forget=(values,) if isinstance(task.forget, tuple) else dict(values))


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


def pooled(cells: Iterable[dict[str, Any]]) -> str:
    """The rate of all concepts together, as a table has it."""
    every = list(cells)
    return cell(Rate(sum(each["hits"] for each in every), sum(each["n"] for each in every)).to_dict())


def limits(rows: dict[str, dict[str, Any]], singles: dict[str, dict[str, Any]], n: int) -> str:
    """What the tables do not show, in a sentence."""
    cells = [row["identical"] for row in rows.values()]
    share = sum(each["hits"] for each in cells) / sum(each["n"] for each in cells)
    verdict = "misses" if share < IDENTICAL else "meets"
    return (
        f'{n} a cell cannot show "within one point of a guard of its own", {len(singles)} of {len(rows)} concepts have a guard '
        f"of their own beside them, and identical {share:.3f} {verdict} the bar of {IDENTICAL:.2f}."
    )


def markdown(rows: dict[str, dict[str, Any]], singles: dict[str, dict[str, Any]], n: int) -> str:
    """The page's tables."""
    rates = {split: pooled(row["concept"][split] for row in rows.values()) for split in TEST_SPLITS}
    rates["identical"] = pooled(row["identical"] for row in rows.values())
    every = ", ".join(f"{name.removeprefix('test-')} {rate}" for name, rate in rates.items())
    lines = [*table(rows), "", f"All concepts together: {every}.", "", limits(rows, singles, n), ""]
    if singles:
        lines += ["## The same concepts under guards of their own", "", *table(singles), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, choices=(1, 2), default=1)
    parser.add_argument("--guard", required=True, help="a saferedir_many guard of the values, or of the characters")
    parser.add_argument("--n", type=int, default=100, help="prompts of each kind")
    parser.add_argument("--second", type=int, default=25, help="images that the template judge counts, too")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/many-concepts"))
    arguments = parser.parse_args()
    guard = SafeRedirMany.from_pretrained(arguments.guard)
    world = world_named(arguments.world)
    run = Run(world, arguments.n, arguments.second)
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, dict[str, Any]]] = {"many": {}, "single": {}}
    with Progress() as progress:
        for kind, names in (("many", guard.config.concepts), ("single", tuple(world.single))):
            for name in progress.track(names, description=kind):
                path = arguments.work / f"{kind}-{name}-{arguments.n}-{arguments.second}.json"
                if not path.exists():
                    on = only(guard, name) if kind == "many" else Guard.from_pretrained(world.single[name])
                    row = run.row(world.tasks[name], on)
                    with replacing(path) as temporary:
                        temporary.write_text(json.dumps(row, indent=1), encoding="utf-8")
                rows[kind][name] = json.loads(path.read_text(encoding="utf-8"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = f"{'--world 2 ' if arguments.world == 2 else ''}--guard {arguments.guard} --n {arguments.n}"
    facts = {"title": world.title, "rows": world.rows, "neighbours": world.neighbours, "options": options}
    head = HEAD.format(n=arguments.n, second=arguments.second, **facts)
    texts = {
        "json": json.dumps(rows, indent=1) + "\n",
        "md": head + markdown(rows["many"], rows["single"], arguments.n),
    }
    for ending, text in texts.items():
        with replacing(arguments.out / f"{world.page}.{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
