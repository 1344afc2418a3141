"""The judge: a small CNN that reads every attribute of a PictoWorld image and says when an image is broken.

Training: tools/pictoworld/training/judge.py. A second, independent judge is in template_judge.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saferedir.pictoworld.judge_network import JudgeNetwork
from saferedir.pictoworld.scene import JUDGED, VALUES, Scene
from saferedir.utils.images import to_rgb

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"


@dataclass(frozen=True)
class Judgement:
    """Output of a judge for B images.

    Attributes:
        probabilities: per attribute a (B, classes) tensor that sums to 1 over the values of `scene.VALUES`.
        broken: (B,) probability that the image shows no clear scene.
    """

    probabilities: dict[str, Tensor]
    broken: Tensor

    def __len__(self) -> int:
        return len(self.broken)

    @property
    def is_broken(self) -> Tensor:
        """(B,) bool."""
        return self.broken > 0.5

    def labels(self, attribute: str) -> list[str]:
        """The most probable value per image."""
        return [VALUES[attribute][i] for i in self.probabilities[attribute].argmax(dim=1).tolist()]

    def shows(self, values: dict[str, str] | None = None, **kwargs: str) -> Tensor:
        """(B,) bool: every one of the given attribute values is the most probable one and the image is not broken."""
        return self.is_labelled({**(values or {}), **kwargs}) & ~self.is_broken

    def is_labelled(self, values: Mapping[str, str]) -> Tensor:
        """(B,) bool: every one of the given attribute values is the most probable one, whether or not the image is broken.

        What a verifier must ask: an image with the concept is refused, however broken it looks.
        """
        out = torch.ones(len(self), dtype=torch.bool)
        for attribute, value in values.items():
            out = out & (self.probabilities[attribute].argmax(dim=1) == VALUES[attribute].index(value))
        return out

    def matches(self, scenes: Sequence[Scene], attribute: str) -> Tensor:
        """(B,) bool: the attribute looks as in the scene."""
        truth = torch.tensor([scene.index(attribute) for scene in scenes])
        return self.probabilities[attribute].argmax(dim=1) == truth


def to_tensor(images: Sequence[Image.Image] | Tensor | np.ndarray) -> Tensor:
    """PIL images, a (B, H, W, 3) array or a (B, 3, H, W) tensor in [0, 1], as a float32 (B, 3, 64, 64) tensor."""
    if isinstance(images, Tensor):
        tensor = images.float()
    elif isinstance(images, np.ndarray):
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    else:
        arrays = [np.asarray(to_rgb(image), dtype=np.float32) / 255 for image in images]
        tensor = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    if tensor.shape[-2:] != (64, 64):
        tensor = nn.functional.interpolate(tensor, size=(64, 64), mode="area")
    return tensor


class Judge(JudgeNetwork):
    """Convolutional network, (B, 3, 64, 64) in [0, 1] to one logit row per attribute and a broken logit."""

    def __init__(self, width: int = 32) -> None:
        super().__init__({name: len(VALUES[name]) for name in JUDGED}, width, hidden=128)

    @torch.no_grad()
    def judge(self, images: Sequence[Image.Image] | Tensor | np.ndarray, batch: int = 128) -> Judgement:
        """Judge images given as PIL images, an array or a tensor (see `to_tensor`)."""
        tensor = to_tensor(images)
        outputs = [self(chunk) for chunk in tensor.split(batch)]
        return Judgement(
            {name: torch.cat([logits[name] for logits, _ in outputs]).softmax(dim=1) for name in JUDGED},
            torch.cat([broken for _, broken in outputs]).sigmoid(),
        )

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The packaged judge, or one trained elsewhere."""
        return cls().with_weights(path)
