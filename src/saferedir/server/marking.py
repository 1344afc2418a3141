"""What an image gets once the policy has passed it: a watermark, a text, and content credentials, as the configuration says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from PIL import Image

from saferedir.server.config import ProvenanceSettings
from saferedir.server.credentials import Signer
from saferedir.server.errors import ServerError
from saferedir.server.watermark import load_watermark, payload_of


class Marker:
    """Marks images; any error means that there is none.

    Raises:
        ServerError: the certificate cannot sign, there is no such watermark, or an image of one of `sizes` cannot hold it.
        MissingExtraError: what they need is not installed.
    """

    def __init__(self, settings: ProvenanceSettings, sizes: Iterable[tuple[int, int]] = ()) -> None:
        self._watermark = load_watermark(settings.watermark) if settings.watermark else None
        for size in dict.fromkeys(sizes) if self._watermark is not None else ():
            self.watermarked(Image.linear_gradient("L").resize(size).convert("RGB"), "trial")
        self._signer = Signer.from_settings(settings)

    def watermarked(self, image: Image.Image, image_id: str) -> Image.Image:
        """The image with the mark of its name, which is read back at once; ServerError where it cannot be."""
        if self._watermark is None:
            return image
        marked = self._watermark.embed(image, payload_of(image_id))
        if marked.size != image.size or self._watermark.read(marked) != payload_of(image_id):
            raise ServerError(
                f"the watermark cannot be read back from an image of {image.width} x {image.height} pixels, so it is not shown."
            )
        return marked

    def signed(self, file: bytes, output_format: str, facts: dict[str, Any]) -> bytes:
        """The file with content credentials."""
        return file if self._signer is None else self._signer.signed(file, output_format, facts)
