"""Images that a pipeline call is given, read from its arguments as a verifier takes them. Knows no guard.

The call goes on with the very images that were checked: upright RGB without transparency. What cannot be checked (latents,
embeddings of images, tensors within other arguments, a crop that the pipeline enlarges) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.utils.images import to_rgb

Kind = Literal["image", "hidden", "other"]
#: arguments that bring images, beside those with "image" in their name
_VIDEOS = frozenset({"video", "control_video", "conditioning_frames", "control_frames"})
#: say where to paint, not what
_MASKS = frozenset({"mask_image", "control_mask"})
#: "image" in the name, and a number in the value
_NUMBERS = ("_scale", "_size", "_strength", "_seq_len", "_per_prompt")
_HIDDEN = frozenset({"latents", "padding_mask_crop"})
_HIDDEN_ENDS = ("_embeds", "_latents", "_embeddings")


class InputImage(NamedTuple):
    """One input image: the argument that brought it, its 0-based number among that argument's images, and itself in RGB."""

    argument: str
    number: int
    image: Image.Image


def kind_of_argument(name: str) -> Kind:
    """Whether an argument of a pipeline's call brings images, something of images that cannot be checked, or neither."""
    if name in _HIDDEN or ("image" in name and name.endswith(_HIDDEN_ENDS) and not name.startswith("negative_")):
        return "hidden"
    if name.startswith("negative_") or name in _MASKS or name.endswith(_NUMBERS):
        return "other"
    return "image" if "image" in name or name in _VIDEOS else "other"


def with_input_images(
    call: Mapping[str, Any], *, are_latents_tested: bool = False
) -> tuple[dict[str, Any], list[InputImage]]:
    """The call with upright RGB in place of its PIL images, and all its images; masks and negative images are left out.

    Args:
        call: arguments of a pipeline's call by name.
        are_latents_tested: whether a guard tests `latents` of the caller by itself, so that they may be given.

    Raises:
        GuardError: an argument brings what cannot be checked, or nothing that is known for an image.
    """
    changed, images = dict(call), list[InputImage]()
    for name, value in call.items():
        kind = kind_of_argument(name)
        if value is None or (name == "latents" and are_latents_tested):
            continue
        if kind == "hidden" or (name.endswith("_kwargs") and _has_tensor(value)):
            raise GuardError(
                f"{name} cannot be checked, and check_inputs is on, so nothing is generated; leave it out, and give images as "
                "such."
            )
        if kind == "image":
            changed[name] = _upright(value)
            images += [InputImage(name, index, image) for index, image in enumerate(_images(name, changed[name]))]
    return changed, images


def _upright(value: Any) -> Any:
    """`value` with every PIL image as upright RGB."""
    if isinstance(value, Image.Image):
        return to_rgb(value)
    return [_upright(part) for part in value] if isinstance(value, list | tuple) else value


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, Tensor | np.ndarray) or (isinstance(value, list | tuple) and any(map(_has_tensor, value)))


def _images(name: str, value: Any) -> Iterator[Image.Image]:
    """All images of one argument, in order."""
    leaves = list(_leaves(value))
    pixels = [_channels_first(name, leaf) for leaf in leaves if not isinstance(leaf, Image.Image)]
    is_signed = any(bool((part < 0).any()) for part in pixels)  # diffusers decides it for the whole argument
    lowest = -1 if is_signed else 0
    if any(bool((part < lowest).any()) or bool((part > 1).any()) for part in pixels):
        raise GuardError(
            f"{name} has values outside of [{lowest}, 1], and check_inputs is on, nothing is generated; give [0, 1] or [-1, 1]."
        )
    rest = iter(pixels)
    for leaf in leaves:
        if isinstance(leaf, Image.Image):
            yield leaf
            continue
        part = next(rest)
        rows = ((part + 1) / 2 if is_signed else part).reshape(-1, *part.shape[-3:]).expand(-1, 3, -1, -1)
        for row in rows:
            yield Image.fromarray((row.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif value is not None:
        yield value


def _channels_first(name: str, value: Any) -> Tensor:
    """Finite floats (..., C, H, W) of 1 or 3 channels, as diffusers takes tensors and arrays."""
    if isinstance(value, Tensor):
        values = value.detach().cpu()
    elif isinstance(value, np.ndarray):
        values = torch.from_numpy(np.array(value))
        values = values.movedim(-1, -3) if values.ndim >= 3 else values
    else:
        raise GuardError(
            f"{name} is {type(value).__name__}, which cannot be checked, and check_inputs is on, so nothing is generated; give "
            "a PIL image, an array or a tensor."
        )
    is_image = values.is_floating_point() and values.ndim >= 3 and values.shape[-3] in (1, 3)
    if not is_image or not bool(torch.isfinite(values).all()):
        raise GuardError(
            f"{name} of shape {tuple(value.shape)} and {value.dtype} is no image (latents?), and check_inputs is on, so nothing "
            "is generated; give finite floats of 1 or 3 channels, or a PIL image."
        )
    return values.float()
