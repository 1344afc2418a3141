"""Image files: which ones a folder holds, and each of them as 8-bit RGB, upright, on a white background.

The one reader of judges, negation sets, DUO pairs and reference folders: - 16-bit values keep their high byte, grey and
colour alike; 32-bit integers and floats: see `to_rgb`; - what is transparent lies on `BACKGROUND`; the first frame of
an animation is read; EXIF orientation is obeyed; - a file that is truncated, damaged, empty or larger than `MAX_PIXELS`
is an ImageFileError that names it, never half an image.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from saferedir.errors import ImageFileError
from saferedir.utils.file_names import shown_name

#: RGB under transparent pixels
BACKGROUND = (255, 255, 255)
#: more are taken for a decompression bomb; Pillow's own limit
MAX_PIXELS = 1024**3 // 4 // 3
#: formats that Pillow identifies, but decodes with another program, or not at all
_NOT_DECODED = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"})
#: format -> feature of Pillow without which it is identified, but not decoded
_NEEDS = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000", "JPEG": "jpg", "PNG": "zlib"}
_STRICT = threading.RLock()
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
#: names that the images of a pipeline's output have there: of most, of videos, of Kandinsky 5's images
OUTPUT_NAMES = ("images", "frames", "image")


def output_images(output: Any) -> Any:
    """The images (or videos) of what a pipeline returned, by whatever name its class has for them.

    Raises AttributeError for an output without images.
    """
    if isinstance(output, tuple):
        return output[0]
    return getattr(output, next((name for name in OUTPUT_NAMES if hasattr(output, name)), OUTPUT_NAMES[0]))


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here."""
    Image.init()
    return tuple(
        name for name in Image.OPEN if name not in _NOT_DECODED and (name not in _NEEDS or features.check(_NEEDS[name]))
    )


def image_suffixes() -> frozenset[str]:
    """Endings of file names that are read here, in lower case (".png", ".jfif", …)."""
    known, readable = Image.registered_extensions(), set(image_formats())
    return frozenset(suffix.lower() for suffix, name in known.items() if name in readable)


def read_image(path: Path) -> Image.Image:
    """The file as an RGB image (see `to_rgb`).

    Raises:
        ImageFileError: there is no such file, or it is no whole image.
    """
    return _read(path, None)


def read_array(path: Path) -> Bytes:
    """The file as (H, W, 3) bytes, RGB (see `read_image`)."""
    return np.array(read_image(path))


def check_image(path: Path) -> None:
    """Raise ImageFileError unless the file can be read; large JPEG files are decoded at a fraction of their size."""
    _read(path, (64, 64))


def _read(path: Path, draft: tuple[int, int] | None) -> Image.Image:
    try:
        if not path.is_file():
            raise OSError("it is no regular file" if path.exists() else "there is no such file")
        if not path.stat().st_size:
            raise OSError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _opened(path) as image:
                if image.format == "PNG":
                    image.verify()  # the checksum of every chunk, which decoding leaves out
            with _opened(path) as image:
                if draft is not None:
                    image.draft("RGB", draft)
                return to_rgb(image)
    except Exception as error:  # decoders of damaged files raise whatever they like
        raise ImageFileError(shown_name(path), _reason(error, path)) from error


def _opened(path: Path) -> Image.Image:
    image = Image.open(path, formats=image_formats())
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise OSError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    return image


def _reason(error: Exception, path: Path) -> str:
    """Why a file cannot be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).replace(str(path), path.name).split()).rstrip(".")
    return shown_name(text[:200]) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image of the first frame: turned upright, scaled to 8 bits, laid on `BACKGROUND` where it is transparent.

    Values of more than 8 bits: integers of n bits keep their 8 highest, n being 16 (or what a TIFF file says) and for
    32-bit integers 8, 16 or 32, the smallest that holds all values. Floats lie in 0..1, 0..255 or 0..65535, again the
    smallest. ValueError for NaN, infinity, negative values, and for a range that is none of these.
    """
    facts = _facts(image)
    with _strict_decoding():
        image.load()
    upright = _upright(image)
    if upright.mode[0] in "IF":
        grey = _eight_bits(np.asarray(upright), facts)
        opaque = np.full(grey.shape, 255, np.uint8)
        if isinstance(key := image.info.get("transparency"), int):
            opaque[np.asarray(upright) == key] = 0
        return _flattened(Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opaque))))
    if facts.is_deep and isinstance(
        key := image.info.get("transparency"), tuple
    ):  # 16 bits, where Pillow has only 8 left
        upright.info["transparency"] = tuple(value >> 8 for value in key)
    return _flattened(upright) if _is_transparent(upright) else upright.convert("RGB")


def _flattened(image: Image.Image) -> Image.Image:
    image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    palette = getattr(image.palette, "mode", "") if image.mode == "P" else ""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info or palette.endswith("A")


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # a damaged EXIF block says nothing of the orientation
        return ImageOps.exif_transpose(image)
    return image.copy()


@contextmanager
def _strict_decoding() -> Iterator[None]:
    """Inside, Pillow raises on truncated files, even where a program set it to fill the rest with grey."""
    with _STRICT:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


class _Facts(NamedTuple):
    """What only the file says of its values: bits, how a TIFF encodes them, whether 0 is white, whether colours have 16 bits."""

    bits: int | None = None
    is_signed: bool = False
    is_inverted: bool = False
    is_deep: bool = False


def _facts(image: Image.Image) -> _Facts:
    """Facts of a file that is opened, but not yet decoded."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        bits = tags.get(258, (8,))
        kind = tags.get(339, (1,))
        return _Facts(int(np.ravel(bits)[0]), int(np.ravel(kind)[0]) == 2, tags.get(262) == 0)
    is_deep = image.format == "PNG" and any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return _Facts(16 if image.format in ("PNG", "PPM") else None, is_deep=is_deep)


def _eight_bits(values: np.ndarray[Any, Any], facts: _Facts) -> Bytes:
    """Values of more than 8 bits as bytes (see `to_rgb`)."""
    if values.dtype.kind == "f":
        grey = _from_floats(values)
    else:
        if facts.bits == 32 and not facts.is_signed:
            values = values.view(np.uint32)
        grey = _from_integers(values, facts)
    return 255 - grey if facts.is_inverted else grey


def _from_integers(values: np.ndarray[Any, Any], facts: _Facts) -> Bytes:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise ValueError(f"it holds negative values (down to {low})")
    if values.dtype.itemsize == 2 or facts.bits in (12, 16):
        bits = (facts.bits if facts.bits in (12, 16) else 16) - facts.is_signed
    elif high < 2**8:
        bits = 8
    elif high < 2**16:
        bits = 16
    elif high < 2**23:
        raise ValueError(f"its 32-bit values reach {high} only; save it with 8 or 16 bits")
    else:
        bits = 32 if values.dtype.kind == "u" else 31
    return (values >> (bits - 8)).astype(np.uint8)


def _from_floats(values: np.ndarray[Any, Any]) -> Bytes:
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if low >= -0.001 and high <= 1.001:
        return (values.clip(0, 1) * 255).round().astype(np.uint8)
    if low < 0 or high < 16 or high > 65535:
        raise ValueError(f"its values reach from {low:g} to {high:g}, expected 0 to 1, 0 to 255 or 0 to 65535")
    return (values.round() if high <= 255 else values // 256).astype(np.uint8)
