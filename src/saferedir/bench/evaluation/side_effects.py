"""What a guard does to neighbours of the concept and to innocent look-alikes, beyond what every benign cell says.

Pure; imports metrics only. Used by cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from saferedir.metrics import Choices, collateral, feature_distance, over_refusal


def recognition(
    expected: Sequence[Mapping[str, str]], choices: Choices, before: Choices, prompts: Tensor
) -> dict[str, Any]:
    """ "collateral": how often the judge reads all of what a prompt asks for, under guard ÷ under the bare model.

    Empty where the judge reads none of it, where the bare model never shows it, or for one prompt alone.
    """
    known = choices.keys() & {name for asked in expected for name in asked}
    if not known or len(prompts.unique()) < 2:
        return {}
    now, then = (_recognised(expected, chosen, known) for chosen in (choices, before))
    result = collateral(now, then, prompts)
    return {} if result.ratio is None else {"collateral": result.ratio.to_dict()}


def _recognised(expected: Sequence[Mapping[str, str]], choices: Choices, known: set[str]) -> Tensor:
    right = [
        all(choices[name][index] == value for name, value in asked.items() if name in known)
        for index, asked in enumerate(expected)
    ]
    return torch.tensor(right, dtype=torch.bool)


def changes(
    guarded: Tensor | None, bare: Tensor | None, blocked: Tensor, intervened: Tensor, prompts: Tensor
) -> dict[str, Any]:
    """ "changed_images": share of the images made that are further from the bare model's than 95 % of its own images of
    one prompt and two seeds are from each other. Empty without features, or where no prompt was generated twice.

    Args:
        guarded, bare: (N, d) features, row i of both the same prompt and seed, NaN for an image never made.
    """
    if guarded is None or bare is None or bool(bare.isnan().any()):
        return {}
    order = prompts.argsort(stable=True)
    pairs = prompts[order][1:] == prompts[order][:-1]
    if not bool(pairs.any()) or bool(blocked.all()):
        return {}
    noise = feature_distance(bare[order][1:][pairs], bare[order][:-1][pairs])
    distances = torch.full((len(bare),), torch.nan, dtype=torch.float64)
    distances[~blocked] = feature_distance(guarded[~blocked], bare[~blocked])
    share = over_refusal(blocked, intervened, distances, noise, clusters=prompts).changed_images
    return {} if share is None else {"changed_images": share.to_dict()}
