"""The demo of all methods: one row a method, one column a prompt, and what a judge counts.

The command around it is in cli/demo.py. The numbers of a demo are a glance; docs/methods.md has the same over
hundreds of prompts with intervals.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.pictoworld.captions import Prompt
from saferedir.pictoworld.evaluation import (
    GUIDANCE_SCALE,
    STEPS,
    attributes_kept,
    concept_rate,
    generate,
    identical,
    rate_of,
)
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.methods import ORDER, make_guards
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.pipelines.precision import fast_precision
from saferedir.utils.figures import method_sheet
from saferedir.utils.packaged import library_version
from saferedir.utils.progress import SILENT, Progress


def compare_methods(
    pipe: Any,
    judge: Judge,
    out: Path,
    *,
    tasks: Sequence[str] = tuple(TASKS),
    methods: Sequence[str] = ORDER,
    forget: int = 8,
    retain: int = 4,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Generate every task with every method; writes <task>.png and summary.json into `out` and returns the latter's content."""
    out.mkdir(parents=True, exist_ok=True)
    rows_of_task: dict[str, list[dict[str, Any]]] = {}
    with progress.task("generating", len(tasks) * len(methods) * (forget + retain)) as advance:
        for name in tasks:
            task = TASKS[name]
            prompts, asks = _prompts(task, forget, retain, seed)
            rows: list[tuple[str, Tensor]] = []
            rows_of_task[name] = []
            for method in methods:
                guards = make_guards(method, task, pipe)
                if guards is None:
                    rows_of_task[name].append(
                        {"method": method, "missing": "no such guard is packaged for this concept"}
                    )
                    continue

                def count(images: int, label: str = f"{name}: {method}") -> None:
                    advance(images, label)

                with fast_precision(pipe.device):
                    generation = generate(
                        pipe, [p.text for p in prompts], guards=guards, steps=steps, seed=seed, on_progress=count
                    )
                rows.append((method, generation.images))
                rows_of_task[name].append(
                    _row(method, judge, task, prompts, asks, rows[0][1], generation.images, generation.seconds)
                )
            title = f"{name}: the same prompts and noise under every method; right of the line, prompts without it"
            method_sheet(rows, [p.text for p in prompts], title, asks).save(out / f"{name}.png")
    summary = {
        "made_by": f"saferedir {library_version()}",
        "forget": forget,
        "retain": retain,
        "steps": steps,
        "guidance_scale": GUIDANCE_SCALE,
        "seed": seed,
        "tasks": rows_of_task,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _prompts(task: Task, forget: int, retain: int, seed: int) -> tuple[list[Prompt], int]:
    """Prompts of the four test phrasings in turn, then retain prompts; and how many ask for the concept."""
    each = -(-forget // len(TEST_SPLITS))
    by_split = [forget_prompts(task, split, each, seed) for split in TEST_SPLITS]
    asking = [prompt for group in zip(*by_split, strict=True) for prompt in group][:forget]
    return asking + retain_prompts(task, "test-seen", retain, seed), len(asking)


def _row(
    method: str,
    judge: Judge,
    task: Task,
    prompts: Sequence[Prompt],
    asks: int,
    plain: Tensor,
    images: Tensor,
    seconds: float,
) -> dict[str, Any]:
    with torch.no_grad():
        moved = (judge.features(images[asks:]) - judge.features(plain[asks:])).norm(dim=1)
        unit = judge.features(plain[asks:]) - judge.features(plain[asks:]).roll(1, 0)
    judged, kept, before = judge.judge(images[:asks]), judge.judge(images[asks:]), judge.judge(plain[asks:])
    return {
        "method": method,
        "concept_rate": concept_rate(judged, task).to_dict(),
        "retain_kept": attributes_kept(kept, before, prompts[asks:], replace(task, forget={})).to_dict(),
        "retain_drift": round(float(moved.mean() / unit.norm(dim=1).mean().clamp(min=1e-6)), 4),
        "retain_identical": rate_of(identical(plain[asks:], images[asks:])).to_dict(),
        "broken": rate_of(torch.cat([judged.is_broken, kept.is_broken])).to_dict(),
        "seconds": round(seconds, 2),
    }
