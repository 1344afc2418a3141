"""Replacement: an image that the odds call unsafe becomes, while it is still mostly noise, one of the benign images noised alike.

Implements docs/methods/safe_denoiser.md (15). One benign latent r is chosen at random for each image; the denoised estimate is r
from the step at which the image was called unsafe until alpha / sigma has grown by `GROWTH`. These steps keep the noise
e = (x - alpha r) / sigma, so of the old image 1 / `GROWTH` of the signal is left. Benign images at their natural shares thus
stand in for what is taken away, none of them preferred for being near.
Pure functions; imports torch and the rows of a set. Shapes: images (B, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.guards.negation.reference_rows import ReferenceRows

#: by how much alpha / sigma grows while an image is led to its benign reference
GROWTH = 5.0


@dataclass
class Replacement:
    """The images of one run: target (B, D) the benign latent of each; started (B,) alpha / sigma at which each was called
    unsafe, infinite where it never was; latest: alpha / sigma at which one could last begin.
    """

    target: Tensor
    started: Tensor
    latest: float = 0.0

    @classmethod
    def choose(cls, benign: ReferenceRows, generators: Sequence[torch.Generator], levels: Sequence[int]) -> Replacement:
        """A benign latent for each image by its generator; at each of its retry levels (B, or none of them) another one."""
        chosen = [
            torch.randint(len(benign), (level + 1,), generator=generator)[-1]
            for generator, level in zip(generators, levels or [0] * len(generators), strict=True)
        ]
        rows = benign.pick(torch.stack(chosen)).rows.float()
        started = torch.full((len(rows),), torch.inf, device=rows.device)
        return cls(rows + benign.centre.to(rows), started)

    def lead(self, is_unsafe: Tensor | None, ratio: float) -> Tensor:
        """(B,) bool: the images that are led to their reference at this step, at which alpha / sigma is `ratio`.

        is_unsafe (B,): those called unsafe now, which begin unless they are being led; None outside of the window.
        """
        if is_unsafe is not None:
            self.latest = ratio
            is_free = torch.isinf(self.started) | (ratio >= GROWTH * self.started)
            self.started = torch.where(is_unsafe & is_free, ratio, self.started)
        return (self.started <= ratio) & (ratio < GROWTH * self.started)

    def may_lead(self, ratio: float) -> bool:
        """Whether an image that began while the window was open may still be led at this alpha / sigma."""
        return ratio < GROWTH * self.latest
