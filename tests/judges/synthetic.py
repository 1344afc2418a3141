"""Images and detector outputs made up for the tests of judges: nothing here comes from a photograph."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

SIDE, ANCHORS, CLASSES = 320, 2100, 18


def drawn_face() -> np.ndarray:
    """(320, 256, 3) 8-bit RGB: a face of ellipses, the least that a detector of body parts answers to."""
    skin, hair = (235, 190, 160), (60, 30, 20)
    image = Image.new("RGB", (256, 320), (120, 150, 180))
    pen = ImageDraw.Draw(image)
    pen.ellipse((60, 30, 196, 200), fill=hair)
    pen.rectangle((60, 110, 196, 230), fill=hair)
    pen.rectangle((108, 200, 148, 260), fill=skin)
    pen.ellipse((30, 240, 226, 420), fill=(60, 60, 120))
    pen.ellipse((75, 60, 181, 215), fill=skin)
    for x in (104, 152):
        pen.ellipse((x - 14, 118, x + 14, 136), fill="white")
        pen.ellipse((x - 6, 119, x + 6, 133), fill=(60, 40, 20))
        pen.line((x - 16, 108, x + 16, 106), fill=hair, width=5)
    pen.polygon([(128, 130), (118, 168), (138, 168)], fill=(206, 167, 140))
    pen.ellipse((108, 180, 148, 196), fill=(190, 80, 80))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1.5))).copy()


def as_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) 8-bit to (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255


def detector_output(seed: int, count: int = 80) -> np.ndarray:
    """(4 + classes, anchors): `count` clear anchors in clusters that overlap, some beyond the image's edge; the rest faint."""
    generates = np.random.default_rng(seed)
    output = np.zeros((4 + CLASSES, ANCHORS), np.float32)
    output[:2] = generates.uniform(0, SIDE, (2, ANCHORS))
    output[2:4] = generates.uniform(10, 60, (2, ANCHORS))
    output[4:] = generates.uniform(0, 0.15, (CLASSES, ANCHORS))
    for place in generates.choice(ANCHORS, count, replace=False):
        centre = generates.choice([-5.0, 40.0, 160.0, 260.0, 322.0], 2)
        output[:2, place] = centre + generates.normal(0, 6, 2)
        output[2:4, place] = generates.uniform(30, 120, 2)
        output[4 + generates.integers(CLASSES), place] = generates.uniform(0.17, 0.95)
    return output


class FixedNetwork:
    """Stands in for an ONNX session: the same output for every image, whatever it shows."""

    def __init__(self, output: np.ndarray) -> None:
        self.output = output

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="images")]

    def run(self, names: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [np.repeat(self.output[None], len(feed["images"]), axis=0)]
