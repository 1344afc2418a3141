"""What each method does in PictoWorld 2, with intervals and a second judge; writes docs/world2.md and docs/world2.json.

Run: python benchmarks/world2.py --out docs
Text tasks: 200 prompts a phrasing, as many retain prompts and neighbours; posters: 200 images a name, and without a name; shares
of the class-conditional and the unconditional model: 500 images. The same noise with and without a guard. Every (task, method)
is kept in --work as soon as it is measured, so a killed run goes on; --models takes the folders of a training that is not
packaged yet, --guards a folder of trained guards, and --validation measures the phrasings on which their settings are chosen.
Models or guards that were trained anew need a --work of their own. --only-page makes the page anew: a cell that --work lacks
stays as the page has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import saferedir as sr
from saferedir.guards.base import Guard
from saferedir.metrics import Rate
from saferedir.pictoworld.evaluation import cell, identical, rate_of
from saferedir.pictoworld.tasks import TEST_SPLITS
from saferedir.pictoworld.world2.captions import Prompt
from saferedir.pictoworld.world2.evaluation import (
    background_kept,
    concept_rate,
    generate,
    generate_classes,
    generate_unconditional,
    other_item_kept,
    prompts_kept,
    shows_concept,
)
from saferedir.pictoworld.world2.judge import Judge
from saferedir.pictoworld.world2.methods import (
    EDIT_STACKS,
    EDITS,
    METHODS,
    OF_IMAGES,
    STACKS,
    WITHOUT_TEXT,
    make_guards,
)
from saferedir.pictoworld.world2.poster_judge import PosterJudge
from saferedir.pictoworld.world2.tasks import TASKS, Task, forget_prompts, neighbour_prompts, retain_prompts, task_names
from saferedir.pictoworld.world2.template_judge import TemplateJudge
from saferedir.utils.files import replacing

TRAINED = ("saferedir", *EDITS)
ORDER = ("none", *TRAINED, *METHODS, *OF_IMAGES, *STACKS, *EDIT_STACKS)
VALIDATION = "guard-validation"
MODELS = {"flux": "pictoworld-flux", "dit": "pictoworld-dit", "ddpm": "pictoworld-ddpm"}
HEAD = """# PictoWorld 2: what each method does

Made by `python benchmarks/world2.py{options} --out docs`: as many prompts a phrasing (images for shares) as a table's
title says; each rate with its 95 % Wilson interval. The same noise with and without a guard. What a column counts:

- **concept**: images that show the concept and are not broken (a poster: given back, see [the world](pictoworld.md)), by the
  CNN; **second judge**: by the template judge, of the first images of "seen".
