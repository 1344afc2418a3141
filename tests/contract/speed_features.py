"""Contract checks of caches, and of what saves memory or time: a guard acts beside each as it does without, or is refused.

The criterion is measured. Of a cache: a guarded run with it is as far from the guarded run without it as unguarded runs are
(the worst of three prompts, at most); of a guard in the weights, as much of its effect is seen, less that error. Of the rest:
both orders, as in pipeline_features.py. Caches: tests/seam/cache_kinds.py. Imports tests.contract.feature; listed in features.py.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import attention_backend
from tests.contract.feature import (
    NotApplicable,
    Refused,
    acts,
    bare,
    clean,
    close,
    denoiser_of,
    guarded,
    on_shared,
    same,
)
from tests.contract.guard_features import skip_if_lacking
from tests.contract.guards import OTHER_PROMPT, PROMPT, GuardCase, Watcher, shared_pipeline
from tests.contract.pipeline_features import both_orders, denoisers, really_compiled
from tests.seam.cache_kinds import PACKAGES, STEPS, put_on
from tests.tiny_pipelines import PipelineCase, run
from torch import Tensor

import saferedir as sr

PROMPTS = (PROMPT, OTHER_PROMPT, "")


class Figures(NamedTuple):
    """Relative distances of runs with a cache from runs without it: unguarded (the worst of three prompts), and guarded."""

    unguarded: float
    guarded: float


#: (feature, family, guard) -> what its check measured, for the page
FIGURES: dict[tuple[str, str, str], Figures] = {}


class Unguarded(NamedTuple):
    """Runs of one pipeline without guards: their latents with a cache, and by how much these are off."""

    images: Tensor
    error: float


@functools.cache
def unguarded(name: str, case_name: str, is_unguided: bool) -> Unguarded | str:
    """With cache `name`; or why there is none."""
    from tests.tiny_pipelines import PIPELINES

    case = PIPELINES[case_name]
    changes = dict(case.unguided) if is_unguided else {}
    pipe = case.build()
    try:
        put_on(name, pipe, case)
        found = [run(case, pipe, prompt, steps=STEPS, **changes) for prompt in PROMPTS]
    except Exception:
        return "diffusers cannot put this cache on this denoiser"
    error = max(
        distance(images, bare(case, prompt, steps=STEPS, **changes), bare(case, prompt, steps=STEPS, **changes))
        for images, prompt in zip(found, PROMPTS, strict=True)
    )
    return Unguarded(found[0], error) if error > 0 else "this cache skips nothing in this denoiser"


def distance(one: Tensor, other: Tensor, scale: Tensor) -> float:
    return float((one - other).norm() / scale.norm())


def check_cache(name: str) -> Callable[[PipelineCase, GuardCase], None]:
    """The check for one cache."""

    def check(case: PipelineCase, guard: GuardCase) -> None:
        skip_if_lacking(guard, case)
        try:
            measure(name, case, guard, is_unguided=False)
        except Refused as sentence:
            if "guidance" not in str(sentence) or not case.unguided or guard.needs == "guidance":
                raise
            try:
                measure(name, case, guard, is_unguided=True)
            except (Refused, NotApplicable):
                raise sentence from None
            raise Refused(f"{sentence} Without guidance it works") from None

    return check


def measure(name: str, case: PipelineCase, guard: GuardCase, *, is_unguided: bool) -> None:
    """Guarded with the cache and without it, in both orders, and after a run that broke off."""
    without = unguarded(name, case.name, is_unguided)
    if isinstance(without, str):
        raise NotApplicable(without)
    changes = {"steps": STEPS, **(case.unguided if is_unguided else {})}
    wanted, _ = guarded(case, guard, **changes)
    pipe = case.build()
    put_on(name, pipe, case)
    try:
        images, _ = guarded(case, guard, pipe=pipe, **changes)
    except sr.GuardError as refusal:
        clean(case, pipe)
        raise Refused(str(refusal)) from refusal
    acts(guard, case, images, without.images, "with the cache")
    plain = bare(case, **changes)
    figures = Figures(without.error, distance(images, wanted, plain))
    FIGURES[name, case.family, guard.name] = figures
    if (
        guard.kind == "weights"
    ):  # another network, whose error with the cache is its own: what counts is that the edit is heard
        effect, heard = distance(wanted, plain, plain), distance(images, without.images, plain)
        assert heard >= effect - figures.unguarded, f"of an effect of {effect}, {heard} is left"
    else:
        assert figures.guarded <= figures.unguarded, f"the cache costs more under the guard: {figures}"
    if guard.kind == "steps":
        same(guarded(case, Watcher(), pipe=pipe, **changes)[0], without.images, "a guard that only watches")
    if name not in PACKAGES:  # ToMe has a hook of its own
        clean(case, pipe)
    pipe = case.build()
    with sr.attach(pipe, guard.make(pipe, case)):
        put_on(name, pipe, case)
        same(run(case, pipe, PROMPT, **changes), images, "attached, then the cache, against the other order")


# --- memory, storage, kernels


def on_denoisers(case: PipelineCase, pipe: Any, method: str, **settings: Any) -> None:
    for name in denoisers(case, pipe):
        getattr(getattr(pipe, name), method)(**settings)


def needs(case: PipelineCase, method: str) -> None:
    if not hasattr(denoiser_of(case, shared_pipeline(case.name)), method):
        raise NotApplicable(f"the denoiser has no {method}")


def check_group_offload(case: PipelineCase, guard: GuardCase) -> None:
    devices = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    settings = {**devices, "offload_type": "leaf_level"}
    both_orders(case, guard, lambda pipe: on_denoisers(case, pipe, "enable_group_offload", **settings))


def check_layerwise_casting(case: PipelineCase, guard: GuardCase) -> None:
    settings = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}

    def cast(pipe: Any) -> None:
        on_denoisers(case, pipe, "enable_layerwise_casting", **settings)

    skip_if_lacking(guard, case)
    pipe = case.build()
    cast(pipe)
    changed = run(case, pipe, PROMPT)
    first, _ = guarded(case, guard, pipe=pipe)
    acts(guard, case, first, changed, "cast, then attached")
    same(run(case, pipe, PROMPT), changed, "after detaching")
    pipe = case.build()
    with sr.attach(pipe, guard.make(pipe, case)):
        cast(pipe)
        acts(guard, case, run(case, pipe, PROMPT), changed, "attached, then cast")


def check_channels_last(case: PipelineCase, guard: GuardCase) -> None:
    def change(pipe: Any) -> None:
        for name in denoisers(case, pipe):
            module = getattr(pipe, name)
            if all(value.ndim != 5 for value in module.parameters()):  # a video's kernels have a layout of their own
                module.to(memory_format=torch.channels_last)

    both_orders(case, guard, change)


def check_free_u(case: PipelineCase, guard: GuardCase) -> None:
    if not hasattr(shared_pipeline(case.name), "enable_freeu"):
        raise NotApplicable("the pipeline has no enable_freeu")
    settings = {"s1": 0.9, "s2": 0.2, "b1": 1.3, "b2": 1.4}
    both_orders(case, guard, lambda pipe: pipe.enable_freeu(**settings), is_same_image=False)


def check_fused_projections(case: PipelineCase, guard: GuardCase) -> None:
    needs(case, "fuse_qkv_projections")
    try:
        both_orders(case, guard, lambda pipe: on_denoisers(case, pipe, "fuse_qkv_projections"))
    except sr.GuardError as refusal:
        raise Refused(str(refusal)) from refusal


def check_attention_backend(case: PipelineCase, guard: GuardCase) -> None:
    needs(case, "set_attention_backend")
    skip_if_lacking(guard, case)
    wanted = on_shared(case, guard)
    with attention_backend("native"):  # the choice is one for all models of the process, and put back at the end
        pipe = case.build()
        on_denoisers(case, pipe, "set_attention_backend", backend="_native_math")
        changed = run(case, pipe, PROMPT)
        images, _ = guarded(case, guard, pipe=pipe)
        acts(guard, case, images, changed, "another backend, then attached")
        close(images, wanted, "another backend against the usual one")
        with sr.attach(pipe, guard.make(pipe, case)):
            on_denoisers(case, pipe, "set_attention_backend", backend="_native_math")
            same(run(case, pipe, PROMPT), images, "attached, then another backend")


def check_compiled_blocks(case: PipelineCase, guard: GuardCase) -> None:
    if not getattr(denoiser_of(case, shared_pipeline(case.name)), "_repeated_blocks", None):
        raise NotApplicable("diffusers names no repeated blocks of this denoiser")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        really_compiled(case, guard, lambda pipe: on_denoisers(case, pipe, "compile_repeated_blocks", backend="eager"))
