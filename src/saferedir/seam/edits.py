"""Edits: a run's values on their way through its guards, in order: skip features, the prediction with its estimate, latents.

Pure functions; no pipeline, no scheduler. Used by `session`. What no guard touched is returned as the very object that
came in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saferedir.guards.base import Guard, SkipFeatures, Step
from saferedir.pipelines.schedules import from_x0, to_x0
from saferedir.seam.consult import ask, checked, users
from saferedir.seam.riding import ExtraRows
from saferedir.seam.rows import Layout, changed_rows, check_finite


def told(steps: Sequence[Step], **values: Any) -> list[Step]:
    """The steps of all guards, each with these values."""
    return [replace(step, **values) for step in steps]


def edited_skip_features(
    guards: Sequence[Guard[Any]], steps: Sequence[Step], values: Tensor, stage: int, layout: Layout, extra: ExtraRows
) -> Tensor:
    """Skip features (R + extra, C, h, w) of one layer, after "on_skip_features"."""
    for position, guard in users(guards, "on_skip_features"):
        own, blocks = extra.split(values, is_second=False)
        cond, uncond = layout.split(own)
        skip = SkipFeatures(cond, uncond, blocks[position][: extra.copies[position]], stage)
        answer = ask(guard, "on_skip_features", guard.on_skip_features, steps[position], skip)
        new = checked(guard, "on_skip_features", answer, cond)
        if new is not cond:
            values = torch.cat([layout.join(new, uncond), values[own.shape[0] :]])
    return values


def edited_prediction(guards: Sequence[Guard[Any]], steps: Sequence[Step], pred: Tensor) -> tuple[Tensor, list[Step]]:
    """(prediction, steps that know it and its estimate) after "on_prediction" and "on_denoised".

    pred (B, C, h, w): the guided prediction. steps: one a guard, in the sampler's own frame.
    """
    kind, x_t, alpha, sigma = steps[0].run.prediction_type, steps[0].x_t.float(), steps[0].alpha, steps[0].sigma

    def x0_of(rows: Tensor) -> Tensor:
        return to_x0(kind, rows.float(), x_t, alpha, sigma)

    now, edited = list(steps), pred
    if steps[0].pred_uncond is not None:
        now = told(now, x0_uncond=x0_of(steps[0].pred_uncond))
    now = told(now, pred=pred, x0=x0_of(pred))
    for position, guard in users(guards, "on_prediction"):
        answer = ask(guard, "on_prediction", guard.on_prediction, now[position])
        new = checked(guard, "on_prediction", answer, edited)
        if new is not edited:
            edited = new
            now = told(now, pred=edited, x0=x0_of(edited))
    for position, guard in users(guards, "on_denoised"):
        x0 = now[position].x0
        assert x0 is not None
        new = checked(guard, "on_denoised", ask(guard, "on_denoised", guard.on_denoised, now[position], x0), x0)
        if new is not x0:
            meant = from_x0(kind, new, x_t, alpha, sigma).to(edited.dtype)
            edited = torch.where(changed_rows(new, x0), meant, edited)
            now = told(now, pred=edited, x0=new)
    if edited is not pred:
        check_finite(edited, "the prediction edited by a guard")
    return edited, now


def edited_latents(guards: Sequence[Guard[Any]], steps: Sequence[Step], latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) of the next step, after "on_step_end"."""
    for position, guard in users(guards, "on_step_end"):
        answer = ask(guard, "on_step_end", guard.on_step_end, steps[position], latents)
        latents = checked(guard, "on_step_end", answer, latents)
    return latents