- **largest change of another share**: of images without the concept. An ideal removal leaves these their proportions, so that a
  share s rises to s (1 - p') / (1 - p), with p and p' the concept's share without and with the guard; the last column is the
  largest distance from there, and the one to hold to a bar. The column before it counts from s itself, to which none keeps.
- **other item**, **background**: of what was right without the guard and is no part of the concept, how often it still is.
- **near**: of neighbours' prompts met without the guard, those still met. **identical**: retain prompts whose image is the bare
  pipeline's, bit for bit. **kept**: retain prompts met without the guard that are still met. **as edited**: of SafeRedir on top
  of an edit of weights, retain prompts whose image is the edited model's, bit for bit.

Forms of Safe Denoiser: "posterior" for prompts and for `share`, where "replace" would have half of the images replaced by near
copies of benign references; "replace" for `class-part` and posters ([negation sets](negation.md#shares)). A poster's set is one
image, so SPELL is given a radius. **near** of posters: the model gives no near variant back, with or without a guard.

"""


class Run:
    """Models, judges and numbers of one run."""

    def __init__(
        self,
        models: Path | None,
        n: int,
        images: int,
        second: int,
        splits: Sequence[str] = (*TEST_SPLITS, "test-empty"),
        trained: Path | None = None,
    ) -> None:
        self.models, self.n, self.count, self.second = models, n, images, second
        self.splits, self.trained = splits, trained
        #: of neighbours and retain prompts, and whose images the second judge counts
        self.usual = VALIDATION if VALIDATION in splits else TEST_SPLITS[0]
        weights = None if models is None else models / "judge" / "judge.safetensors"
        self.judge = Judge.load(weights) if weights is not None else Judge.load()
        self.template, self.posters = TemplateJudge(), PosterJudge()
        self._pipes: dict[str, Any] = {}
        self._bare: dict[tuple[str, str], Any] = {}

    def pipe(self, model: str) -> Any:
        """The packaged pipeline, or that of the given folders."""
        if model not in self._pipes:
            name = MODELS[model] if self.models is None else self.models / model / "pipeline"
            self._pipes[model] = sr.load_pipeline(str(name))
        return self._pipes[model]

    # ------------------------------------------------------------------ text-conditional

    def images(self, prompts: Sequence[Prompt], guards: Sequence[Guard[Any]], seed: int) -> torch.Tensor:
        """One image a prompt."""
        return generate(self.pipe("flux"), [p.text for p in prompts], guards=guards, seed=seed).images

    def bare(self, task: Task, name: str, prompts: Sequence[Prompt], seed: int) -> tuple[torch.Tensor, Any]:
        """Images of the bare pipeline and what the judge says of them, made once."""
        if (task.name, name) not in self._bare:
            images = self.images(prompts, [], seed)
            self._bare[task.name, name] = images, self.judge.judge(images)
        found: tuple[torch.Tensor, Any] = self._bare[task.name, name]
        return found

    def text_row(self, task: Task, guards: Sequence[Guard[Any]], edit: Sequence[Guard[Any]] = ()) -> dict[str, Any]:
        """All columns of one method on a task of words; `edit`: the edit of weights that a stack is built on."""
        row: dict[str, Any] = {"n": self.n, "concept": {}}
        splits = [*TEST_SPLITS, *(["test-empty"] if task.poster else []), VALIDATION]
        for number, split in enumerate(splits):
            if split not in self.splits:
                continue
            prompts, seed = forget_prompts(task, split, self.n), 1_000_000 * (number + 1)
            before, judged_before = self.bare(task, split, prompts, seed)
            images = self.images(prompts, guards, seed) if guards else before
            judged = self.judge.judge(images)
            if task.poster:
                row["concept"][split] = rate_of(self.posters.given_back(images, task.poster)).to_dict()
                continue
            row["concept"][split] = concept_rate(judged, task).to_dict()
            if split == self.usual:
                again = self.template.judge(images[: self.second])
                row["second judge"] = concept_rate(again, task).to_dict()
                row["broken"] = rate_of(judged.is_broken).to_dict()
                row["other item"] = other_item_kept(judged, judged_before, prompts, task).to_dict()
                row["background"] = background_kept(judged, judged_before, prompts, task).to_dict()
        near, retain = (make(task, self.usual, self.n) for make in (neighbour_prompts, retain_prompts))
        for name, prompts, seed in (("near", near, 8_000_000), ("kept", retain, 9_000_000)):
            before, judged_before = self.bare(task, name, prompts, seed)
            images = self.images(prompts, guards, seed) if guards else before
            if name == "near" and task.poster:
                row[name] = self._variants_kept(images, before, prompts).to_dict()
            else:
                row[name] = prompts_kept(self.judge.judge(images), judged_before, prompts).to_dict()
            if name == "kept":
                row["identical"] = rate_of(identical(before, images)).to_dict()
                if edit:
                    row["as edited"] = rate_of(identical(self.images(prompts, edit, seed), images)).to_dict()
        return row

    def _variants_kept(self, images: torch.Tensor, before: torch.Tensor, prompts: Sequence[Prompt]) -> Rate:
        """Of the near variants given back without the guard, those given back with it."""
        now, then = (
            torch.cat(
                [
                    self.posters.given_back(image[None], prompt.content.title, prompt.content.variant)  # type: ignore[union-attr]
                    for image, prompt in zip(found, prompts, strict=True)
                ]
            )
            for found in (images, before)
        )
        return rate_of(now[then])

    # ------------------------------------------------------------------ without text

    def share_row(self, task: Task, guards: Sequence[Guard[Any]]) -> dict[str, Any]:
        """Share of the concept, of everything else and of broken images among images without a prompt."""
        if task.label is None:
            images = generate_unconditional(self.pipe("ddpm"), self.count, guards=guards, seed=5_000_000).images
        else:
            labels = [task.label] * self.count
            images = generate_classes(self.pipe("dit"), labels, guards=guards, seed=6_000_000).images
        judged, again = self.judge.judge(images), self.template.judge(images[: self.second])
        return {
            "n": self.count,
            "concept": {"share": concept_rate(judged, task).to_dict()},
            "second judge": concept_rate(again, task).to_dict(),
            "broken": rate_of(judged.is_broken).to_dict(),
            "others": {
                "/".join(values.values()): rate_of(judged.shows(values)).to_dict() for values in task.neighbours
            },
            "shows": int(shows_concept(judged, task).sum()),
        }

    def row(self, task: Task, method: str) -> dict[str, Any]:
        """One row of the page; empty where the method has nothing for the task."""
        guards = make_guards(method, task, self.pipe(task.model), self.trained)
        if guards is None:
            return {}
        with torch.no_grad():
            if task.model != "flux":
                return self.share_row(task, guards)
            edit = method.split(" + ")[1] if method in EDIT_STACKS else "none"
            return self.text_row(task, guards, make_guards(edit, task, self.pipe("flux"), self.trained) or ())


def methods_for(task: Task) -> list[str]:
    """Methods that can serve a task."""
    if task.model == "flux":
        return [name for name in ORDER if name not in OF_IMAGES]
    return [name for name in ORDER if name in ("none", *WITHOUT_TEXT)]


def text_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A row a method, with its own number of prompts where they differ."""
    splits = list(next(iter(rows.values()))["concept"])
    measured = ("second judge", "broken", "other item", "background", "near", "identical", "kept", "as edited")
    columns = [name for name in measured if any(name in row for row in rows.values())]
    lines = [
        f"| method | {' | '.join(split.removeprefix('test-') for split in splits)} | {' | '.join(columns)} |",
        "|---" * (1 + len(splits) + len(columns)) + "|",
    ]
    for method, row in rows.items():
        cells = [cell(row["concept"][split]) for split in splits]
        cells += [cell(row[name]) if name in row and row[name]["n"] else "–" for name in columns]
        label = method if len({row["n"] for row in rows.values()}) == 1 else f"{method} (n = {row['n']})"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def share_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """A row a method, and by how much another share is off what leaving the concept out would make of it."""
    lines = [
        "| method | share | second judge | broken | largest change of another share | ... beyond the concept's own share |",
        "|---|---|---|---|---|---|",
    ]
    before = rows.get("none", {})
    for method, row in rows.items():
        changes = ["–", "–"]
        if method != "none" and before:
            changes = [_largest_change(row, before, fills_gap) for fills_gap in (False, True)]
        cells = [cell(row["concept"]["share"]), cell(row["second judge"]), cell(row["broken"]), *changes]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _largest_change(row: dict[str, Any], before: dict[str, Any], fills_gap: bool) -> str:
    """The other share that changed most; with `fills_gap` against its share of what is left without the concept."""
    left = [1 - of["concept"]["share"]["rate"] for of in (row, before)]
    scale = left[0] / left[1] if fills_gap else 1.0
    moved, name = max(
        (abs(rate["rate"] - scale * before["others"][name]["rate"]), name) for name, rate in row["others"].items()
    )
    return f"{moved:.3f} ({name})"


def separation(rows: dict[str, dict[str, Any]]) -> tuple[int, int]:
    """(cells in which the best and the second best method's intervals do not overlap, cells) of one task."""
    apart = total = 0
    guarded = {method: row for method, row in rows.items() if method != "none"}
    for split in next(iter(rows.values()))["concept"]:
        rates = sorted((row["concept"][split] for row in guarded.values()), key=lambda rate: float(rate["rate"]))
        if len(rates) > 1:
            total, apart = total + 1, apart + (rates[0]["high"] < rates[1]["low"])
    return apart, total


def markdown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The page's tables."""
    lines, apart, total = [], 0, 0
    for name, rows in results.items():
        table = text_table(rows) if TASKS[name].model == "flux" else share_table(rows)
        sizes = ", ".join(str(n) for n in sorted({row["n"] for row in rows.values()}))
        lines += [f"## {name} (n = {sizes})", "", *table, ""]
        found = separation(rows)
        apart, total = apart + found[0], total + found[1]
    lines += [f"In {apart} of {total} cells the intervals of the best and the second best method do not overlap.", ""]
    return "\n".join(lines)


def file_part(method: str) -> str:
    """A method's name in the names of --work."""
    return method.replace(" + ", "+")


def largest(work: Path, task: str, method: str) -> Path | None:
    """The file of the most images among those of one cell; None where nothing was measured."""
    start = f"{task}-{file_part(method)}-"
    counts = [path.stem.removeprefix(start) for path in work.glob(f"{start}*.json")]
    most = max((int(count) for count in counts if count.isdigit()), default=None)
    return None if most is None else work / f"{start}{most}.json"


def published(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The cells of the page that lies in `out`; none where there is no page."""
    path = out / "world2.json"
    cells: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="prompts a cell")
    parser.add_argument("--images", type=int, default=500, help="images for a share")
    parser.add_argument("--second", type=int, default=50, help="images that the template judge counts, too")
    parser.add_argument("--tasks", nargs="+", default=task_names(), choices=task_names())
    splits = (*TEST_SPLITS, "test-empty")
    parser.add_argument("--splits", nargs="+", default=list(splits), choices=splits, help="phrasings of the concept")
    parser.add_argument(
        "--validation", action="store_true", help="the guards' validation phrasings in place of test ones"
    )
    parser.add_argument(
        "--guards", type=Path, help="folder of trained guards, <task>-<method>, before the packaged ones"
    )
    parser.add_argument("--methods", nargs="+", default=list(ORDER), choices=ORDER)
    parser.add_argument("--models", type=Path, help="folder of a training, in place of the packaged models")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/world2-results"))
    parser.add_argument(
        "--only-page", action="store_true", help="measure nothing: of each cell the largest in --work, or the page's"
    )
    arguments = parser.parse_args()
    is_part = arguments.validation or set(arguments.splits) != set(splits)
    if is_part and arguments.out == Path("docs"):
        parser.error("the page in docs has every test phrasing; give an --out for --validation or --splits.")
    if arguments.only_page:  # a page of some tasks would lose the others' cells
        arguments.tasks, arguments.methods = task_names(), list(ORDER)
    arguments.work.mkdir(parents=True, exist_ok=True)
    chosen = [VALIDATION] if arguments.validation else arguments.splits
    run = Run(arguments.models, arguments.n, arguments.images, arguments.second, chosen, arguments.guards)
    is_whole = set(chosen) == set(splits)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    before = published(arguments.out) if arguments.only_page else {}
    with Progress() as progress:
        for name in arguments.tasks:
            task = TASKS[name]
            methods = [method for method in methods_for(task) if method in arguments.methods]
            bar = progress.add_task(name, total=len(methods))
            for method in methods:
                count = arguments.n if task.model == "flux" else arguments.images
                only = "" if is_whole or task.model != "flux" else "-" + "-".join(chosen)
                path = arguments.work / f"{name}-{file_part(method)}-{count}{only}.json"
                if arguments.only_page:
                    path = largest(arguments.work, name, method) or path
                elif not path.exists() and (row := run.row(task, method)):  # a guard not there yet is asked for again
                    with replacing(path) as temporary:
                        temporary.write_text(json.dumps(row, indent=1), encoding="utf-8")
                if path.exists():
                    results.setdefault(name, {})[method] = json.loads(path.read_text(encoding="utf-8"))
                elif method in before.get(name, {}):
                    results.setdefault(name, {})[method] = before[name][method]
                progress.advance(bar)
    arguments.out.mkdir(parents=True, exist_ok=True)
    head = HEAD.format(options=" --only-page" if arguments.only_page else "")
    for ending, text in {"json": json.dumps(results, indent=1) + "\n", "md": head + markdown(results)}.items():
        with replacing(arguments.out / f"world2.{ending}") as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
