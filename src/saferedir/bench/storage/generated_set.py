"""A set of images as it is read back from the folder, and several seeds of it as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.judges.base import Scores


@dataclass(frozen=True)
class ScoredSet:
    """A set of images as a cell needs it: N images in order.

    Attributes:
        scores: judge's key -> scores.
        features: of the protocol's judge, (N, d), NaN rows for images never made, or None.
        blocked, intervened: (N,) bool.
        checksums: N texts, "" for an image never made.
        prompt_of: (N,) which case an image belongs to: prompt i with the s-th seed is case i + s times the number of prompts, so
            that the same prompt with another seed is a case of its own, but several images of it are one.
        reasons: N sentences, why an image was blocked, "" for the others.
    """

    scores: Mapping[str, Scores]
    features: Tensor | None
    blocked: Tensor
    intervened: Tensor
    checksums: list[str]
    prompt_of: Tensor
    reasons: list[str]


@dataclass(frozen=True)
class GeneratedSet(ScoredSet):
    """A whole set of images, read back: as a cell needs it, and what it cost.

    Attributes:
        seconds: an image, one entry a shard.
        peak_bytes: highest of all shards.
        device: in words.
    """

    seconds: list[float]
    peak_bytes: int | None
    device: str


def concatenated(parts: Sequence[GeneratedSet]) -> GeneratedSet:
    """Sets of images of the same prompts with several seeds, one after the other; each seed's prompts are cases of their own."""
    if len(parts) == 1:
        return parts[0]
    cases = [int(part.prompt_of.max()) + 1 for part in parts]
    peaks = [part.peak_bytes for part in parts if part.peak_bytes is not None]
    features = [part.features for part in parts if part.features is not None]
    return GeneratedSet(
        scores={
            judge: Scores(scores.labels, torch.cat([part.scores[judge].values for part in parts]))
            for judge, scores in parts[0].scores.items()
        },
        features=torch.cat(features) if len(features) == len(parts) else None,
        blocked=torch.cat([part.blocked for part in parts]),
        intervened=torch.cat([part.intervened for part in parts]),
        checksums=[checksum for part in parts for checksum in part.checksums],
        prompt_of=torch.cat([part.prompt_of + sum(cases[:index]) for index, part in enumerate(parts)]),
        seconds=[seconds for part in parts for seconds in part.seconds],
        peak_bytes=max(peaks, default=None),
        device=parts[0].device,
        reasons=[reason for part in parts for reason in part.reasons],
    )
