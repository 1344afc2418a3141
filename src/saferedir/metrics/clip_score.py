"""CLIP score: how well an image fits its words, one number an image.

Transformers only when a model is loaded. What is made of the scores: forgetting.csdr, distributions.cmmd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saferedir.errors import MetricError
from saferedir.metrics import checks
from saferedir.utils.extras import require_extra


def clip_score(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """(N,) 100 cos(image, text) of two (N, d) embeddings, in [-100, 100], higher fits better.

    Deviation from Hessel et al. 2021 (arXiv:2104.08718): times 100 instead of 2.5, and negative cosines stay.
    """
    images = checks.features("the image embeddings", image_embeds)
    texts = checks.features("the text embeddings", text_embeds, tuple(images.shape))
    return 100 * (normalize(images, dim=1) * normalize(texts, dim=1)).sum(dim=1)


@dataclass(frozen=True)
class ClipScores:
    """Scores of N images.

    Attributes:
        values: (N,) float64, 100 × cosine.
        is_truncated: (N,) bool, the text had more tokens than the model reads (77), and its end counted for nothing.
        limit: that number.
    """

    values: Tensor
    is_truncated: Tensor
    limit: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """For a record: one sentence if any text was cut."""
        cut = int(self.is_truncated.sum())
        if not cut:
            return ()
        return (
            f"{cut} of {len(self.values)} texts have over {self.limit} tokens, and CLIP read their beginning only.",
        )


class ClipModel:
    """A transformers CLIP with its tokenizer and image processor, frozen.

    Args:
        model: `CLIPModel`; `load` brings it with the other two.
        tokenizer: the model's own.
        processor: the model's own, of images.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.processor = tokenizer, processor
        self.limit: int = model.config.text_config.max_position_embeddings

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu", download: bool = False) -> ClipModel:
        """From a folder or a hub id; only files at hand unless `download`, and safetensors only."""
        transformers = require_extra("transformers", "bench", "the CLIP score")
        # The image processor on Pillow needs no torchvision; older releases have it under the plain name.
        processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        at_hand = {"local_files_only": not download}
        try:
            return cls(
                transformers.CLIPModel.from_pretrained(str(name), use_safetensors=True, **at_hand).to(device),
                transformers.CLIPTokenizer.from_pretrained(str(name), **at_hand),
                processor.from_pretrained(str(name), **at_hand),
            )
        except (OSError, ValueError) as error:
            raise MetricError(
                f"there is no complete CLIP {str(name)!r} at hand (model.safetensors, tokenizer, preprocessor_config.json); "
                "give a folder, or load(..., download=True)."
            ) from error

    @torch.no_grad()
    def images(self, images: Tensor, batch: int = 32) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] to (N, d) float32 embeddings of unit length, on the CPU."""
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise MetricError(f"images have shape {tuple(images.shape)}, expected (N, 3, H, W) with N >= 1.")
        embeds = []
        for chunk in images.split(batch):
            arrays = list((chunk.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
            pixels = self.processor(images=arrays, return_tensors="pt", input_data_format="channels_last")[
                "pixel_values"
            ]
            embeds.append(_embeds(self.model.get_image_features(pixel_values=pixels.to(self.model.device))))
        return torch.cat(embeds)

    @torch.no_grad()
    def texts(self, texts: Sequence[str], batch: int = 128) -> tuple[Tensor, Tensor]:
        """N texts to (N, d) float32 embeddings of unit length, and (N,) bool: longer than the model reads."""
        if not texts:
            raise MetricError("there are no texts to score, expected at least one.")
        embeds, truncated = [], []
        for start in range(0, len(texts), batch):
            chunk = list(texts[start : start + batch])
            lengths = [len(ids) for ids in self.tokenizer(chunk, truncation=False, verbose=False)["input_ids"]]
            truncated += [length > self.limit for length in lengths]
            tokens = self.tokenizer(chunk, padding=True, truncation=True, max_length=self.limit, return_tensors="pt")
            embeds.append(_embeds(self.model.get_text_features(**tokens.to(self.model.device))))
        return torch.cat(embeds), torch.tensor(truncated)

    def score(self, images: Tensor, texts: Sequence[str]) -> ClipScores:
        """CLIP score of image i with text i."""
        if len(images) != len(texts):
            raise MetricError(f"there are {len(images)} images and {len(texts)} texts, expected one text an image.")
        embeds, is_truncated = self.texts(texts)
        return ClipScores(clip_score(self.images(images), embeds), is_truncated, self.limit)


def _embeds(output: Any) -> Tensor:
    """Unit rows of what `get_*_features` returns: an object since transformers 5, a tensor before."""
    return normalize(getattr(output, "pooler_output", output).float(), dim=1).cpu()
