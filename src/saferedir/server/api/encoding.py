"""Images from and for clients: bytes that may be anything in, PNG, WebP or JPEG out."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageOps

from saferedir.server.api.schemas import OutputFormat
from saferedir.server.errors import ApiError, bad_request
from saferedir.server.provenance import png_text
from saferedir.utils.images import to_rgb

_FORMATS = ("PNG", "JPEG", "WEBP")


def encoded(image: Image.Image, output_format: OutputFormat, compression: int, facts: Mapping[str, Any]) -> bytes:
    """The image as a file; `compression` is the quality of JPEG and WebP in per cent, `facts` go into a PNG's text."""
    file = io.BytesIO()
    if output_format == "png":
        image.save(file, "PNG", pnginfo=png_text(facts))
    else:
        image.convert("RGB").save(file, output_format.upper(), quality=compression)
    return file.getvalue()


def pixels_of(data: bytes, most_pixels: int, param: str) -> int:
    """Width times height of a client's image, read from its head; 400 as of `decoded`."""
    with _opened(data, most_pixels, param) as image:
        return image.width * image.height


def decoded(data: bytes, most_pixels: int, param: str) -> Image.Image:
    """An 8-bit RGB image of a client's bytes; 400 for what is no image, or too large once decoded."""
    with _opened(data, most_pixels, param) as image:
        image.load()
        return to_rgb(image)


@contextmanager
def _opened(data: bytes, most_pixels: int, param: str) -> Iterator[Image.Image]:
    """The image of a client's bytes, not yet decoded; what its decoder raises within becomes a 400."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > most_pixels:
                    raise bad_request(
                        f"{param} has {image.width} x {image.height} pixels; {max(most_pixels, 0)} are allowed.",
                        "image_too_large",
                        param,
                    )
                yield image
    except ApiError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise bad_request(f"{param} has more than {max(most_pixels, 0)} pixels.", "image_too_large", param) from error
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise bad_request(f"{param} is no whole PNG, JPEG or WebP image.", "invalid_image", param) from error


def fitted(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """An image scaled and cut to a size; without one, to multiples of 16 pixels."""
    width, height = size or (max(16, image.width // 16 * 16), max(16, image.height // 16 * 16))
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def bytes_of_url(url: str, param: str) -> bytes:
    """The file in a data: URL in base64; no other address is opened."""
    head, comma, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64") or not comma:
        raise bad_request(
            f"{param} is no data: URL of an image in base64; this service opens no other address.",
            "invalid_image_url",
            param,
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{param} is not base64.", "invalid_image_url", param) from error
