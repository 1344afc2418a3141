"""Any image classifier of `transformers`, by id or folder, as a judge.

Traps of the papers' two classifiers (presets.py). Van Gogh: 129 styles, and papers count the artist among the first 1, 3 or 10;
a blind guess is in the first 10 in 7.8 % of cases, so that top 10 without calibration flatters an attack. ImageNet: class names
differ between copies of the same network, so that its presets go by index (`names="index"`).
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.judges.images import weights_checksum
from saferedir.judges.pretrained import (
    image_processor,
    in_batches,
    load_part,
    model_facts,
    pixel_values,
)

NAMES = ("name", "index")


class ClassifierJudge(Judge):
    """Softmax probabilities of an image classifier, "class:<name>" or "class:<index>".

    Args:
        model: a folder, or a hub id.
        names: "name" labels classes as the model's configuration does, "index" by their number.
        allow_download: fetch from the hub what is not here.
        device: of torch.
        batch: images at a time.

    Raises:
        JudgeError: no such model here, an option out of range, or a class name twice (then use names="index").
    """

    name = "classifier"

    def __init__(
        self,
        model: str | Path,
        *,
        names: str = "name",
        allow_download: bool = False,
        device: str = "cpu",
        batch: int = 32,
    ) -> None:
        if names not in NAMES or batch < 1:
            raise JudgeError(f"names is {names!r} and batch {batch}, expected name or index, and 1 or more.")
        from transformers import AutoModelForImageClassification

        self.id, self.names, self.device, self.batch = str(model), names, device, batch
        self.processor = image_processor(self.id, allow_download=allow_download)
        self.network: Any = load_part(
            AutoModelForImageClassification.from_pretrained,
            self.id,
            "an image classifier",
            allow_download=allow_download,
            use_safetensors=True,
        )
        self.network.to(device).eval().requires_grad_(False)
        count = int(self.network.config.num_labels)
        titles = [str(self.network.config.id2label[index]) for index in range(count)]
        self.labels = tuple(f"class:{title if names == 'name' else index}" for index, title in enumerate(titles))
        if len(set(self.labels)) != count:
            raise JudgeError(f"the classifier {self.id!r} has two classes of one name; set names to index.")

    def score(self, images: Tensor) -> Tensor:
        return in_batches(self._probabilities, images, self.batch)

    def _probabilities(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=pixel_values(self.processor, images).to(self.device)).logits
        return logits.float().softmax(dim=1)

    @cached_property
    def checksum(self) -> str:
        """Digest of the weights, computed once."""
        return weights_checksum(self.network)

    def facts(self) -> dict[str, Any]:
        return model_facts(self.id, self.checksum, self.processor, names=self.names)
