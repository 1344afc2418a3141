"""Writing what a pipeline returned: an image as PNG, a video as one animated WebP, both without loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: of a video: 16 frames a second, as Wan's
FRAME_MS = 62


def save_output(image: Any, folder: Path, stem: str) -> str:
    """Write a PIL image as PNG, or the list of a video's frames as one animated WebP; the name of the file."""
    if isinstance(image, list):
        file = f"{stem}.webp"
        first, *rest = image
        first.save(folder / file, save_all=True, append_images=rest, duration=FRAME_MS, loop=0, lossless=True)
    else:
        file = f"{stem}.png"
        image.save(folder / file)
    return file
