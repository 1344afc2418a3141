"""CLIP as an encoder: images and texts in one space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from saferedir.encoders.base import Encoder
from saferedir.errors import EncoderError, MetricError
from saferedir.judges.images import weights_checksum
from saferedir.judges.pretrained import preprocessing_facts, transformers_version
from saferedir.metrics.clip_score import ClipModel


class CLIPEncoder(Encoder):
    """Embeddings of unit length by a CLIP of `transformers`.

    Args:
        model: a folder, or a hub id.
        allow_download: fetch from the hub what is not here.
        device: of torch.
        batch: images at a time.

    Raises:
        EncoderError: no complete CLIP of that name here, or an option out of range.
    """

    name = "clip"

    def __init__(
        self, model: str | Path, *, allow_download: bool = False, device: str = "cpu", batch: int = 32
    ) -> None:
        if not isinstance(model, str | Path):
            raise EncoderError(f"model is {model!r}, expected a folder or a hub id.")
        if batch < 1:
            raise EncoderError(f"batch is {batch}, expected 1 or more.")
        self.id, self.batch = str(model), batch
        try:
            self.clip = ClipModel.load(Path(model).expanduser(), device=device, download=allow_download)
        except MetricError as error:
            advice = "" if allow_download else ", or set allow_download = true to fetch it from the hub"
            raise EncoderError(
                f"there is no complete CLIP {self.id!r} at hand (model.safetensors, tokenizer, preprocessor_config.json); give "
                f"another folder or hub id as `model`{advice}."
            ) from error

    def images(self, images: Tensor) -> Tensor:
        return self.clip.images(images, self.batch)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors of texts, and which were cut; the limit is the model's own, 77 tokens with every CLIP that was published."""
        return self.clip.texts(texts)

    @cached_property
    def checksums(self) -> dict[str, str]:
        """Digest of the weights and of the tokenizer's words and rules, computed once."""
        rules = json.loads(self.clip.tokenizer.backend_tokenizer.to_str())
        words = {
            key: value for key, value in rules.items() if key not in ("truncation", "padding")
        }  # set by every call
        text = json.dumps([words, self.clip.limit], sort_keys=True)
        return {
            "weights": weights_checksum(self.clip.model),
            "tokenizer": hashlib.sha256(text.encode()).hexdigest()[:16],
        }

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.id,
            **self.checksums,
            **preprocessing_facts(self.clip.processor),
            "version": transformers_version(),
        }
