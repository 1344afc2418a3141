"""Negation sets of rendered images: one way to make them, for the tasks of both worlds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saferedir.guards.negation import NegationSet
from saferedir.pipelines.fingerprint import vae_fingerprint
from saferedir.pipelines.latents import encode_pixels, vae_of


def set_of_renders(
    pipe: Any, shown: Tensor, benign: Tensor | None, sources: str, dtype: torch.dtype = torch.float16
) -> NegationSet:
    """The images as latents of the pipeline, or as its pixels where it has no autoencoder.

    Args:
        pipe: the pipeline that the set is for.
        shown: (N, 3, H, W) in [-1, 1], images of the concept.
        benign: (M, 3, H, W) in [-1, 1], images of anything else; None for a set without them.
        sources: what the images are, for the set's record.
        dtype: of the stored rows, float16 or int8.
    """
    vae = vae_of(pipe)
    latents, *others = (encode_pixels(vae, pixels) for pixels in (shown, benign) if pixels is not None)
    facts = {"vae": vae_fingerprint(vae), "sources": sources}
    return NegationSet.from_latents(latents, others[0] if others else None, facts, dtype=dtype)
