"""The demo of PictoWorld 2: one task of each kind, without a guard and with one, on the models that are packaged.

The command around it is in cli/demo.py. The numbers of a demo are a glance; `benchmarks/world2.py` measures hundreds of images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from saferedir.guards.base import Guard
from saferedir.pictoworld.evaluation import identical, rate_of
from saferedir.pictoworld.tasks import TEST_SPLITS
from saferedir.pictoworld.world2.captions import Prompt
from saferedir.pictoworld.world2.classes import CLASSES
from saferedir.pictoworld.world2.evaluation import (
    concept_rate,
    generate,
    generate_classes,
    generate_unconditional,
    prompts_kept,
)
from saferedir.pictoworld.world2.judge import Judge
from saferedir.pictoworld.world2.methods import make_guards
from saferedir.pictoworld.world2.poster_judge import PosterJudge
from saferedir.pictoworld.world2.tasks import TASKS, Task, forget_prompts, retain_prompts
from saferedir.utils.figures import method_sheet
from saferedir.utils.packaged import library_version, packaged_model_path
from saferedir.utils.progress import SILENT, Progress

#: the first of these that a task has a guard for is shown; where there is no text, or one image to forget, the last ones serve
CHOICES = ("saferedir", "sld-max", "safe-denoiser")
CHOICES_OF_IMAGES = ("saferedir", "safe-denoiser")
#: times as many images where nothing asks for the concept, which then is in a few of them only
WITHOUT_PROMPT = 4
_COLUMNS = 12  # of a sheet
_SEED_STEP = 10_000


def first_of_each_kind() -> list[Task]:
    """One task of every kind."""
    kinds: dict[str, Task] = {}
    for task in TASKS.values():
        kinds.setdefault(task.kind, task)
    return list(kinds.values())


def demo_guard(task: Task, pipe: Any) -> tuple[str, list[Guard[Any]]] | None:
    """(method, guards) that the demo shows for a task; None where nothing serves it."""
    choices = CHOICES_OF_IMAGES if task.poster or task.model != "flux" else CHOICES
    for method in choices:
        if guards := make_guards(method, task, pipe):
            return method, guards
    return None


def run_world2_demo(
    load: Callable[[str], Any],
    judge: Judge,
    out: Path,
    *,
    forget: int = 8,
    retain: int = 4,
    seed: int = 0,
    progress: Progress = SILENT,
    tasks: Sequence[Task] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Generate one task of each kind without and with a guard; writes <task>.png and summary.json into `out`.

    Args:
        load: name of a packaged model -> pipeline.
        forget, retain: prompts a task that ask for the concept, and that do not.
        changes: arguments of the models' calls, such as `num_inference_steps`.

    Returns:
        The content of summary.json; {"task", "missing"} for a task whose model or guard is not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    chosen = first_of_each_kind() if tasks is None else list(tasks)
    here = [task for task in chosen if packaged_model_path(f"pictoworld-{task.model}") is not None]
    total = sum(2 * (forget + retain if task.model == "flux" else WITHOUT_PROMPT * forget) for task in here)
    pipes: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    with progress.task("generating", total) as advance:
        for task in chosen:
            if task not in here:
                rows.append({"task": task.name, "missing": f"pictoworld-{task.model} is not packaged"})
                continue
            if task.model not in pipes:
                pipes[task.model] = load(f"pictoworld-{task.model}")
            chosen_guard = demo_guard(task, pipes[task.model])
            if chosen_guard is None:
                rows.append({"task": task.name, "missing": "no guard is packaged for it"})
                continue
            method, guards = chosen_guard
            prompts, asks = _prompts(task, forget, retain, seed)

            call = {**changes, "on_progress": lambda images, label=task.name: advance(images, label)}
            bare, guarded = (
                _generated(pipes[task.model], task, prompts, WITHOUT_PROMPT * forget, attached, seed, call)
                for attached in ([], guards)
            )
            rows.append(_row(task, method, judge, prompts, asks, bare, guarded))
            texts = [prompt.text for prompt in prompts] or [_condition(task)] * len(bare)
            shown = slice(0, min(len(bare), _COLUMNS))
            title = f"{task.name} ({task.kind}): the same noise without a guard and with {method}"
            panels = [("none", bare[shown]), (method, guarded[shown])]
            method_sheet(panels, texts[shown], title, min(asks, _COLUMNS)).save(out / f"{task.name}.png")
    summary = {
        "made_by": f"saferedir {library_version()}",
        "forget": forget,
        "retain": retain,
        "seed": seed,
        "tasks": rows,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _condition(task: Task) -> str:
    return "" if task.label is None else f"class {CLASSES[task.label].name}"


def _prompts(task: Task, forget: int, retain: int, seed: int) -> tuple[list[Prompt], int]:
    """Prompts of the four test phrasings in turn, then retain prompts; and how many ask for the concept. None without text."""
    if task.model != "flux":
        return [], WITHOUT_PROMPT * forget
    each = -(-forget // len(TEST_SPLITS))
    by_split = [forget_prompts(task, split, each, seed) for split in TEST_SPLITS]
    asking = list(chain.from_iterable(zip(*by_split, strict=True)))[:forget]
    return asking + retain_prompts(task, "test-seen", retain, seed), len(asking)


def _generated(
    pipe: Any,
    task: Task,
    prompts: Sequence[Prompt],
    count: int,
    guards: Sequence[Guard[Any]],
    seed: int,
    call: dict[str, Any],
) -> Tensor:
    first = _SEED_STEP * (seed + 1)
    if task.model == "flux":
        return generate(pipe, [p.text for p in prompts], guards=guards, seed=first, **call).images
    if task.label is not None:
        return generate_classes(pipe, [task.label] * count, guards=guards, seed=first, **call).images
    return generate_unconditional(pipe, count, guards=guards, seed=first, **call).images


def _row(
    task: Task, method: str, judge: Judge, prompts: Sequence[Prompt], asks: int, bare: Tensor, guarded: Tensor
) -> dict[str, Any]:
    """What the judge counts of one task."""
    posters = PosterJudge()

    def rate(images: Tensor) -> dict[str, Any]:
        shown = (
            rate_of(posters.given_back(images, task.poster)) if task.poster else concept_rate(judge.judge(images), task)
        )
        return shown.to_dict()

    row: dict[str, Any] = {"task": task.name, "kind": task.kind, "model": task.model, "method": method}
    row |= {"shown_without": rate(bare[:asks]), "shown_with": rate(guarded[:asks])}
    row["broken"] = rate_of(judge.judge(guarded).is_broken).to_dict()
    if len(prompts) > asks:
        others = prompts[asks:]
        row["others_kept"] = prompts_kept(judge.judge(guarded[asks:]), judge.judge(bare[asks:]), others).to_dict()
        row["others_identical"] = rate_of(identical(bare[asks:], guarded[asks:])).to_dict()
    return row
