"""What an image gets once the policy has passed it: a watermark, a text, and content credentials, as the configuration says."""

from __future__ import annotations

import hashlib
from typing import Any

from PIL import Image

from saferedir.server.config import ProvenanceSettings
from saferedir.server.credentials import Signer
from saferedir.server.errors import ServerError
from saferedir.server.watermark import PAYLOAD, load_watermark


def payload_of(image_id: str) -> bytes:
    """What a watermark holds of an image's name."""
    return hashlib.sha256(image_id.encode()).digest()[:PAYLOAD]


class Marker:
    """Marks images; any error means that there is none.

    Raises:
        ServerError: the certificate cannot sign, or there is no such watermark.
    """

    def __init__(self, settings: ProvenanceSettings) -> None:
        self._watermark = load_watermark(settings.watermark) if settings.watermark else None
        self._signer = Signer.from_settings(settings)

    def watermarked(self, image: Image.Image, image_id: str) -> Image.Image:
        """The image with the mark of its name, which is read back at once; ServerError where it cannot be."""
        if self._watermark is None:
            return image
        marked = self._watermark.embed(image, payload_of(image_id))
        if marked.size != image.size or self._watermark.read(marked) != payload_of(image_id):
            raise ServerError("the watermark cannot be read back from the image, so it is not shown.")
        return marked

    def signed(self, file: bytes, output_format: str, facts: dict[str, Any]) -> bytes:
        """The file with content credentials."""
        return file if self._signer is None else self._signer.signed(file, output_format, facts)
