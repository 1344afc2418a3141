"""What guards need of a pipeline, beyond a family that we know: text encoders, one denoiser for edited weights.

Used by `attach` before anything is changed, and by `seam` again when a run begins.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from saferedir.errors import GuardError, UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.pipelines.families import Family, unwrapped
from saferedir.pipelines.guiders import GUIDERS
from saferedir.seam.begin import words_need_no_image
from saferedir.seam.given_latents import check_latents_are_known
from saferedir.seam.guard_calls import EARLY_POINTS

#: embeddings that a caller may give in place of an image
IMAGE_EMBEDS = ("ip_adapter_image_embeds", "negative_ip_adapter_image_embeds")


def check_requirements(pipe: Any, family: Family, guards: Sequence[Guard[Any]]) -> None:
    """Raise GuardError if the pipeline lacks what an enabled one of `guards` needs."""
    check_guiders(pipe, family)
    for guard in guards:
        if guard.enabled and not family.has_text:
            check_works_without_text(pipe, guard)
        if guard.enabled and guard.uses("unload"):
            check_one_denoiser(pipe, family, guard.method)
        if guard.enabled and guard.needs_text_encoder and family.encoder_reads_image:
            raise UnsupportedPipelineError(f"guard {guard.method!r}: {words_need_no_image(pipe)}")
        if guard.enabled and (guard.needs_text_encoder or (guard.needs_text and not guard.works_without_texts)):
            check_text_encoders(pipe, family, guard)
        if guard.enabled and guard.latents_test != "off":
            check_latents_are_known(pipe, guard)
        if guard.enabled and (why := guard.refusal_text()):
            raise GuardError(why)


def check_given_embeds(given: Mapping[str, Any], guards: Sequence[Guard[Any]]) -> None:
    """Raise GuardError where an image prompt comes as embeddings, and an enabled guard tests those of a caller.

    `given`: arguments of the pipeline's call.
    """
    testing = [guard for guard in guards if guard.enabled and guard.tests_embeds]
    names = [name for name in IMAGE_EMBEDS if given.get(name) is not None]
    if testing and names:
        raise GuardError(
            f"{names[0]} are given, which guard {testing[0].method!r} cannot test as it tests prompt_embeds; give "
            f"{names[0].removesuffix('_embeds')}, an RGB image, in their place."
        )


def check_guiders(pipe: Any, family: Family) -> None:
    """Raise UnsupportedPipelineError if a `guider` of the pipeline may call its denoiser in a way that guards do not know."""
    for name in GUIDERS if family.guiders else ():
        kind = type(getattr(pipe, name, None)).__name__
        if kind not in ("NoneType", *family.guiders):
            raise UnsupportedPipelineError(
                f"the {name} of this {type(pipe).__name__} is a {kind}, which decides how often a step calls the denoiser, under "
                f"which prompts and with which layers, so that a guard cannot know which calls make the image; use "
                f"{' or '.join(family.guiders)}, or None."
            )


def check_works_without_text(pipe: Any, guard: Guard[Any]) -> None:
    """Raise UnsupportedPipelineError if the guard works on prompts, which this pipeline does not read."""
    if guard.needs_text or guard.needs_text_encoder or any(guard.uses(point) for point in EARLY_POINTS):
        raise UnsupportedPipelineError(
            f"guard {guard.method!r} works on the prompt, and a {type(pipe).__name__} reads none; use a guard that works on the "
            "image while it is denoised (safe_denoiser, spell), or protect(..., on_unsafe='verify', verify=...) with a judge."
        )


def check_one_denoiser(pipe: Any, family: Family, method: str) -> None:
    """Raise UnsupportedPipelineError if another denoiser takes over in the middle of a run: edited weights are of one alone."""
    for name in family.more_denoisers:
        if getattr(pipe, name, None) is not None:
            raise UnsupportedPipelineError(
                f"guard {method!r} edits the weights of the {family.denoiser} alone, and this {type(pipe).__name__} hands its "
                f"runs over to a {name}, which would generate unguarded; use a guard that works on every step."
            )


def check_text_encoders(pipe: Any, family: Family, guard: Guard[Any]) -> None:
    """Raise GuardError if the pipeline cannot encode words, because a text encoder or tokenizer was left out or dropped."""
    if missing := missing_text_encoders(pipe, family):
        does = (
            "encodes words of its own in every run"
            if guard.needs_text_encoder
            else "has to know the texts of embeddings"
        )
        without = " (SafeRedir with embeds_test='refuse' or 'off' needs none)" if guard.tests_embeds else ""
        raise GuardError(
            f"guard {guard.method!r} {does}, and this {type(pipe).__name__} has no {' and no '.join(missing)}; keep the text "
            f"encoders while the guard is attached, or use one that needs none{without}."
        )


def missing_text_encoders(pipe: Any, family: Family) -> list[str]:
    """Attributes, of text encoders and tokenizers, without which `encode_prompt` cannot make this denoiser's conditioning.

    Stable Diffusion 3 does without its T5; a refiner of SDXL has the second CLIP only, and a denoiser of its width.
    """
    missing = [name for name in family.text_encoders if getattr(pipe, name, None) is None]
    positions = {facts.encoder: facts.position for facts in family.text_encoder_facts}
    missing = [name for name in missing if positions.get(name) != "tokens"]
    side_by_side = [name for name, position in positions.items() if position in ("first", "channels")]
    if missing and set(missing) < set(side_by_side):
        width = sum(int(getattr(pipe, name).config.hidden_size) for name in side_by_side if name not in missing)
        if width == family.prompt_width_in(unwrapped(getattr(pipe, family.denoiser)).config):
            missing = []
    held = [name for name in family.text_encoders if getattr(pipe, name, None) is not None]
    if getattr(pipe, "processor", None) is not None:  # which is given the texts, and tokenizes them
        return missing
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in held]
    return missing + [name for name in tokenizers if getattr(pipe, name, None) is None]


def warn_of_copies(present: Sequence[Guard[Any]], chosen: Sequence[Guard[Any]], stacklevel: int) -> None:
    """Warn of guards that are the same as one which is attached already: a notebook's cell was run again."""
    for number, guard in enumerate(chosen):
        if any(_is_copy(guard, other) for other in [*present, *chosen[:number]]):
            warnings.warn(
                f"a guard {guard.method!r} for {guard.config.concept!r} with the same settings and weights is attached to this "
                "pipeline already, and both will act; saferedir.detach(pipe) takes off what earlier calls attached.",
                stacklevel=stacklevel + 1,
            )


def _is_copy(guard: Guard[Any], other: Guard[Any]) -> bool:
    if guard is other or type(guard) is not type(other) or guard.method != other.method or guard.config != other.config:
        return False
    if guard.anchor_prompts != other.anchor_prompts:
        return False
    mine, theirs = guard.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape and torch.equal(value.cpu(), theirs[name].cpu())
        for name, value in mine.items()
    )
