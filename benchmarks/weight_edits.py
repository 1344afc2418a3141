"""UCE and ESD on PictoWorld's three tasks: made by their recipes, then measured like every method of methods.py.

Run: python benchmarks/weight_edits.py --splits test-seen --out docs --work runs/edits
Writes docs/weight_edits.json and docs/weight_edits.md. Guards are kept in --work, and each (task, method) in the JSON file as
soon as it is measured; a killed run goes on. With --validation the guards' validation phrasings are measured, into --work alone:
settings are chosen there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import saferedir as sr
from saferedir.guard import Guard
from saferedir.pictoworld.evaluation import (
    GUIDANCE_SCALE,
    STEPS,
    attributes_kept,
    cell,
    concept_rate,
    generate,
    load_judge,
    rate_of,
)
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.recipes import train_edit
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts

METHODS = ("none", "uce", "esd")
HEAD = """# Weight edits on PictoWorld

Made by `python benchmarks/weight_edits.py --splits test-seen`: UCE and ESD guards by `pictoworld/edit_recipe.py`, {n}
prompts a cell, {steps} DDIM steps, guidance {guidance:g}, the prompts and noise of [methods](methods.md); each rate with its
95 % Wilson interval. How settings were
found, and equations: [UCE](methods/uce.md), [ESD](methods/esd.md).
**Retain kept**: of all (image, attribute) pairs that a prompt without the concept fixes and the unguarded model generated as
asked, those still there. **Seconds**: CPU time of making the guard, on one slow core that it shared.

"""


def guard_of(method: str, task: Task, pipe: Any, work: Path) -> tuple[Guard[Any] | None, float]:
    """The guard of a recipe, made once and kept, and the CPU seconds it took."""
    folder = work / f"{task.name}-{method}"
    if method == "none":
        return None, 0.0
    if not (folder / "guard_config.json").is_file():
        started = time.process_time()
        train_edit(method, pipe, task, folder)
        (folder / "seconds.json").write_text(json.dumps(round(time.process_time() - started, 1)))
    return Guard.from_pretrained(folder), float(json.loads((folder / "seconds.json").read_text()))


class Prompts:
    """Prompts of a task, and the unguarded images of those without the concept."""

    def __init__(self, task: Task, pipe: Any, judge: Judge, splits: tuple[str, ...], n: int) -> None:
        self.task, self.pipe, self.judge = task, pipe, judge
        self.forget = {split: forget_prompts(task, split, n) for split in splits}
        self.retain = retain_prompts(task, splits[0], n)
        self.before = judge.judge(self.images(self.retain, None))

    def images(self, prompts: Any, guard: Guard[Any] | None) -> torch.Tensor:
        return generate(self.pipe, [prompt.text for prompt in prompts], guards=[guard] if guard else []).images

    def measure(self, guard: Guard[Any] | None) -> dict[str, Any]:
        """One row."""
        broken, concept = [], {}
        for split, prompts in self.forget.items():
            judged = self.judge.judge(self.images(prompts, guard))
            concept[split] = concept_rate(judged, self.task).to_dict()
            broken.append(judged.is_broken)
        after = self.before if guard is None else self.judge.judge(self.images(self.retain, guard))
        everything = replace(self.task, forget={})  # on retain prompts every attribute counts
        return {
            "concept": concept,
            "retain_kept": attributes_kept(after, self.before, self.retain, everything).to_dict(),
            "broken": rate_of(torch.cat([*broken, after.is_broken])).to_dict(),
        }


def markdown(cells: dict[str, Any]) -> str:
    """One table a task."""
    lines = []
    for task in TASKS:
        rows = {method: cells[f"{task}/{method}"] for method in METHODS if f"{task}/{method}" in cells}
        splits = [split for split in TEST_SPLITS if any(split in row["concept"] for row in rows.values())]
        names = [f"concept, {split.removeprefix('test-')}" for split in splits]
        columns = ["method", *names, "retain kept", "broken", "seconds"]
        table = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"] if rows else []
        lines += [f"## {task}", "", *table]
        for method, row in rows.items():
            concept = " | ".join(cell(row["concept"][split]) if split in row["concept"] else "" for split in splits)
            rest = f"{cell(row['retain_kept'])} | {cell(row['broken'])} | {row['seconds']:.0f}"
            lines.append(f"| {method} | {concept} | {rest} |")
        missing = [method for method in METHODS if method not in rows]
        lines += ["", *([f"Not measured yet: {', '.join(missing)}.", ""] if missing else [])]
    return "\n".join(lines)


def write_page(record: dict[str, Any], out: Path) -> None:
    """The page of the JSON file."""
    head = HEAD.format(n=record["n"], steps=STEPS, guidance=GUIDANCE_SCALE)
    (out / "weight_edits.md").write_text(head + markdown(record["cells"]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50, help="prompts a cell")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--splits", nargs="+", default=list(TEST_SPLITS), choices=list(TEST_SPLITS), help="phrasings")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/edits"), help="where the guards are kept")
    parser.add_argument("--validation", action="store_true", help="measure the validation phrasings instead")
    arguments = parser.parse_args()
    splits = ("guard-validation",) if arguments.validation else tuple(arguments.splits)
    path = arguments.work / "validation.json" if arguments.validation else arguments.out / "weight_edits.json"
    arguments.work.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"n": arguments.n, "cells": {}}
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    for name in arguments.tasks:
        prompts: Prompts | None = None
        for method in arguments.methods:
            settings = {"n": arguments.n, "splits": list(splits)}
            found = record["cells"].get(f"{name}/{method}", {})
            if settings.items() <= found.items():
                continue
            guard, seconds = guard_of(method, TASKS[name], pipe, arguments.work)
            with torch.no_grad():
                prompts = prompts or Prompts(TASKS[name], pipe, judge, splits, arguments.n)
                row = {**settings, "seconds": seconds, **prompts.measure(guard)}
            print(name, method, json.dumps(row), file=sys.stderr, flush=True)
            record["cells"][f"{name}/{method}"] = row
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not arguments.validation:
        write_page(record, arguments.out)


if __name__ == "__main__":
    main()
