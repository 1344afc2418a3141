"""Modular pipelines under every guider: refused with a sentence, and none runs on the modules of a guarded pipeline."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from diffusers import guiders
from tests.contract.guards import GUARDS, shared_pipeline
from tests.tiny_pipelines import PIPELINES, run

import saferedir as sr
from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.families import refusal_of

GUIDERS = {
    name: cls
    for name, cls in inspect.getmembers(guiders, inspect.isclass)
    if issubclass(cls, guiders.BaseGuidance) and cls is not guiders.BaseGuidance
}
MODULAR = sorted(name for name in dir(diffusers) if name.endswith("ModularPipeline"))


def made(name: str) -> Any:
    """A guider with its defaults."""
    arguments: dict[str, Any] = {}
    takes = inspect.signature(GUIDERS[name].__init__).parameters
    layers = [key for key in takes if key.endswith("_layers")]
    if layers:
        arguments[layers[0]] = 0
    if "dropout" in takes:
        arguments["dropout"] = 0.1
    if name == "FrequencyDecoupledGuidance":
        pytest.importorskip("kornia")
    return GUIDERS[name](**arguments)


def modular(guider: str) -> Any:
    """A modular SDXL around the modules of the shared tiny pipeline."""
    standard = shared_pipeline("sdxl")
    pipe = diffusers.StableDiffusionXLModularPipeline()
    names = ("unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipe.update_components(**{name: getattr(standard, name) for name in names}, guider=made(guider))
    return pipe


def call(pipe: Any) -> Any:
    return pipe(
        prompt="a star", height=32, width=48, num_inference_steps=2, output="latents", generator=torch.manual_seed(0)
    )


@pytest.mark.parametrize("name", MODULAR)
def test_every_modular_class_is_refused_by_name(name: str) -> None:
    names = [base.__name__ for base in getattr(diffusers, name).__mro__]
    assert refusal_of(names, "ClassifierFreeGuidance").startswith(f"{name} is not supported, because its blocks")


@pytest.mark.parametrize("name", GUIDERS)
def test_every_guider_is_refused_by_name_and_cannot_pass_the_guards_of_another_pipeline(name: str) -> None:
    pipe, standard = modular(name), shared_pipeline("sdxl")
    for guarding in (sr.attach, sr.protect):
        with pytest.raises(
            UnsupportedPipelineError, match=rf"guider {name} decides.*guard a StableDiffusionXLPipeline"
        ):
            guarding(pipe, GUARDS["sld"].make(standard, PIPELINES["sdxl"]))
    with sr.attach(standard, GUARDS["saferedir"].make(standard, PIPELINES["sdxl"])) as attached:
        with pytest.raises(sr.GuardError):
            call(pipe)
        assert attached.runs == 0
        run(PIPELINES["sdxl"], standard, steps=2)
        assert attached.runs == 1


def test_the_modular_pipeline_runs_where_nothing_is_guarded() -> None:
    latents = call(modular("ClassifierFreeGuidance"))
    assert latents.shape[0] == 1 and latents.isfinite().all()
