"""Generates one concept's prompts with and without its guard, and turns what the judge finds into plain numbers.

What the numbers look like beside the images: grid.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from saferedir.guards.base import Guard
from saferedir.metrics import Rate
from saferedir.pictoworld.captions import Prompt
from saferedir.pictoworld.evaluation import (
    GUIDANCE_SCALE,
    STEPS,
    Generation,
    attributes_kept,
    concept_rate,
    generate,
    identical,
    rate_of,
)
from saferedir.pictoworld.judge import Judge, Judgement
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.pipelines.precision import fast_precision
from saferedir.utils.progress import Advance

PHRASINGS = {
    "test-seen": "as trained",
    "test-synonym": "synonym",
    "test-implicit": "implicit",
    "test-noisy": "misspelt",
}


@dataclass(frozen=True)
class DemoConfig:
    """How much to generate. `forget` prompts per concept are spread over the four phrasings; `retain` do not ask for it."""

    forget: int = 24
    retain: int = 16
    steps: int = STEPS
    guidance_scale: float = GUIDANCE_SCALE
    seed: int = 0
    batch: int = 50

    def __post_init__(self) -> None:
        for name in ("forget", "retain", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"The demo's {name} is {getattr(self, name)}; expected a whole number >= 1.")

    @property
    def n_images(self) -> int:
        """How many images the whole demo generates."""
        return 2 * len(TASKS) * (self.forget + self.retain)


@dataclass(frozen=True)
class TaskRun:
    """One concept's prompts (forget first), their images without and with the guard, and what the judge found."""

    task: Task
    prompts: list[Prompt]
    splits: list[str]  # of the forget prompts
    unguarded: Generation
    guarded: Generation
    unguarded_judgement: Judgement
    guarded_judgement: Judgement

    @property
    def n_forget(self) -> int:
        """Number of forget prompts."""
        return len(self.splits)


def demo_prompts(task: Task, config: DemoConfig) -> tuple[list[Prompt], list[str]]:
    """Forget prompts spread evenly over the test splits, then retain prompts; and the split of each forget prompt."""
    prompts: list[Prompt] = []
    splits: list[str] = []
    for index, split in enumerate(TEST_SPLITS):
        count = config.forget // len(TEST_SPLITS) + (index < config.forget % len(TEST_SPLITS))
        if count:
            prompts += forget_prompts(task, split, count, config.seed)
            splits += [split] * count
    return prompts + retain_prompts(task, "test-seen", config.retain, config.seed), splits


def run_task(
    pipe: Any,
    guard: Guard[Any],
    judge: Judge,
    task: Task,
    config: DemoConfig,
    advance: Advance = lambda n=1, label="": None,
) -> TaskRun:
    """Generate one task's prompts twice from the same noise, in the same batches and precision."""
    prompts, splits = demo_prompts(task, config)
    generations = []
    for label, chosen in (("without guard", []), ("with guard", [guard])):

        def count(images: int, label: str = label) -> None:
            advance(images, f"{task.name} {label}")

        with fast_precision(pipe.device):
            generation = generate(
                pipe,
                [prompt.text for prompt in prompts],
                guards=chosen,
                steps=config.steps,
                guidance_scale=config.guidance_scale,
                seed=config.seed,
                batch=config.batch,
                on_progress=count,
            )
        generations.append(generation)
    unguarded, guarded = generations
    judged = judge.judge(unguarded.images), judge.judge(guarded.images)
    return TaskRun(task, prompts, splits, unguarded, guarded, *judged)


def measure(run: TaskRun) -> dict[str, Any]:
    """One task's numbers. Rates are plain numbers; their 95 % Wilson intervals are under "intervals"."""
    n, task = run.n_forget, run.task
    before, after = part(run.unguarded_judgement, slice(0, n)), part(run.guarded_judgement, slice(0, n))
    kept_before, kept_after = part(run.unguarded_judgement, slice(n, None)), part(run.guarded_judgement, slice(n, None))
    same = identical(run.unguarded.images, run.guarded.images)
    nothing_forgotten = replace(task, forget={})  # on retain prompts every attribute counts
    rates: dict[str, Rate] = {
        "concept_rate_unguarded": concept_rate(before, task),
        "concept_rate_guarded": concept_rate(after, task),
        "retain_identical_rate": rate_of(same[n:]),
        "retain_attributes_kept": attributes_kept(kept_after, kept_before, run.prompts[n:], nothing_forgotten),
        "broken_rate_guarded": rate_of(after.is_broken),
        "broken_rate_unguarded": rate_of(before.is_broken),
        "forget_attributes_kept": attributes_kept(after, before, run.prompts[:n], task),
        "retain_fired_rate": rate_of(torch.tensor([decision.fired for decision in run.guarded.decisions[n:]])),
    }
    splits = {}
    for split in dict.fromkeys(run.splits):
        rows = torch.tensor([name == split for name in run.splits])
        splits[PHRASINGS[split]] = {
            "concept_rate_unguarded": rate_of(before.shows(dict(task.forget))[rows]).to_dict(),
            "concept_rate_guarded": rate_of(after.shows(dict(task.forget))[rows]).to_dict(),
        }
    return {
        "concept": task.name,
        "n_forget": n,
        "n_retain": len(run.prompts) - n,
        **{name: round(rate.value, 4) for name, rate in list(rates.items())[:5]},
        "seconds_unguarded": round(run.unguarded.seconds, 2),
        "seconds_guarded": round(run.guarded.seconds, 2),
        **{name: round(rate.value, 4) for name, rate in list(rates.items())[5:]},
        "intervals": {name: rate.to_dict() for name, rate in rates.items()},
        "by_phrasing": splits,
    }


def part(judgement: Judgement, rows: slice) -> Judgement:
    """Some rows of a judgement."""
    return Judgement({name: p[rows] for name, p in judgement.probabilities.items()}, judgement.broken[rows])


def image_records(run: TaskRun) -> list[dict[str, Any]]:
    """One plain record per prompt: what was asked, what the guard did, what the judge found."""
    forget = dict(run.task.forget)
    before, after = run.unguarded_judgement.shows(forget).tolist(), run.guarded_judgement.shows(forget).tolist()
    same = identical(run.unguarded.images, run.guarded.images).tolist()
    records = []
    for row, prompt in enumerate(run.prompts):
        decision = run.guarded.decisions[row]
        records.append(
            {
                "concept": run.task.name,
                "prompt": prompt.text,
                "kind": "forget" if row < run.n_forget else "retain",
                "phrasing": PHRASINGS[run.splits[row]] if row < run.n_forget else prompt.level,
                "concept_shown_unguarded": before[row],
                "concept_shown_guarded": after[row],
                "identical": same[row],
                "fired": decision.fired,
                "action": decision.action,
                "prompt_score": decision.prompt_score,
                "image_score": decision.image_score,
                "steps_redirected": decision.steps_redirected,
            }
        )
    return records
