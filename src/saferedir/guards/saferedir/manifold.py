"""PromptManifold: what a CLIP text encoder can say, and how far an embedding is from it.

Statistics of the encoder's own outputs, made once (`training.saferedir.manifold`) and kept in the guard's folder: the mean of
each position and one covariance of what is left, shared by all positions. The distance of a token is its Mahalanobis distance by
that covariance, divided by what is usual at its position; that of a prompt is the highest of its tokens. Above a calibrated bound
no text is taken to have made the embeddings.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from saferedir.errors import GuardConfigError

PREFIX, POOLED = "manifold_", "pooled_"
NAMES = ("mean", "whitening", "scale", "bound")
#: share of the mean variance that every direction is given, so that rounding of half precision is no distance
RIDGE = 1e-2
#: smallest usual distance of a position, as a share of the median one: the opening token is always the same
LEAST_SCALE = 0.05


@dataclass(frozen=True)
class PromptManifold:
    """Statistics of the outputs of one text encoder, float32.

    Attributes:
        mean: (L, D), of each position.
        whitening: (D, D), W with W W^T the inverse covariance.
        scale: (L,), root mean square Mahalanobis distance at each position.
        bound: (), distance that embeddings of text do not exceed.
        pooled: the same of pooled embeddings (N, P), as sequences (N, 1, P) of one token; None where there are none.
    """

    mean: Tensor
    whitening: Tensor
    scale: Tensor
    bound: Tensor
    pooled: PromptManifold | None = None

    def distance(self, embeds: Tensor) -> Tensor:
        """(B,) float32 distance of embeddings (B, L', D), in the graph; infinite where they do not fit, or are not finite.

        Embeddings of several windows, L' = n L, are read window by window.
        """
        length, width = self.mean.shape
        if embeds.shape[2] != width or embeds.shape[1] % length or not embeds.shape[1]:
            return torch.full((len(embeds),), torch.inf, device=embeds.device)
        values = embeds.float().to(self.mean.device).unflatten(1, (-1, length))
        tokens = _token_distance(values - self.mean, self.whitening) / self.scale
        return torch.where(tokens.isfinite(), tokens, torch.inf).flatten(1).amax(dim=1).to(embeds.device)

    def to(self, device: torch.device) -> Self:
        """These statistics on a device, where embeddings are read without a copy to the host."""
        if self.mean.device == device:
            return self
        parts: dict[str, Any] = {name: getattr(self, name).to(device) for name in NAMES}
        return replace(self, **parts, pooled=None if self.pooled is None else self.pooled.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """For `model.safetensors`."""
        tensors = {PREFIX + name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        if self.pooled is None:
            return tensors
        return tensors | {PREFIX + POOLED + name: getattr(self.pooled, name) for name in NAMES}

    @classmethod
    def taken_from(cls, tensors: MutableMapping[str, Tensor]) -> Self | None:
        """Take the statistics out of a guard's tensors; None where there are none.

        Raises:
            GuardConfigError: some are missing, or their shapes or values cannot be.
        """
        pooled = cls._taken(tensors, PREFIX + POOLED)
        tokens = cls._taken(tensors, PREFIX)
        if tokens is None and pooled is not None:
            raise GuardConfigError(
                "model.safetensors has statistics of the text encoder's pooled embeddings alone; make them again with "
                "`saferedir guards manifold`."
            )
        return None if tokens is None else replace(tokens, pooled=pooled)

    @classmethod
    def _taken(cls, tensors: MutableMapping[str, Tensor], prefix: str) -> Self | None:
        parts = {name: tensors.pop(prefix + name, None) for name in NAMES}
        present = {name: value.float() for name, value in parts.items() if value is not None}
        if not present:
            return None
        length, width = present["mean"].shape if "mean" in present and present["mean"].ndim == 2 else (0, 0)
        expected = {"mean": (length, width), "whitening": (width, width), "scale": (length,), "bound": ()}
        shapes = {name: tuple(value.shape) for name, value in present.items()}
        finite = all(bool(value.isfinite().all()) for value in present.values())
        if not length or shapes != expected or not finite or not bool((present["scale"] > 0).all()):
            raise GuardConfigError(
                f"the statistics of the text encoder in model.safetensors have the shapes {shapes}, or values that cannot be; "
                "make them again with `saferedir guards manifold`."
            )
        return cls(present["mean"], present["whitening"], present["scale"], present["bound"])


@torch.no_grad()
def fit_manifold(fitted: Tensor, held_out: Tensor, false_positives: float, margin: float) -> PromptManifold:
    """Statistics of one part of the encoder's outputs, and the bound from another.

    The bound is the conformal one, the held-out distance of rank ceil((m + 1)(1 - a)) of m (the highest if there is no
    such rank), times `margin` for texts unlike those.

    Args:
        fitted: (N, L, D), embeddings of texts; N L must exceed D.
        held_out: (M, L, D), of other texts.
        false_positives: a, share of texts like the held-out ones that may exceed the bound before the margin.
        margin: factor on the bound, >= 1.

    Raises:
        GuardConfigError: too few embeddings for a covariance.
    """
    count, length, width = fitted.shape
    if count < 2 or count * length <= width or not len(held_out):
        raise GuardConfigError(
            f"{count} texts of {length} tokens are too few for the covariance of embeddings {width} wide; give more prompts."
        )
    values = fitted.double()
    mean = values.mean(dim=0)
    rest = (values - mean).flatten(0, 1)
    covariance = rest.T @ rest / len(rest)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    whitening = torch.linalg.cholesky(torch.linalg.inv(covariance))
    usual = _token_distance(values - mean, whitening).square().mean(dim=0).sqrt()
    scale = usual.clamp(min=LEAST_SCALE * float(usual.median()))
    unbounded = PromptManifold(mean.float(), whitening.float(), scale.float(), torch.tensor(0.0))
    distances = unbounded.distance(held_out).sort().values
    index = min(int(-(-(len(distances) + 1) * (1 - false_positives) // 1)), len(distances))
    return PromptManifold(unbounded.mean, unbounded.whitening, unbounded.scale, distances[index - 1] * margin)


def _token_distance(rest: Tensor, whitening: Tensor) -> Tensor:
    """Mahalanobis distance of each token (..., D) from its mean, by root mean square of the whitened values."""
    square = (rest @ whitening).square().mean(dim=-1)
    distance: Tensor = square.clamp(min=1e-12).sqrt()  # with a gradient at a token that is its mean
    return distance
