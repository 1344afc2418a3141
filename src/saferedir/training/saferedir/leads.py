"""Where a concept's redirection leads: which other concepts of a guard its safe prompts ask for.

A policy that keeps out both would redirect from one into the other; `policy/conflicts.py` reads the record.
"""

from __future__ import annotations

from torch import Tensor

from saferedir.guards.saferedir.network import Redirector
from saferedir.training.saferedir.batches import TextData
from saferedir.training.saferedir.calibration import all_prompt_scores

#: share of the pairs from which on a concept counts as led into
LEAST_SHARE = 0.05


def leads_into(network: Redirector, concept: str, text: TextData, thresholds: Tensor) -> dict[str, float]:
    """Other concepts that the safe prompts of a concept's pairs ask for and the unsafe ones do not -> share of the pairs.

    Args:
        network: a redirector of K concepts.
        concept: the one whose pairs these are.
        text: its held-out pairs.
        thresholds: (K,) of the prompt verdicts.
    """
    acts = {side: all_prompt_scores(network, getattr(text, side)) >= thresholds for side in ("safe", "unsafe")}
    shares = (acts["safe"] & ~acts["unsafe"]).float().mean(dim=0).tolist()
    named = zip(network.config.concepts, shares, strict=True)
    return {name: round(share, 4) for name, share in named if name != concept and share >= LEAST_SHARE}
