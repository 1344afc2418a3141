"""Encoder: images in, one vector each out; with some (CLIP) also texts, to vectors of the same space.

Concrete encoders: one file each; their names: registry.py. What is measured: bench/evaluation/encoder_metrics.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.errors import EncoderError


class Encoder(ABC):
    """Base class. An encoder is deterministic, and encodes each image and each text by itself."""

    #: name in the registry and in records
    name: ClassVar[str] = ""

    @abstractmethod
    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] to (B, d) float32."""

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """B texts to (B, d) float32, and (B,) bool: the encoder saw only the text's beginning. None where it reads no texts."""
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Plain data that fix the vectors, as in `Judge.facts`: "id", "weights" (checksum, or "unknown"), "resize", "version".

        Where the weights are known, "id" is for people only: all else that tells two encoders apart must stand beside it.
        """

    @property
    def reads_texts(self) -> bool:
        """Whether it encodes texts, too; tried with one."""
        return self.encode_texts(["an image"]) is not None

    def encode(self, images: Tensor) -> Tensor:
        """`images`, checked on the way in and out, without gradients, on the CPU."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise EncoderError(f"images have shape {tuple(images.shape)}, expected (B, 3, H, W).")
        images = images.float()
        if images.numel() and not bool(torch.isfinite(images).all() & (images.min() >= 0) & (images.max() <= 1)):
            raise EncoderError("images must lie in [0, 1]; divide 8-bit values by 255.")
        with torch.no_grad():
            return self._checked(self.images(images), len(images), "images")

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """`texts`, checked on the way out, without gradients, on the CPU."""
        with torch.no_grad():
            encoded = self.texts(texts)
        if encoded is None:
            return None
        vectors, is_truncated = self._checked(encoded[0], len(texts), "texts"), encoded[1]
        if is_truncated.dtype != torch.bool or is_truncated.shape != (len(texts),):
            raise EncoderError(
                f"encoder {self.name!r} said which texts it cut by {is_truncated.dtype} of shape {tuple(is_truncated.shape)}, "
                f"expected bool of shape ({len(texts)},)."
            )
        return vectors, is_truncated.cpu()

    def _checked(self, vectors: Any, n: int, what: str) -> Tensor:
        """(n, d) float32 on the CPU: a vector that is not finite is an error, for NaN means an image never made."""
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != n or not vectors.shape[1]:
            actual = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise EncoderError(
                f"encoder {self.name!r} gave {actual} for {n} {what}, expected a tensor of shape ({n}, d)."
            )
        features = vectors.detach().float().cpu()
        bad = int((~features.isfinite()).any(dim=1).sum())
        if bad:
            raise EncoderError(
                f"encoder {self.name!r} gave numbers that are not finite for {bad} of {n} {what}; check its weights and options."
            )
        return features
