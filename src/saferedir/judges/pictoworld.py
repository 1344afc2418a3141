"""PictoWorld's two judges behind the common contract: the CNN, and the template search that confirms it.

The networks themselves: pictoworld/judge.py, pictoworld/template_judge.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.judges.images import file_checksum
from saferedir.judges.rules import AllOf, AnyAbove, InTop, Rule, Unless
from saferedir.pictoworld import judge as network
from saferedir.pictoworld.scene import JUDGED, VALUES
from saferedir.pictoworld.template_judge import TemplateJudge
from saferedir.utils.packaged import library_version

LABELS = (*(f"{attribute}:{value}" for attribute in JUDGED for value in VALUES[attribute]), "broken")
BROKEN = AnyAbove(("broken",), 0.5)


def concept_rule(forget: Mapping[str, str]) -> Rule:
    """Every value of `forget` ({"shape": "star"}) is its attribute's most probable one and the image is not broken.

    The same decision as `pictoworld.judge.Judgement.shows`.

    Raises:
        JudgeError: an attribute or value that the judges do not know.
    """
    for attribute, value in forget.items():
        if attribute not in JUDGED:
            raise JudgeError(f"PictoWorld's judges read no attribute {attribute!r}; known: {', '.join(JUDGED)}.")
        if value not in VALUES[attribute]:
            known = ", ".join(VALUES[attribute])
            raise JudgeError(f"attribute {attribute!r} has no value {value!r}; known: {known}.")
    return Unless(AllOf(tuple(InTop(attribute, value) for attribute, value in forget.items())), BROKEN)


def _columns(judgement: network.Judgement) -> Tensor:
    """(B, L) in the order of `LABELS`."""
    return torch.cat([*(judgement.probabilities[name] for name in JUDGED), judgement.broken[:, None]], dim=1)


class PictoWorldJudge(Judge):
    """The packaged CNN, or one trained elsewhere (`weights`, a safetensors file).

    Scores: probabilities that sum to 1 over the values of an attribute, and the probability that no clear scene is shown.
    Images of another size than 64x64 are resized by area.
    """

    name = "pictoworld"
    labels = LABELS

    def __init__(self, *, weights: str | Path = network.WEIGHTS) -> None:
        self.weights = Path(weights)
        if not self.weights.is_file():
            raise JudgeError(f"there is no weights file {self.weights} for the PictoWorld judge.")
        self.network = network.Judge.load(self.weights)

    def score(self, images: Tensor) -> Tensor:
        return _columns(self.network.judge(images.cpu()))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, 128) description before the CNN's heads."""
        return self.network.features(network.to_tensor(self.check(images).cpu()))

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "weights": file_checksum(self.weights),
            "channels": "RGB",
            "resize": "area to 64x64",
            "floor": 0.0,
            "version": library_version(),
        }


class PictoWorldTemplateJudge(Judge):
    """Analysis by synthesis: the render that explains the image best; all scores are 0 or 1. About 10 ms an image."""

    name = "pictoworld-template"
    labels = LABELS

    def __init__(self) -> None:
        self.templates = TemplateJudge()

    def score(self, images: Tensor) -> Tensor:
        return _columns(self.templates.judge(network.to_tensor(images.cpu())))

    def facts(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "weights": "none",
            "channels": "RGB",
            "resize": "area to 64x64",
            "floor": 0.0,
            "version": library_version(),
        }
