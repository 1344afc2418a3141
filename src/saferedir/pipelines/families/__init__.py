"""Facts about each pipeline family, as data: where the denoiser is and how its inputs and outputs are laid out.

A new family is one row in the file of its relatives; a new file is one entry in `_GROUPS`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.families import (
    cogview4,
    flux,
    flux2,
    flux_like,
    qwen_image,
    stable_diffusion,
    text_free,
    transformers,
    video,
    z_image,
)
from saferedir.pipelines.families.facts import CfgLayout, Conditioned, Family, TextEncoderFacts

__all__ = [
    "FAMILIES",
    "TEXT_FAMILIES",
    "CfgLayout",
    "Conditioned",
    "Family",
    "TextEncoderFacts",
    "family_of",
    "unwrapped",
]

_GROUPS = (stable_diffusion, flux, transformers, video, qwen_image, flux2, z_image, cogview4, flux_like, text_free)
_ROWS = tuple(row for group in _GROUPS for row in group.ROWS)

FAMILIES: dict[str, Family] = {family.name: family for family in _ROWS}
if len(FAMILIES) != len(_ROWS):
    raise ValueError("two rows of pipelines/families have the same name.")

#: those with prompts, for which every method was made; the others are for methods that work on the image alone
TEXT_FAMILIES = {name: family for name, family in FAMILIES.items() if family.has_text}


def unwrapped(module: Any) -> Any:
    """The module under torch.compile's wrapper, if there is one."""
    return getattr(module, "_orig_mod", module)


def family_of(pipe: Any) -> Family:
    """The row of a pipeline; raises UnsupportedPipelineError naming what is supported."""
    names = [base.__name__ for base in type(pipe).__mro__]
    for family in FAMILIES.values():
        if not set(names).isdisjoint(family.pipelines):
            name = next(name for name in names if name in family.pipelines)
            return replace(family, **family.differences[name]) if name in family.differences else family
    supported = ", ".join(name for family in FAMILIES.values() for name in family.pipelines)
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} is not supported; supported pipelines: {supported}. "
        "Another family needs one row in saferedir/pipelines/families; docs/pipelines.md says how to add it."
    )
