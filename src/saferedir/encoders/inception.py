"""The Inception-v3 of published FID and KID as an encoder, from a weights file."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from saferedir.encoders.base import Encoder
from saferedir.errors import EncoderError
from saferedir.judges.images import file_checksum
from saferedir.metrics.distributions import inception


class InceptionEncoder(Encoder):
    """Features of torch-fidelity's Inception-v3 (`metrics.inception`), which resizes by itself.

    Args:
        weights: the file `weights-inception-2015-12-05-6726825d.pth`.
        layer: 64, 192, 768 or 2048 features.

    Raises:
        EncoderError: `weights` is no path. MetricError: no such file. MissingExtraError: no torch-fidelity.
    """

    name = "inception"

    def __init__(self, weights: str | Path, *, layer: int = 2048) -> None:
        if not isinstance(weights, str | Path):
            raise EncoderError(f"weights is {weights!r}, expected the path of a file.")
        path = Path(weights).expanduser()
        self.network = inception(path, layer)
        self.layer, self.checksum = layer, file_checksum(path)

    def images(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features

    def facts(self) -> dict[str, Any]:
        return {
            "id": "inception-v3-compat",
            "weights": self.checksum,
            "layer": self.layer,
            "resize": "height 299, width 299, bilinear as in TensorFlow 1",
            "version": f"torchmetrics {metadata.version('torchmetrics')}",
        }
