"""`embeds_test`: embeddings that a caller hands over are refused where no text makes them, or none is known to have made them.

"refuse" asks the statistics of manifold.py, "texts" the record of what `encode_prompt` made. Prompts and negative prompts are
tested alike, each with its pooled embeddings where the denoiser is given some.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.manifold import PromptManifold
from saferedir.guards.step import Run, Step
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import FAMILIES
from saferedir.utils.device import refuse

#: ratio of what is refused whatever its distance is
UNKNOWN = 2.0


class Distances(NamedTuple):
    """Distance of each row over the bound, 0 for rows of a text, `UNKNOWN` for what "texts" refuses; for attacks with gradients.

    Attributes:
        prompt: (B,).
        negative: (B,); None where there is no negative prompt.
    """

    prompt: Tensor
    negative: Tensor | None = None


def tested_distances(config: SafeRedirConfig, manifold: PromptManifold | None, step: Step) -> Distances | None:
    """Test the rows that are not known to be of a text.

    GuardError above 1. Whoever differentiates through the guard gets the distances to keep below 1 in place of the error.
    """
    if config.embeds_test == "off" or (manifold is None and config.embeds_test == "refuse"):
        return None
    cond, uncond = step.conditioning
    prompt = _half(config, manifold, cond, step.is_encoded, "prompt")
    negative = None
    if uncond is not None:
        negative = _half(config, manifold, uncond, step.is_negative_encoded, "negative prompt")
    return Distances(prompt, negative) if _is_attacked(config) else None


def _is_attacked(config: SafeRedirConfig) -> bool:
    return config.gate != "hard" and torch.is_grad_enabled()


def _half(
    config: SafeRedirConfig,
    manifold: PromptManifold | None,
    embeds: PromptEmbeds,
    is_encoded: tuple[bool, ...],
    name: str,
) -> Tensor:
    """(B,) distance over the bound of prompts or negative prompts, refused above 1 unless somebody attacks."""
    count = len(embeds.prompt)
    rows = [row for row, known in enumerate(is_encoded or (False,) * count) if not known]
    ratio = torch.zeros(count, device=embeds.prompt.device)
    if not rows:
        return ratio
    is_filler = name != "prompt"  # pipelines have zeros in place of an empty negative prompt
    if config.embeds_test == "texts" or manifold is None:
        is_unknown = torch.ones(len(rows), dtype=torch.bool, device=ratio.device)
        if is_filler:
            is_unknown = embeds.prompt[rows].flatten(1).any(dim=1)
            if embeds.pooled is not None:
                is_unknown = is_unknown | embeds.pooled[rows].any(dim=1)
        if not _is_attacked(config):
            _refuse_unknown(config, name, is_unknown, rows)
            return ratio
        return ratio.index_put((_index(rows, ratio),), UNKNOWN * is_unknown.to(ratio))
    if embeds.pooled is not None and manifold.pooled is None:
        raise GuardError(
            f"this SafeRedir guard for {config.concept!r} has statistics of the text encoder, but none of its pooled embeddings, "
            "to test those of the caller with; make them again with `saferedir guards manifold`, or give the prompt as text."
        )
    given = _ratio(manifold, embeds.prompt[rows], is_filler)
    refused = [(name, given, manifold.bound)]
    if embeds.pooled is not None and manifold.pooled is not None:
        pooled = _ratio(manifold.pooled, embeds.pooled[rows][:, None], is_filler)
        refused.append((f"pooled {name}", pooled, manifold.pooled.bound))
        given = torch.maximum(given, pooled)
    if not _is_attacked(config):
        for kind, values, bound in refused:
            _refuse(config, kind, values.detach(), bound, rows)
        return ratio
    return ratio.index_put((_index(rows, ratio),), given)


def _index(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=like.device)


def _ratio(manifold: PromptManifold, embeds: Tensor, is_filler: bool) -> Tensor:
    """(N,) distance over the bound; with `is_filler`, 0 for embeddings that are all zeros."""
    distance = manifold.distance(embeds)
    ratio = distance / manifold.bound
    return torch.where(embeds.flatten(1).any(dim=1), ratio, 0.0) if is_filler else ratio


def _refuse(config: SafeRedirConfig, kind: str, ratio: Tensor, bound: Tensor, rows: list[int]) -> None:
    is_far = ~(ratio <= 1)

    def error() -> GuardError:
        index = int(is_far.nonzero()[0])
        text = kind.removeprefix("pooled ")
        return GuardError(
            f"the {kind} embeddings given for image {rows[index]} are none that the text encoder makes (distance "
            f"{float(ratio[index] * bound):.3g}, at most {float(bound):.3g} expected), so this SafeRedir guard for "
            f"{config.concept!r} generates nothing; give the {text} as text."
        )

    refuse(is_far, error)


def _refuse_unknown(config: SafeRedirConfig, name: str, is_unknown: Tensor, rows: list[int]) -> None:
    def error() -> GuardError:
        return GuardError(
            f"the {name} embeddings given for image {rows[int(is_unknown.nonzero()[0])]} are not known to be of a text, so this "
            f"SafeRedir guard for {config.concept!r} generates nothing (embeds_test='texts'); give the {name} as text, or what "
            "encode_prompt of this pipeline answers while the guard is attached, in one of its last four calls."
        )

    refuse(is_unknown, error)


def require_known_halves(config: SafeRedirConfig, run: Run) -> None:
    """GuardError where negative prompts come in a later denoiser call, or nobody knows which of them a text made."""
    family = FAMILIES[run.family]
    if config.embeds_test == "texts" and not family.encodes_negatives:
        raise GuardError(
            f"embeds_test='texts' has to know which negative prompts a text made, and of {run.family} that is unknown; set it to "
            "'off'."
        )
    if config.embeds_test != "off" and family.is_sequential:
        raise GuardError(
            f"embeds_test needs both halves of guidance in one denoiser call, but {run.family} makes two; set it to 'off'."
        )


def refusal_text(config: SafeRedirConfig, manifold: PromptManifold | None) -> str | None:
    """Why a guard is refused that is to test embeddings and cannot; None where nothing is amiss."""
    if config.embeds_test != "refuse" or manifold is not None:
        return None
    return (
        f"this SafeRedir guard for {config.concept!r} has embeds_test={config.embeds_test!r} and no statistics of "
        "the text encoder to test with; make a folder that has them with `saferedir guards manifold GUARD --prompts FILE "
        "--out DIR`, or set embeds_test to 'off'."
    )
