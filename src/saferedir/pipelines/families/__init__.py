"""Facts about each pipeline family, as data: where the denoiser is and how its inputs and outputs are laid out.

A new family is one row in the file of its relatives; a new file is one entry in `_GROUPS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from torch import nn

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.families import (
    cogview4,
    flux,
    flux2,
    flux_like,
    hidream,
    hunyuan_dit,
    hunyuan_image,
    kandinsky3,
    kandinsky5,
    krea2,
    prx,
    qwen_image,
    stable_diffusion,
    text_free,
    transformers,
    video,
    z_image,
)
from saferedir.pipelines.families.facts import CfgLayout, Conditioned, Family, TextEncoderFacts
from saferedir.pipelines.families.refused import REFUSED

__all__ = [
    "FAMILIES",
    "REFUSED",
    "TEXT_FAMILIES",
    "CfgLayout",
    "Conditioned",
    "Family",
    "TextEncoderFacts",
    "family_of",
    "is_compiled",
    "refusal_of",
    "unwrapped",
]

_GROUPS = (
    *(stable_diffusion, flux, transformers, video),
    *(qwen_image, flux2, z_image, cogview4, flux_like, kandinsky3, kandinsky5, krea2, prx),
    *(hunyuan_image, hidream, hunyuan_dit),
    text_free,
)
_ROWS = tuple(row for group in _GROUPS for row in group.ROWS)

FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}
if len(FAMILIES) != len(_ROWS):
    raise ValueError("two rows of pipelines/families have the same name.")

#: those with prompts, for which every method was made; the others are for methods that work on the image alone
TEXT_FAMILIES = {name: family for name, family in FAMILIES.items() if family.has_text}


def unwrapped(module: Any) -> Any:
    """The module under torch.compile's wrapper, if there is one."""
    parts = getattr(
        module, "_modules", None
    )  # the wrapper has it among its parts: a module is slow to say that it has no attribute
    return parts.get("_orig_mod", module) if isinstance(parts, dict) else getattr(module, "_orig_mod", module)


def is_compiled(module: Any) -> bool:
    """Whether torch.compile's wrapper is around a module, or it or one of its parts is compiled in place, whole or `forward`."""
    if not isinstance(module, nn.Module):
        return False
    if unwrapped(module) is not module:
        return True
    return any(part._compiled_call_impl is not None or _has_compiled_forward(part) for part in module.modules())


def _has_compiled_forward(module: nn.Module) -> bool:
    """Whether `forward` was replaced by what torch.compile made of it; accelerate keeps that as `_old_forward`."""
    replaced = [vars(module).get(name) for name in ("forward", "_old_forward")]
    return any(
        hasattr(each, "_torchdynamo_orig_callable") and not getattr(each, "_torchdynamo_disable", False)
        for each in replaced
    )


def family_of(pipe: Any) -> Family:
    """The row of a pipeline, with what differs in its class; raises UnsupportedPipelineError that says why there is none."""
    names = [base.__name__ for base in type(pipe).__mro__]
    for family in FAMILIES.values():
        if not set(names).isdisjoint(family.pipelines):
            name = next(name for name in names if name in family.pipelines)
            return replace(family, **family.differences[name]) if name in family.differences else family
    raise UnsupportedPipelineError(refusal_of(names, type(getattr(pipe, "guider", None)).__name__))


def refusal_of(names: Sequence[str], guider: str = "NoneType") -> str:
    """Why a pipeline is refused. `names`: of its class and its base classes, in order; `guider`: class of a modular one's."""
    if "ModularPipeline" in names:
        return _modular_refusal(names[0], guider)
    why = next((REFUSED[name] for name in names if name in REFUSED), "it is in no row of saferedir/pipelines/families")
    supported = [name for family in FAMILIES.values() for name in family.pipelines]
    nearest = get_close_matches(names[0], supported, n=1)
    advice = (
        f"the nearest class that is guarded is {nearest[0]}" if nearest else "docs/pipelines.md lists what is guarded"
    )
    return f"{names[0]} is not supported, because {why}; {advice}. docs/pipelines.md says how to add a family."


def _modular_refusal(name: str, guider: str) -> str:
    """Why a ModularPipeline is refused, and what to do."""
    standard = name.replace("Modular", "")
    is_guarded = any(standard in family.pipelines for family in FAMILIES.values())
    held = "" if guider == "NoneType" else f" {guider}"
    advice = (
        f"guard a {standard} made of the same components"
        if is_guarded
        else "docs/pipelines.md lists the pipelines that are guarded"
    )
    return (
        f"{name} is not supported, because its blocks can be exchanged and its guider{held} decides how often a step calls the "
        f"denoiser, under which prompts and with which layers, so that a guard cannot know which calls make the image; {advice}."
    )
