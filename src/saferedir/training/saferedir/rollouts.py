"""Roll-outs of both sides of a split: which prompts are generated, at which guidance scales, and what is kept of them.

Used by train.py (to fit and to calibrate) and recalibrate.py (to calibrate).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError
from saferedir.pipelines.schedules import least_steps
from saferedir.training.saferedir.batches import ImageData
from saferedir.training.saferedir.dataset import Pair, encode_on_cpu, roll_out

#: guidance scales that thresholds are calibrated over, besides the one of training
GUIDANCE_SCALES = (1.0, 4.0, 7.5, 12.0)
#: steps of short roll-outs, which say from how many steps on the last image verdict can be relied on
SHORT_STEPS = (1, 2, 4)
#: images of each of these, of both sides
SHORT_IMAGES = 120


class Prompts(NamedTuple):
    """Texts to roll out, of both sides."""

    unsafe: list[str]
    benign: list[str]


def short_steps(pipe: Any, longest: int) -> list[int]:
    """Those of `SHORT_STEPS` that are fewer than `longest` and that the pipeline's scheduler can do."""
    return [steps for steps in SHORT_STEPS if least_steps(pipe.scheduler) <= steps < longest]


def rollout_prompts(pairs: Sequence[Pair], count: int, seed: int) -> Prompts:
    """`count` prompts in the order of `seed`, half unsafe, the rest from benign lines and safe sides in turn."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    unsafe = [str(pairs[i].unsafe) for i in order if pairs[i].unsafe is not None][: count // 2]
    lines = [pairs[i].safe for i in order if pairs[i].unsafe is None]
    sides = [pairs[i].safe for i in order if pairs[i].unsafe is not None]
    wanted = count - len(unsafe)
    from_lines = lines[: max(wanted - len(sides), round(0.6 * wanted))]
    return Prompts(unsafe, from_lines + sides[: wanted - len(from_lines)])


def calibration_scales(guidance_scale: float) -> tuple[float, ...]:
    """The scales to calibrate over for a guard trained at `guidance_scale`; that alone for a model that is run without."""
    return (guidance_scale,) if guidance_scale <= 1 else tuple(sorted({guidance_scale, *GUIDANCE_SCALES}))


def generate_rollouts(
    pipe: Any,
    prompts: Prompts,
    *,
    steps: int,
    guidance_scales: Sequence[float],
    seed: int,
    batch: int | None = None,
    call: Mapping[str, Any] | None = None,
    view: str = "x0",
    cache: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ImageData:
    """Roll out every prompt once; the prompts of each side take turns among the guidance scales.

    Those of the first scale start from noise of seed `seed` on, one more each, those of the next from there on, and so on.
    """
    frames = torch.empty(0)
    labels: list[float] = []
    scales: list[float] = []
    texts: list[str] = []
    times: Tensor | None = None
    for turn, scale in enumerate(guidance_scales):
        unsafe, benign = (side[turn :: len(guidance_scales)] for side in prompts)
        if not (chosen := unsafe + benign):
            continue
        rolled = roll_out(
            pipe, chosen, steps=steps, guidance_scale=scale, batch=batch, call=call, view=view,
            seed=seed + len(texts), cache=cache, on_progress=on_progress,
        )  # fmt: skip
        if not texts:  # all frames are held in memory once
            frames = rolled.frames.new_empty(sum(map(len, prompts)), *rolled.frames.shape[1:])
        frames[len(texts) : len(texts) + len(chosen)] = rolled.frames
        labels += [1.0] * len(unsafe) + [0.0] * len(benign)
        scales += [float(scale)] * len(chosen)
        texts += chosen
        times = rolled.t
    if times is None:
        raise GuardConfigError("there is no prompt to roll out; give more pairs.")
    return ImageData(
        frames=frames,
        prompts=encode_on_cpu(pipe, texts, call),
        label=torch.tensor(labels),
        t=times,
        scale=torch.tensor(scales),
    )
