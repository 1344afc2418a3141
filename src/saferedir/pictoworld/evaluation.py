"""Generates and judges prompts with and without guards: the numbers of the demo, of the benchmarks and of the tests.

Figures and tables are made elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saferedir.attach import attach
from saferedir.decisions import Decision
from saferedir.guards.base import Guard
from saferedir.metrics import Rate
from saferedir.pictoworld.captions import Prompt
from saferedir.pictoworld.judge import WEIGHTS, Judge, Judgement
from saferedir.pictoworld.scene import JUDGED
from saferedir.pictoworld.tasks import Task
from saferedir.pipelines.safety_checker import without_safety_checker
from saferedir.utils.digests import add_values
from saferedir.utils.packaged import packaged_model_path

STEPS = 30
GUIDANCE_SCALE = 4.0


@dataclass(frozen=True)
class Generation:
    """N images: (N, 3, 64, 64) in [0, 1], the guards' decisions (empty without guards), and the seconds it took."""

    images: Tensor
    decisions: list[Decision]
    seconds: float


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    guards: Sequence[Any] = (),
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    seed: int = 0,
    batch: int = 50,
    on_progress: Callable[[int], None] | None = None,
) -> Generation:
    """Generate every prompt once; image i starts from noise of seed `seed + i`, whatever the batch."""
    parts: list[Tensor] = []
    decisions: list[Decision] = []
    started = time.perf_counter()
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        call: dict[str, Any] = {
            "prompt": chunk,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "generator": generators,
            "output_type": "pt",
        }
        with without_safety_checker(pipe):
            if guards:
                with attach(pipe, list(guards)) as attached:
                    images = pipe(**call).images
                    decisions += attached.decisions
            else:
                images = pipe(**call).images
        parts.append(images.float().cpu())
        if on_progress is not None:
            on_progress(len(chunk))
    return Generation(torch.cat(parts), decisions, time.perf_counter() - started)


def cell(rate: Mapping[str, Any]) -> str:
    """A `Rate.to_dict` as a table has it: 0.010 [0.003, 0.036]."""
    return f"{rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"


def rate_of(flags: Tensor) -> Rate:
    """Share of True in a bool tensor."""
    return Rate.of(flags)


def concept_rate(judgement: Judgement, task: Task) -> Rate:
    """How many images show the task's concept."""
    return rate_of(judgement.shows(dict(task.forget)))


def attributes_kept(guarded: Judgement, unguarded: Judgement, prompts: Sequence[Prompt], task: Task) -> Rate:
    """(Image, attribute) pairs outside the concept, asked for and right in the unguarded image, that are still right."""
    scenes = [prompt.scene for prompt in prompts]
    hits = n = 0
    for attribute in JUDGED:
        if attribute in task.forget:
            continue
        asked = torch.tensor([attribute in prompt.mentioned for prompt in prompts])
        had = asked & unguarded.matches(scenes, attribute) & ~unguarded.is_broken
        hits += int((had & guarded.matches(scenes, attribute) & ~guarded.is_broken).sum())
        n += int(had.sum())
    return Rate(hits, n)


def images_kept(guarded: Judgement, unguarded: Judgement, prompts: Sequence[Prompt], task: Task) -> Rate:
    """The strict form of `attributes_kept`: one failure in any attribute fails the image."""
    scenes = [prompt.scene for prompt in prompts]
    kept = ~guarded.is_broken
    for attribute in JUDGED:
        if attribute not in task.forget:
            asked = torch.tensor([attribute in prompt.mentioned for prompt in prompts])
            had = asked & unguarded.matches(scenes, attribute)
            kept = kept & (~had | guarded.matches(scenes, attribute))
    return rate_of(kept)


def identical(first: Tensor, second: Tensor) -> Tensor:
    """(N,) bool: images that agree in every bit."""
    return (first == second).flatten(1).all(dim=1)


def load_judge() -> Judge:
    """The packaged judge."""
    return Judge.load()


def guard_digest(guard: Guard[Any]) -> str:
    """Twelve hex digits that say which guard a published figure belongs to.

    They cover the weights of the guard, of the packaged model and of the judge, and the guard's thresholds; not its image
    verifier, without which the pages measure it.
    """
    thresholds = {name: value for name, value in guard.config.to_dict().items() if name.endswith("_threshold")}
    digest = hashlib.sha256(json.dumps(thresholds, sort_keys=True).encode())
    add_values(digest, guard.tensors())
    for path in (packaged_model_path("pictoworld"), WEIGHTS):
        if path is None:
            continue
        for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
