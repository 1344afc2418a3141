"""Where a concept's redirection leads: which other concepts of a guard its safe prompts ask for.

A policy that keeps out both would redirect from one into the other; `policy/conflicts.py` reads the record.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saferedir.guards.saferedir.network import Redirector
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.training.saferedir.batches import TextData
from saferedir.training.saferedir.calibration import chunks

#: share of the pairs from which on a concept counts as led into
LEAST_SHARE = 0.05


@torch.no_grad()
def leads_into(network: Redirector, concept: str, text: TextData, thresholds: Tensor) -> dict[str, float]:
    """Other concepts that the safe prompts of a concept's pairs ask for and the unsafe ones do not -> share of the pairs.

    Args:
        network: a redirector of K concepts.
        concept: the one whose pairs these are.
        text: its held-out pairs.
        thresholds: (K,) of the prompt verdicts.
    """
    acts = {side: _prompt_logits(network, getattr(text, side)) >= thresholds for side in ("safe", "unsafe")}
    shares = (acts["safe"] & ~acts["unsafe"]).float().mean(dim=0).tolist()
    named = zip(network.config.concepts, shares, strict=True)
    return {name: round(share, 4) for name, share in named if name != concept and share >= LEAST_SHARE}


def _prompt_logits(network: Redirector, prompts: PromptEmbeds) -> Tensor:
    """(N, K), on the CPU."""
    device, parts = next(network.parameters()).device, []
    for chunk in chunks(len(prompts.prompt)):
        given = prompts.rows(chunk).map(lambda part: part.to(device)).floats
        parts.append(network.prompt_logits(given.prompt, given.mask, given.pooled).cpu())
    return torch.cat(parts)
