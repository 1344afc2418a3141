"""Watermarks as plug-ins: what one must do, and how it is named.

One is built in, "wavelet" (`wavelet.py`, extra `watermark`). A package registers its own as an entry point of the group
`saferedir.watermarks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from saferedir.errors import SaferedirError
from saferedir.server.errors import ServerError

GROUP = "saferedir.watermarks"
#: name -> where its class is; imported when it is used
BUILT_IN = {"wavelet": "saferedir.server.wavelet:WaveletMark"}
#: bytes of a payload: the first ones of the SHA-256 of the image's name
PAYLOAD = 4


@runtime_checkable
class Watermark(Protocol):
    """A mark in an image's pixels."""

    def embed(self, image: Image.Image, payload: bytes) -> Image.Image:
        """The image with the mark, of the same size and mode.

        Args:
            payload: `PAYLOAD` bytes.
        """
        ...

    def read(self, image: Image.Image) -> bytes | None:
        """The payload, or None where there is no mark."""
        ...


def payload_of(image_id: str) -> bytes:
    """What a watermark holds of an image's name."""
    return hashlib.sha256(image_id.encode()).digest()[:PAYLOAD]


def load_watermark(name: str) -> Watermark:
    """The plug-in of that name.

    Raises:
        ServerError: none is registered, or it lacks a method.
        MissingExtraError: what it needs is not installed.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        kind: Any = getattr(import_module(module), attribute)
    else:
        matches = entry_points(group=GROUP, name=name)
        if not matches:
            known = ", ".join(watermark_names())
            raise ServerError(f"there is no watermark {name!r}; a package registers one as {GROUP!r}; known: {known}.")
        kind = next(iter(matches)).load()
    mark = kind()
    if not isinstance(mark, Watermark):
        raise ServerError(f"the watermark {name!r} lacks `embed` or `read`.")
    return mark


def watermark_names() -> list[str]:
    """Of all plug-ins, the built-in ones first."""
    return [*BUILT_IN, *sorted(entry_points(group=GROUP).names - set(BUILT_IN))]


@dataclass(frozen=True)
class Reading:
    """What one watermark's reader says of an image.

    Attributes:
        payload: None where it reads none; an image may have had one that was lost.
        problem: why it cannot tell; "" where it can.
    """

    name: str
    payload: bytes | None
    problem: str = ""


def read_watermarks(file: Path) -> Iterator[Reading]:
    """What every plug-in reads from an image file, which has been checked to be one."""
    with Image.open(file) as image:
        image.load()
        for name in watermark_names():
            try:
                yield Reading(name, load_watermark(name).read(image))
            except SaferedirError as error:
                yield Reading(name, None, str(error))
            except Exception as error:  # of another's plug-in
                yield Reading(name, None, f"it failed ({type(error).__name__}).")
