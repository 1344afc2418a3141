"""Images for judges: files to tensors, tensors to bytes, many files to scores; checksums of weights.

Users: calibration.py, the judges, and `saferedir judge`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saferedir.errors import ImageFileError, JudgeError
from saferedir.judges.base import Judge, Scores
from saferedir.utils.file_names import shown_name
from saferedir.utils.image_folders import ImageFolder, list_images
from saferedir.utils.images import read_array
from saferedir.utils.renamed import old_name


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, first 16 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def weights_checksum(module: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of a network's state, first 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def to_bytes(images: Tensor) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) 8-bit RGB, rounded as diffusers rounds when it makes PIL images."""
    values: np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]] = (
        (images.detach().float().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    )
    return values


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] to PIL images."""
    return [Image.fromarray(array) for array in to_bytes(images)]


def read_image_tensor(path: Path) -> Tensor:
    """A file as (3, H, W) RGB in [0, 1], as `utils.images.read_image` reads it; ImageFileError where it cannot be read."""
    return torch.from_numpy(read_array(path)).permute(2, 0, 1).float() / 255


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and below, sorted (see `image_folder`)."""
    return list(image_folder(folder).files)


def image_folder(folder: Path) -> ImageFolder:
    """The image files of a folder and below, and those left out; JudgeError where there is no such folder."""
    if not folder.is_dir():
        raise JudgeError(f"there is no folder {shown_name(folder)}; give a folder of images.")
    return list_images(folder)


@dataclass(frozen=True)
class ScoredFiles:
    """Scores of image files.

    Attributes:
        scores: one row for each of `indices`.
        indices: which of the files could be read, in order.
        skipped: file -> why it could not be read.
    """

    scores: Scores
    indices: tuple[int, ...]
    skipped: Mapping[str, str]


def score_images(judge: Judge, images: Tensor | Iterable[Tensor], batch: int = 32) -> Scores:
    """Scores of (N, 3, H, W), or of (3, H, W) images of any sizes, at most `batch` at a time."""
    rows: list[Tensor] = []
    chunk: list[Tensor] = []
    for image in images:
        if chunk and (len(chunk) == batch or image.shape != chunk[0].shape):
            rows.append(judge(torch.stack(chunk)).values)
            chunk = []
        chunk.append(image)
    if chunk:
        rows.append(judge(torch.stack(chunk)).values)
    return Scores(judge.labels, torch.cat(rows) if rows else torch.zeros(0, len(judge.labels)))


def score_files(judge: Judge, files: Sequence[Path], batch: int = 32, root: Path | None = None) -> ScoredFiles:
    """Scores of image files; unreadable ones are named (below `root`, if given) with the reason, not fatal."""
    indices: list[int] = []
    skipped: dict[str, str] = {}

    def readable() -> Iterable[Tensor]:
        for index, path in enumerate(files):
            name = path.relative_to(root) if root is not None and path.is_relative_to(root) else path
            try:
                image = read_image_tensor(path)
            except ImageFileError as error:
                skipped[shown_name(name)] = error.reason
            else:
                indices.append(index)
                yield image

    scores = score_images(judge, readable(), batch)
    return ScoredFiles(scores, tuple(indices), skipped)


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
