"""An encoder of your own: any function from images to vectors, and one from texts if there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from saferedir.encoders.base import Encoder
from saferedir.judges.callable import as_function, location_of


class CallableEncoder(Encoder):
    """Calls `function` with (B, 3, H, W) float32 RGB images in [0, 1]; it returns (B, d).

    The functions must be deterministic, and encode each image and text by itself.

    Args:
        function: the function, or "module:function".
        texts: the same for a list of B texts, to (B, d); none where the encoder reads no texts.
        name: of the encoder in its facts, by default the function's own.
        version: of the functions, recorded with the vectors; change it when a function changes.

    Raises:
        JudgeError: no such function, or none at all.
    """

    name = "callable"

    def __init__(
        self,
        function: Callable[[Tensor], Tensor] | str,
        *,
        texts: Callable[[Sequence[str]], Tensor] | str | None = None,
        name: str = "",
        version: str = "unversioned",
    ) -> None:
        self.function = as_function("function", function)
        self.of_texts = None if texts is None else as_function("texts", texts)
        self.id, self.version = name or location_of(function), version
        self.location = location_of(function)
        self.texts_id = "" if texts is None else location_of(texts)

    def images(self, images: Tensor) -> Tensor:
        features: Tensor = self.function(images)
        return features

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        if self.of_texts is None:
            return None
        return self.of_texts(list(texts)), torch.zeros(len(texts), dtype=torch.bool)

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            **({"function": self.location} if self.id != self.location else {}),
            "texts": self.texts_id,
            "weights": "unknown",
            "resize": "none",
            "version": self.version,
        }
