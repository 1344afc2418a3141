"""The built-in watermark "wavelet": a payload and its checksum in the wavelet coefficients of an image. Extra `watermark`.

The transform is wmforge's: Haar wavelet, cosine transform of 4x4 blocks of the approximation, the two largest singular values of
each quantised (36 and 20, which moves pixels by a few of 255 levels). Runs offline and has no weights.
"""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saferedir.server.errors import ServerError
from saferedir.server.watermark import PAYLOAD
from saferedir.utils.extras import require_extra
from saferedir.utils.images import to_rgb

_CHECKSUM = 2  # bytes; a checksum that does not start at 0, for an image of one colour reads as nothing but zeros
BITS = 8 * (PAYLOAD + _CHECKSUM)
#: added to each bit, so that no image's own regularity is a payload
_MASK = np.random.RandomState(0).randint(0, 2, BITS).astype(np.uint8)
#: levels of 255 that are left free at both ends, tried in turn: near black and white there is no room to move a pixel
_HEADROOMS = (0, 10, 20, 30)
#: of the luma and both chroma channels, tried in turn when it is read; JPEG and WebP keep little of chroma
_WEIGHTS = ((3.0, 1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class WaveletMark:
    """See `watermark.Watermark`; for RGB images of at least `BITS` blocks of 8 x 8 pixels, such as 64x48.

    Raises:
        MissingExtraError: the extra `watermark` is not installed.
    """

    def __init__(self) -> None:
        self._core: Any = require_extra("wmforge.core", "watermark", "the watermark 'wavelet'")

    def embed(self, image: Image.Image, payload: bytes) -> Image.Image:
        """The image with the mark, of less contrast where it is too bright or dark to hold it; ServerError for a small one."""
        if _blocks(image) < BITS:
            raise ServerError(
                f"an image of {image.width} x {image.height} pixels is too small for the watermark 'wavelet', which needs "
                f"{BITS} blocks of 8 x 8; take a larger size, or no watermark."
            )
        pixels = np.asarray(to_rgb(image), dtype=np.float64)
        marked = image
        for headroom in _HEADROOMS:
            marked = self._marked(headroom + pixels * (255 - 2 * headroom) / 255, payload)
            if self.read(marked) == payload:
                break
        return marked

    def _marked(self, pixels: NDArray[np.float64], payload: bytes) -> Image.Image:
        core = self._core.BlindWmVectorCore()
        core.read_img_arr(pixels.round().astype(np.uint8)[:, :, ::-1])  # wmforge counts blue, green, red
        core.read_wm(_bits_of(payload))
        return Image.fromarray(core.embed().round().clip(0, 255).astype(np.uint8)[:, :, ::-1])

    def read(self, image: Image.Image) -> bytes | None:
        """The payload whose checksum holds; None where there is none, or no longer. 1 of 20,000 images without a mark has one."""
        if _blocks(image) < BITS:
            return None
        core = self._core.BlindWmVectorCore()
        core.wm_size = BITS
        blocks = core.extract_raw(np.asarray(to_rgb(image))[:, :, ::-1])  # (3, blocks) in [0, 1]
        for weights in _WEIGHTS:
            share = np.array(weights)[:, None] * 3 / sum(weights)
            bits = (core.extract_avg(blocks * share) > 0.5).astype(np.uint8) ^ _MASK
            data = np.packbits(bits).tobytes()
            if _checksum(data[:PAYLOAD]) == data[PAYLOAD:]:
                return data[:PAYLOAD]
        return None


def _blocks(image: Image.Image) -> int:
    return (image.width + 1) // 8 * ((image.height + 1) // 8)


def _checksum(payload: bytes) -> bytes:
    return binascii.crc_hqx(payload, 0xFFFF).to_bytes(_CHECKSUM, "big")


def _bits_of(payload: bytes) -> NDArray[np.uint8]:
    data = np.frombuffer(payload + _checksum(payload), np.uint8)
    bits: NDArray[np.uint8] = np.unpackbits(data) ^ _MASK
    return bits
