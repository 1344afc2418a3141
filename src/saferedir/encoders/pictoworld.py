"""The features of PictoWorld's judge as an encoder: packaged, 128 numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from saferedir.encoders.base import Encoder
from saferedir.judges.pictoworld import PictoWorldJudge


class PictoWorldEncoder(Encoder):
    """What the packaged CNN sees before its heads; images of another size than 64x64 are resized by area."""

    name = "pictoworld"

    def __init__(self) -> None:
        self.judge = PictoWorldJudge()

    def images(self, images: Tensor) -> Tensor:
        return self.judge.features(images)

    def facts(self) -> dict[str, Any]:
        return self.judge.facts()
