"""Runs at sizes that the image verdict was not calibrated at are refused, unless they are asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.contract.guards import GUARDS, Watcher, shared_pipeline
from tests.newer_pipelines import EVERY
from tests.tiny_pipelines import PIPELINES, run

import saferedir as sr
from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir import SafeRedirConfig
from saferedir.guards.saferedir.fit import require_calibrated_size

RECORD = {"latent_sizes": [[16, 16]]}


def step(height: int, width: int) -> Any:
    return SimpleNamespace(x_t=torch.zeros(1, 4, height, width))


@pytest.mark.parametrize("size", [(16, 16), (14, 18), (12, 20)])
def test_sizes_of_the_calibrated_area_run(size: tuple[int, int]) -> None:
    require_calibrated_size(SafeRedirConfig(concept="x", calibration=RECORD), step(*size))


@pytest.mark.parametrize("size", [(12, 12), (24, 24), (16, 32)])
def test_others_are_refused_unless_the_verdict_is_off_or_they_are_allowed(size: tuple[int, int]) -> None:
    with pytest.raises(sr.GuardError, match=rf"'x' was calibrated on latents of 16 x 16, and these are of {size[0]} x"):
        require_calibrated_size(SafeRedirConfig(concept="x", calibration=RECORD), step(*size))
    cases: tuple[dict[str, Any], ...] = ({"other_sizes": "allow"}, {"use_image": False}, {"calibration": {}})
    for changes in cases:
        require_calibrated_size(SafeRedirConfig(**{"concept": "x", "calibration": RECORD, **changes}), step(*size))
    with pytest.raises(GuardConfigError, match="other_sizes"):
        SafeRedirConfig(concept="x", other_sizes="maybe")


def test_no_image_comes_out_of_a_run_at_another_size() -> None:
    case, pipe = PIPELINES["sd"], shared_pipeline("sd")
    guard = GUARDS["saferedir"].make(pipe, case).with_settings(calibration={"latent_sizes": [[32, 32]]})  # type: ignore[attr-defined]
    with sr.attach(pipe, guard) as attached:
        with pytest.raises(sr.GuardError, match="calibrated on latents of 32 x 32"):
            run(case, pipe)
        assert attached.runs == 0
    with sr.attach(pipe, guard.with_settings(other_sizes="allow")) as attached:
        run(case, pipe)
        assert attached.runs == 1


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "qwen-image", "flux-2-klein", "z-image"])
def test_another_bucket_of_the_same_area_runs_and_another_area_is_refused(name: str) -> None:
    """In cells of the latents that guards are given, whatever the pipeline makes tokens of."""
    case, pipe, watcher = EVERY[name], shared_pipeline(name), Watcher()
    height, width = case.settings["height"], case.settings["width"]
    with sr.attach(pipe, watcher):
        run(case, pipe, steps=1)
    rows, columns = watcher.steps[0].x_t.shape[-2:]
    guard = GUARDS["saferedir"].make(pipe, case).with_settings(calibration={"latent_sizes": [[rows, columns]]})  # type: ignore[attr-defined]
    with sr.attach(pipe, guard) as attached:
        run(case, pipe, steps=1, height=width, width=height)
        with pytest.raises(
            sr.GuardError, match=rf"latents of {rows} x {columns}, and these are of {2 * rows} x {columns},"
        ):
            run(case, pipe, steps=1, height=2 * height)
        assert attached.runs == 1
