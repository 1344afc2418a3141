"""Generates with the models of PictoWorld 2, with and without guards, and counts what their judges say.

`FLUX_CALL`, `DIT_CALL` and `DDPM_CALL` are how the models are meant to be called: FLUX's own defaults are those of a model for
large images and long prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from saferedir.attach import attach
from saferedir.decisions import Decision
from saferedir.metrics import Rate
from saferedir.pictoworld.evaluation import Generation, rate_of
from saferedir.pictoworld.world2.captions import Prompt
from saferedir.pictoworld.world2.judgement import Judgement
from saferedir.pictoworld.world2.tasks import Task, other_keys

#: 64 pixels, the 32 tokens that the text encoders were made for, classifier-free guidance in two passes
FLUX_CALL: Mapping[str, Any] = MappingProxyType(
    {"height": 64, "width": 64, "max_sequence_length": 32, "true_cfg_scale": 3.0, "num_inference_steps": 20}
)
#: without guidance, which would make frequent sub-populations more frequent
DIT_CALL: Mapping[str, Any] = MappingProxyType({"guidance_scale": 1.0, "num_inference_steps": 30})
DDPM_CALL: Mapping[str, Any] = MappingProxyType({"num_inference_steps": 30})


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    guards: Sequence[Any] = (),
    seed: int = 0,
    batch: int = 50,
    on_progress: Callable[[int], None] | None = None,
    **changes: Any,
) -> Generation:
    """Generate every prompt once with FLUX; image i starts from noise of seed `seed + i`, whatever the batch.

    `changes` replaces arguments of `FLUX_CALL`.
    """

    def arguments(rows: slice) -> dict[str, Any]:
        texts = list(prompts[rows])
        return {**FLUX_CALL, "prompt": texts, "negative_prompt": [""] * len(texts), **changes}

    return _generate(pipe, len(prompts), arguments, guards, seed, batch, on_progress)


def generate_classes(
    pipe: Any,
    labels: Sequence[int],
    *,
    guards: Sequence[Any] = (),
    seed: int = 0,
    batch: int = 50,
    on_progress: Callable[[int], None] | None = None,
    **changes: Any,
) -> Generation:
    """Generate every class label once with DiT; seeds as in `generate`, `changes` replaces arguments of `DIT_CALL`."""

    def arguments(rows: slice) -> dict[str, Any]:
        return {**DIT_CALL, "class_labels": list(labels[rows]), **changes}

    return _generate(pipe, len(labels), arguments, guards, seed, batch, on_progress)


def generate_unconditional(
    pipe: Any,
    count: int,
    *,
    guards: Sequence[Any] = (),
    seed: int = 0,
    batch: int = 50,
    on_progress: Callable[[int], None] | None = None,
    **changes: Any,
) -> Generation:
    """Generate `count` images without a condition; seeds as in `generate`, `changes` replaces arguments of `DDPM_CALL`."""

    def arguments(rows: slice) -> dict[str, Any]:
        return {**DDPM_CALL, "batch_size": len(range(count)[rows]), **changes}

    return _generate(pipe, count, arguments, guards, seed, batch, on_progress)


def _generate(
    pipe: Any,
    count: int,
    arguments: Callable[[slice], dict[str, Any]],
    guards: Sequence[Any],
    seed: int,
    batch: int,
    on_progress: Callable[[int], None] | None,
) -> Generation:
    parts: list[Tensor] = []
    decisions: list[Decision] = []
    started = time.perf_counter()
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        call = arguments(rows)
        call["generator"] = [torch.Generator().manual_seed(seed + i) for i in range(start, rows.stop)]
        if guards:
            with attach(pipe, list(guards)) as attached:
                images = pipe(**call, output_type="np").images
                decisions += attached.decisions
        else:
            images = pipe(**call, output_type="np").images
        parts.append(torch.from_numpy(images).permute(0, 3, 1, 2).float())
        if on_progress is not None:
            on_progress(len(images))
    return Generation(torch.cat(parts), decisions, time.perf_counter() - started)


def shows_concept(judgement: Judgement, task: Task) -> Tensor:
    """(B,) bool: images that show any of the task's concepts, broken or not; of scenes, not of posters."""
    return torch.stack([judgement.is_labelled(values) for values in task.forget]).any(dim=0)


def concept_rate(judgement: Judgement, task: Task) -> Rate:
    """How many images show any of the task's concepts and are not broken."""
    return rate_of(shows_concept(judgement, task) & ~judgement.is_broken)


def other_item_kept(guarded: Judgement, unguarded: Judgement, prompts: Sequence[Prompt], task: Task) -> Rate:
    """Of the two-item forget prompts whose other item was right without the guard: how often it still is, in its place."""
    keys = [
        [key for key in other_keys(task, prompt) if key != "background"] if prompt.scene.is_pair else []
        for prompt in prompts
    ]
    asked = torch.tensor([bool(of_prompt) for of_prompt in keys], dtype=torch.bool)
    had = asked & unguarded.meets(prompts, keys)
    return rate_of((guarded.meets(prompts, keys))[had])


def background_kept(guarded: Judgement, unguarded: Judgement, prompts: Sequence[Prompt], task: Task) -> Rate:
    """Of the forget prompts whose background is no part of the concept and was right without the guard: how often it still is."""
    keys = [[key for key in other_keys(task, prompt) if key == "background"] for prompt in prompts]
    asked = torch.tensor([bool(of_prompt) for of_prompt in keys], dtype=torch.bool)
    had = asked & unguarded.meets(prompts, keys)
    return rate_of((guarded.meets(prompts, keys))[had])


def prompts_kept(guarded: Judgement, unguarded: Judgement, prompts: Sequence[Prompt]) -> Rate:
    """Of the retain prompts met without the guard: how many are still met. Posters' titles do not count, either way."""
    had = unguarded.meets(prompts)
    return rate_of(guarded.meets(prompts)[had])
