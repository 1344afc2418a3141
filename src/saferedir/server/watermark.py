"""Watermarks as plug-ins: what one must do, and how it is named.

saferedir brings none: of the libraries on the package index those that are maintained fetch weights when they run, and those that
run offline are not maintained. A package registers its own as an entry point of the group `saferedir.watermarks`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

from PIL import Image

from saferedir.server.errors import ServerError

GROUP = "saferedir.watermarks"
#: bytes of a payload: the first ones of the SHA-256 of the image's name
PAYLOAD = 8


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


def load_watermark(name: str) -> Watermark:
    """The plug-in of that name; ServerError where none is registered, or it lacks a method."""
    matches = entry_points(group=GROUP, name=name)
    if not matches:
        known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none"
        raise ServerError(f"there is no watermark {name!r}; a package registers one as {GROUP!r}; installed: {known}.")
    mark = next(iter(matches)).load()()
    if not isinstance(mark, Watermark):
        raise ServerError(f"the watermark {name!r} lacks `embed` or `read`.")
    return mark
