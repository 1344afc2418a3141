"""Images that a pipeline call is given: read from its arguments, as PIL images for a verifier.

What cannot be looked at (latents, embeddings of images) is refused, so that nothing passes unchecked. Knows no guard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.utils.images import to_rgb

#: arguments that bring images, beside those with "image" in their name
_VIDEOS = frozenset({"video", "control_video", "conditioning_frames", "control_frames"})
#: "image" in the name, and no image in the value
_NUMBERS = ("_scale", "_size", "_strength", "_seq_len")
_UNSEEN = ("_embeds", "_latents", "_embeddings")


def input_images(call: Mapping[str, Any]) -> list[tuple[str, Image.Image]]:
    """(argument, image) of every image in a call, masks left out.

    Raises:
        GuardError: an argument holds latents or embeddings of images, or nothing that is known for an image.
    """
    given: list[tuple[str, Image.Image]] = []
    for name, value in call.items():
        if value is None or not ("image" in name or name in _VIDEOS):
            continue
        if "mask" in name or name.startswith("num_") or name.endswith(_NUMBERS):
            continue
        if name.endswith(_UNSEEN):
            raise GuardError(
                f"{name} cannot be looked at, and check_inputs is on, so nothing is generated; give the image."
            )
        given += [(name, image) for image in _images(name, value)]
    return given


def _images(name: str, value: Any) -> Iterator[Image.Image]:
    if isinstance(value, Image.Image):
        yield to_rgb(value)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _images(name, part)
    elif isinstance(value, np.ndarray):
        values = torch.from_numpy(np.array(value))
        yield from _pixels(name, values if values.dtype != torch.uint8 else values.float() / 255, channels=-1)
    elif isinstance(value, Tensor):
        yield from _pixels(name, value.detach().float().cpu(), channels=-3)
    elif value is not None:
        raise GuardError(
            f"{name} is {type(value).__name__}, which cannot be looked at, and check_inputs is on, so nothing is generated; give "
            "a PIL image, an array or a tensor."
        )


def _pixels(name: str, values: Tensor, channels: int) -> Iterator[Image.Image]:
    """Images of floats in [0, 1], or [-1, 1] where one is negative, as diffusers takes them; any number of leading axes."""
    if values.ndim < 3 or values.shape[channels] not in (1, 3) or not bool(torch.isfinite(values).all()):
        raise GuardError(
            f"{name} of shape {tuple(values.shape)} is no image (latents?), and check_inputs is on, so nothing is generated; "
            "give values of 1 or 3 channels, or a PIL image."
        )
    values = values.float() if channels == -3 else values.float().movedim(-1, -3)
    if bool((values < 0).any()):
        values = (values + 1) / 2
    rows = values.clamp(0, 1).reshape(-1, *values.shape[-3:]).expand(-1, 3, -1, -1)
    for row in rows:
        yield Image.fromarray((row.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
