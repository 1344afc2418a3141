"""`embeds_test`: embeddings that a caller hands over and no text makes are refused, by the statistics of manifold.py."""

from __future__ import annotations

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.manifold import PromptManifold
from saferedir.guards.step import Step
from saferedir.utils.device import refuse


def tested_distance(config: SafeRedirConfig, manifold: PromptManifold | None, step: Step) -> Tensor | None:
    """(B,) distance of the caller's embeddings over the bound, 0 for those of a text; `embeds_test="refuse"` only.

    GuardError above 1. Whoever differentiates through the guard gets the distance to keep below 1 in place of the error.
    """
    if config.embeds_test == "off" or manifold is None:
        return None
    texts = step.prompts or (None,) * len(step.prompt_embeds)
    rows = [row for row, text in enumerate(texts) if text is None]
    given, bound = manifold.distance(step.prompt_embeds[rows]), manifold.bound
    distance = given.detach()
    is_far = ~(distance <= bound)
    if config.gate != "hard" and torch.is_grad_enabled():
        ratio = torch.zeros(len(texts), device=given.device)
        return ratio.index_put((torch.tensor(rows, dtype=torch.long, device=given.device),), given / bound.to(given))

    def error() -> GuardError:
        index = int(is_far.nonzero()[0])
        return GuardError(
            f"the prompt embeddings given for image {rows[index]} are none that the text encoder makes (distance "
            f"{float(distance[index]):.3g}, at most {float(bound):.3g} expected), so this SafeRedir guard for "
            f"{config.concept!r} generates nothing; give the prompt as text."
        )

    refuse(is_far, error)
    return None


def refusal_text(config: SafeRedirConfig, manifold: PromptManifold | None) -> str | None:
    """Why a guard is refused that is to test embeddings and cannot; None where nothing is amiss."""
    if config.embeds_test == "off" or manifold is not None:
        return None
    return (
        f"this SafeRedir guard for {config.concept!r} has embeds_test={config.embeds_test!r} and no statistics of "
        "the text encoder to test with; make a folder that has them with `saferedir guards manifold GUARD --prompts FILE "
        "--out DIR`, or set embeds_test to 'off'."
    )
