"""CLIP zero-shot: which of some texts fits an image best.

Implements Sec. 3.1.2 of "Learning Transferable Visual Models From Natural Language Supervision" (arXiv:2103.00020).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.judges.images import weights_checksum
from saferedir.judges.pretrained import (
    image_processor,
    in_batches,
    load_part,
    model_facts,
    one_text_each,
    pixel_values,
)


class CLIPFeatures(Judge):
    """Base of judges that compare CLIP's embedding of an image with something.

    Args:
        model: CLIP, a folder or a hub id.
        allow_download: fetch from the hub what is not here.
        device: of torch.
        batch: images at a time.

    Raises:
        JudgeError: no CLIP model of that name here.
    """

    def __init__(self, model: str | Path, *, allow_download: bool, device: str, batch: int) -> None:
        from transformers import CLIPModel

        self.id, self.device, self.batch = str(model), device, batch
        self.processor = image_processor(self.id, allow_download=allow_download)
        self.network: Any = load_part(
            CLIPModel.from_pretrained, self.id, "a CLIP model", allow_download=allow_download, use_safetensors=True
        )
        self.network.to(device).eval().requires_grad_(False)

    def embeddings(self, images: Tensor) -> Tensor:
        """(B, d) image embeddings of unit length, of one batch."""
        values = pixel_values(self.processor, images).to(self.device)
        return unit_length(self.network.get_image_features(pixel_values=values))

    def features(self, images: Tensor) -> Tensor:
        """(B, d) image embeddings of unit length."""
        return in_batches(self.embeddings, self.check(images), self.batch)

    @cached_property
    def checksum(self) -> str:
        """Digest of CLIP's weights, computed once."""
        return weights_checksum(self.network)


class CLIPJudge(CLIPFeatures):
    """Probabilities over the texts, softmax(exp(logit scale) cos(image, text)): labels "zero-shot:<text>".

    They say which text fits best, not whether any fits: also give texts of what else an image may show.

    Args:
        model: a folder, or a hub id.
        texts: two or more, or one string with semicolons between them.
        template: sentence around each text, with {} in its place.
        allow_download: fetch from the hub what is not here.
        device: of torch.
        batch: images at a time.

    Raises:
        JudgeError: no CLIP model of that name here, or an option out of range.
    """

    name = "clip"

    def __init__(
        self,
        model: str | Path,
        texts: Sequence[str] | str,
        *,
        template: str = "{}",
        allow_download: bool = False,
        device: str = "cpu",
        batch: int = 32,
    ) -> None:
        if template.count("{}") != 1 or batch < 1:
            raise JudgeError(f"template is {template!r} and batch {batch}, expected one {{}} in it, and 1 or more.")
        from transformers import AutoTokenizer

        labels = one_text_each(texts, "zero-shot CLIP", 2)
        self.labels, self.template = tuple(f"zero-shot:{text}" for text in labels), template
        super().__init__(model, allow_download=allow_download, device=device, batch=batch)
        tokenizer = load_part(AutoTokenizer.from_pretrained, self.id, "CLIP's tokenizer", allow_download=allow_download)
        sentences = [template.replace("{}", text) for text in labels]
        tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            self.text_features = unit_length(self.network.get_text_features(**tokens))
            self.scale = float(self.network.logit_scale.exp())

    def score(self, images: Tensor) -> Tensor:
        def probabilities(chunk: Tensor) -> Tensor:
            return (self.scale * self.embeddings(chunk) @ self.text_features.T).softmax(dim=1)

        return in_batches(probabilities, images, self.batch)

    def facts(self) -> dict[str, Any]:
        return model_facts(self.id, self.checksum, self.processor, template=self.template)


def unit_length(output: Any) -> Tensor:
    """Embeddings of length one; transformers 5 returns an object around them, earlier ones the tensor."""
    embeddings: Tensor = (output if isinstance(output, Tensor) else output.pooler_output).float()
    return torch.nn.functional.normalize(embeddings, dim=-1)
