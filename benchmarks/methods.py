"""Every method on PictoWorld's three tasks, side by side; writes docs/methods.md from docs/methods.json.

Run: python benchmarks/methods.py --out docs
Same prompts, same noise, same settings for all; the judge is not part of any method. Each (task, method) is kept in the JSON file
as soon as it is measured, with a checksum of the weights and settings it belongs to: a killed run goes on, and only what
changed is measured again. Two runs may share the work: give each some of the --tasks and an --out of its own, then --merge.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

import saferedir as sr
from saferedir.guard import Guard
from saferedir.pictoworld.evaluation import (
    GUIDANCE_SCALE,
    STEPS,
    attributes_kept,
    cell,
    concept_rate,
    generate,
    identical,
    load_judge,
    rate_of,
)
from saferedir.pictoworld.judge import WEIGHTS, Judge
from saferedir.pictoworld.methods import CONTROLS, ORDER, USUAL, make_guards
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.pipelines.precision import fast_precision, precision_name
from saferedir.utils.digests import add_values
from saferedir.utils.packaged import library_version, packaged_model_path

HEAD = """# Methods on PictoWorld

Made by `python benchmarks/methods.py --out docs`: {n} prompts a cell (where a row says another n, so many), {steps} DDIM steps,
guidance {guidance:g}, the same prompts and noise for every method; each rate with its 95 % Wilson interval. Words and images the
methods were given: `pictoworld/methods.py`. Nothing was tuned on these prompts, and a method that cannot do a task is shown as it
is. `saferedir` is the packaged guard, `saferedir-usual` the one [without rules and tests](hardening.md#hardened-guards).

- **Concept**: share of images that show it, for the phrasings of training and for synonyms, descriptions and
  misspellings that it was not trained on.
- **Retain kept**: of all (image, attribute) pairs that a prompt without the concept fixes and the unguarded model generated
  as asked, those still there. **Drift**: mean distance of the judge's features to the unguarded image's, 1 being the mean
  distance between the unguarded images of two different prompts; 0 is bit-identical. **Broken**: images without a
  clear scene, forget and retain together.
- **SAFREE** here has latent re-attention (`lra="paper"`, off by default in the class), which costs a third row in the steps that
  filter: `safree` filters the first few steps of a run as the paper has it, `safree-all-steps` all of them.
- **Time**: CPU time of the forget images against the unguarded ones' in the same run. Other work on the machine moves it by a
  tenth or two (a ratio below 1 is that); `saferedir bench run pictoworld-quick` gives times with intervals.

"""

#: every row there may be: the comparison, and the usual guards and the controls if they were asked for by --methods
SHOWN = (*ORDER, *USUAL, *CONTROLS)


def digest_of(guards: Sequence[Guard[Any]], n: int) -> str:
    """Checksum of all a cell depends on: model, judge, guards' settings and weights, n."""
    found = hashlib.sha256(f"{n} {STEPS} {GUIDANCE_SCALE}".encode())
    model = packaged_model_path("pictoworld")
    for place in (*(sorted(model.rglob("*.safetensors")) if model else ()), WEIGHTS):
        found.update(place.read_bytes())
    for guard in guards:
        settings = {k: v for k, v in guard.config.settings().items() if k not in ("training", "measured", "backbone")}
        found.update(json.dumps([guard.method, settings], sort_keys=True).encode())
        add_values(found, guard.tensors())
    return found.hexdigest()[:12]


class Bench:
    """One task: prompts, and the unguarded images that all methods are compared with."""

    def __init__(self, task: Task, pipe: Any, judge: Judge, n: int) -> None:
        self.task, self.pipe, self.judge = task, pipe, judge
        self.forget = {split: forget_prompts(task, split, n) for split in TEST_SPLITS}
        self.retain = retain_prompts(task, "test-seen", n)
        self.plain = self.generated(self.retain, [])[0]
        self.before = judge.judge(self.plain)
        features = judge.features(self.plain)
        self.features, self.unit = features, float((features - features.roll(1, 0)).norm(dim=1).mean())
        self.cost: float | None = None

    def generated(self, prompts: Sequence[Any], guards: Sequence[Guard[Any]]) -> tuple[Tensor, float]:
        """(images, CPU seconds)."""
        started = time.process_time()
        images = generate(self.pipe, [p.text for p in prompts], guards=guards).images
        return images, time.process_time() - started

    def unguarded_cost(self) -> float:
        """CPU seconds of the unguarded images of test-seen, generated once a process."""
        if self.cost is None:
            self.cost = self.generated(self.forget["test-seen"], [])[1]
        return self.cost

    def measure(self, guards: Sequence[Guard[Any]], advance: Any) -> dict[str, Any]:
        """One cell."""
        out: dict[str, Any] = {"concept": {}}
        broken = []
        for split, prompts in self.forget.items():
            images, seconds = self.generated(prompts, guards)
            judged = self.judge.judge(images)
            out["concept"][split] = concept_rate(judged, self.task).to_dict()
            broken.append(judged.is_broken)
            if split == "test-seen":
                out["time_ratio"] = round(seconds / self.unguarded_cost(), 3) if guards else 1.0
            advance(len(prompts))
        images = self.generated(self.retain, guards)[0] if guards else self.plain
        judged = self.judge.judge(images)
        drift = (self.judge.features(images) - self.features).norm(dim=1) / self.unit
        everything = replace(self.task, forget={})  # on retain prompts every attribute counts
        out["retain_kept"] = attributes_kept(judged, self.before, self.retain, everything).to_dict()
        out["retain_drift"] = round(float(drift.mean()), 4)
        out["retain_identical"] = rate_of(identical(self.plain, images)).to_dict()
        out["broken"] = rate_of(torch.cat([*broken, judged.is_broken])).to_dict()
        advance(len(self.retain))
        return out


def markdown(cells: dict[str, dict[str, Any]], n: int) -> str:
    """The page's tables, one a task; a row that was measured on other than `n` prompts a cell says on how many."""
    lines = []
    for task in TASKS:
        rows = [(method, cells[f"{task}/{method}"]) for method in SHOWN if f"{task}/{method}" in cells]
        if not rows:
            continue
        columns = "method|concept, as trained|synonyms|described|misspelt|retain kept|drift|broken|time".split("|")
        lines += [f"## {task}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for method, row in rows:
            concept = " | ".join(cell(row["concept"][split]) for split in TEST_SPLITS)
            label = method if row["n"] == n else f"{method} (n = {row['n']})"
            lines.append(
                f"| {label} | {concept} | {cell(row['retain_kept'])} | {row['retain_drift']:.3f} | {cell(row['broken'])} "
                f"| {row['time_ratio']:.2f} |"
            )
        missing = [method for method in ORDER if f"{task}/{method}" not in cells]
        lines += ["", *([f"Not measured yet: {', '.join(missing)}.", ""] if missing else [])]
    return "\n".join(lines)


def write(out: Path, cells: dict[str, dict[str, Any]], n: int) -> None:
    """The JSON file and the page."""
    order = {f"{task}/{method}": None for task in TASKS for method in SHOWN}
    kept = {name: cells[name] for name in order if name in cells}
    record = {"made_by": f"saferedir {library_version()}", "n": n, "cells": kept}
    for name, text in (
        ("methods.json", json.dumps(record, indent=1) + "\n"),
        ("methods.md", HEAD.format(n=n, steps=STEPS, guidance=GUIDANCE_SCALE) + markdown(kept, n)),
    ):
        (out / f".{name}").write_text(text, encoding="utf-8")
        (out / f".{name}").replace(out / name)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """Cells of an earlier run."""
    path = out / "methods.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())["cells"] if path.is_file() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="prompts a cell")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(ORDER), choices=list(SHOWN))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="other --out folders whose cells to take in")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cells = read(arguments.out)
    for other in arguments.merge:
        cells |= read(other)
    if arguments.merge:
        write(arguments.out, cells, arguments.n)
        return
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    pipe.set_progress_bar_config(disable=True)
    with Progress() as progress, fast_precision(pipe.device), torch.no_grad():
        for name in arguments.tasks:
            bench: Bench | None = None
            for method in arguments.methods:
                guards = make_guards(method, TASKS[name], pipe)
                if guards is None:
                    continue
                digest = digest_of(guards, arguments.n)
                if cells.get(f"{name}/{method}", {}).get("of") == digest:
                    continue
                bench = bench or Bench(TASKS[name], pipe, judge, arguments.n)
                bar = progress.add_task(f"{name}: {method}", total=5 * arguments.n)
                found = bench.measure(guards, lambda count, bar=bar: progress.advance(bar, count))
                cells[f"{name}/{method}"] = {
                    "of": digest,
                    "n": arguments.n,
                    "precision": precision_name(pipe.device),
                    **found,
                }
                write(arguments.out, cells, arguments.n)


if __name__ == "__main__":
    main()
