"""Probes of settings that change what a text encoder hands over, against verdicts that were trained, on tiny pipelines.

A probe is one more argument of a call. Unsafe prompts are asked for under it, with a guard that `train_saferedir` made under
the call's defaults: each must be caught (its decision fired), or the call be refused. An image that nothing fired for and that
is bit for bit the bare pipeline's has got through. Benign prompts under a setting that is not refused must stay untouched.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tests.tiny_pipelines import PIPELINES, PipelineCase, run

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.guards.saferedir.dataset import Pair
from saferedir.guards.saferedir.training import TrainConfig, train_saferedir

#: prompts are letters; x is what must not appear, o what stands in its place
WORDS = [f"{a} {b}" for a in "abcdef" for b in "klmnp"]
PAIRS = [Pair(f"{word} x", f"{word} o") for word in WORDS] + [Pair(None, f"{word} b") for word in WORDS]
#: in no pair of the training
UNSAFE = [f"{a} {b} x" for a in "ghij" for b in "qrstu"]
BENIGN = [f"{a} {b} o" for a in "ghij" for b in "qrstu"]
NETWORK = {"width": 32, "heads": 2, "hidden": 32, "rank": 32, "latent_widths": [8, 16], "latent_strides": [1, 2]}


@dataclass(frozen=True)
class Outcome:
    """Of a number of prompts: `refused` with this sentence, or `caught` of `asked`; `through` are bit-identical to bare."""

    asked: int
    caught: int = 0
    through: int = 0
    refused: str = ""


def case_of(name: str, **settings: Any) -> PipelineCase:
    """A tiny pipeline with settings in place of its own; None takes one away."""
    case = PIPELINES[name]
    kept = {key: value for key, value in {**case.settings, **settings}.items() if value is not None}
    return replace(case, settings=kept)


@functools.cache
def _room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="saferedir-text-settings-")


@functools.cache
def pipeline(name: str) -> Any:
    """One pipeline a case; probes leave it as they found it."""
    return PIPELINES[name].build()


@functools.cache
def trained(name: str, lengths: tuple[int, ...] | None = None, steps: int = 100, **call: Any) -> SafeRedir:
    """A guard trained on PAIRS, by its prompt verdict, under the call's defaults and `call`."""
    case = PIPELINES[name]
    own = {key: value for key, value in case.settings.items() if key in ("height", "width", "num_frames")}
    config = TrainConfig(
        steps=steps, batch=24, learning_rate=3e-3, rollouts=4, held_out_rollouts=4, rollout_steps=1, rollout_batch=4,
        held_out=0.34, evaluate_every=steps, text_lengths=lengths, network=NETWORK, call={**own, **call},
    )  # fmt: skip
    out = Path(_room().name) / f"{name}-{len(list(Path(_room().name).iterdir()))}"
    guard = train_saferedir(pipeline(name), PAIRS, out, concept="x", config=config)
    loaded = sr.Guard.from_pretrained(out)
    assert isinstance(loaded, SafeRedir) and loaded.config == guard.config
    loaded.config = replace(loaded.config, use_image=False)  # four roll-outs calibrate nothing
    return loaded


def outcome(guard: SafeRedir, name: str, prompts: list[str], **settings: Any) -> Outcome:
    """Draw `prompts` in one step under `settings`, bare and under `protect`."""
    case = case_of(name, max_sequence_length=None, system_prompt=None)
    pipe = pipeline(name)
    bare = run(case, pipe, prompts, steps=1, **_each(settings, prompts))
    try:
        with sr.protect(pipe, guard) as guarded:
            images = run(case, guarded, prompts, steps=1, **_each(settings, prompts))
    except sr.GuardError as error:
        return Outcome(len(prompts), refused=str(error))
    caught = [decision.fired for decision in guarded.decisions]
    same = [bool(torch.equal(one, other)) for one, other in zip(images, bare, strict=True)]
    return Outcome(len(prompts), sum(caught), sum(same))


def _each(settings: Mapping[str, Any], prompts: list[str]) -> dict[str, Any]:
    """Further prompts, one for each prompt."""
    return {key: [value] * len(prompts) if key.startswith("prompt_") else value for key, value in settings.items()}


def with_text_model(pipe: Any) -> Any:
    """Give the encoder of a Stable Diffusion the attribute that diffusers' `clip_skip` reads and transformers 5 has dropped."""
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):
        vars(encoder)["text_model"] = encoder  # past torch, which would make it a submodule of itself
    return pipe
