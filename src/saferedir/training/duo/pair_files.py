"""Folders of image pairs: unsafe/ and safe/, matched by sorted file name, and the manifest beside them; and their latents.

Written by pairs.py or by the user; read by train.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saferedir.errors import GuardConfigError, ImageFileError
from saferedir.pipelines.latents import fit_image, latent_constants
from saferedir.utils.file_names import shown_name
from saferedir.utils.files import replacing
from saferedir.utils.image_folders import list_images
from saferedir.utils.images import read_image

MANIFEST = "manifest.json"
MIN_PAIRS = 2


class ImagePair(NamedTuple):
    """Files of an image with the concept and of its partner without; the prompt of the first, where it is known."""

    unsafe: Path
    safe: Path
    prompt: str | None = None


class PairLatents(NamedTuple):
    """Posterior of N pairs in the sampler's frame: mean and deviation (N, 2, C, h, w) float32, unsafe member first."""

    mean: Tensor
    std: Tensor

    def sample(self, pairs: Tensor, noise: Tensor | None) -> Tensor:
        """Latents (2B, C, h, w) of B pairs, unsafe ones first; the posterior's mean, or mean + std noise (2B, C, h, w)."""
        mean, std = (part[pairs].transpose(0, 1).flatten(0, 1) for part in self)
        return mean if noise is None else mean + std * noise


def image_path(folder: Path, side: str, index: int) -> Path:
    """File of one member of pair `index`."""
    return folder / side / f"{index:05d}.png"


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_image(image: Image.Image, path: Path) -> str:
    """Write a PNG all at once; returns its SHA-256."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    _write(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def write_manifest(folder: Path, plan: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]) -> None:
    """The plan and the record of every pair, all at once."""
    text = json.dumps({"plan": plan, "pairs": {str(index): record for index, record in records.items()}}, indent=1)
    _write(folder / MANIFEST, text.encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_image_pairs(folder: Path) -> list[ImagePair]:
    """The pairs of a folder with unsafe/ and safe/, or one sentence about what is wrong with it.

    In a folder with a manifest, only pairs of which both members were accepted count. A warning names the image files
    that are left out; where one of them could leave another without its partner, that is an error.
    """
    sides: list[list[Path]] = []
    left_out: dict[str, str] = {}
    for name in ("unsafe", "safe"):
        if not (folder / name).is_dir():
            raise GuardConfigError(
                f"{folder} has no folder {name!r}; a folder of pairs holds unsafe/ and safe/ images."
            )
        listed = list_images(folder / name, is_flat=True)
        sides.append(list(listed.files))
        left_out |= {f"{name}/{file}": reason for file, reason in listed.left_out.items()}
    unsafe, safe = sides
    asked: dict[str, str] = {}
    if (folder / MANIFEST).is_file():
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            prompts, records = manifest["plan"]["prompts"], manifest["pairs"]
            whole = [int(index) for index, record in records.items() if "unsafe" in record and "safe" in record]
            asked = {image_path(folder, "", index).name: str(prompts[index % len(prompts)][0]) for index in whole}
        except (ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise GuardConfigError(f"{folder / MANIFEST} is damaged; delete it, or make the pairs again.") from error
        unsafe, safe = ([path for path in side if path.name in asked] for side in (unsafe, safe))
    elif left_out:
        _warn_of_left_out(folder, left_out, unsafe, safe)
    if len(unsafe) != len(safe):
        raise GuardConfigError(
            f"{folder} holds {len(unsafe)} unsafe and {len(safe)} safe images; every image needs a partner."
        )
    if len(unsafe) < MIN_PAIRS:
        raise GuardConfigError(f"{folder} holds {len(unsafe)} valid pairs; DUO needs at least {MIN_PAIRS}, better 64.")
    return [ImagePair(*pair, asked.get(pair[0].name)) for pair in zip(unsafe, safe, strict=True)]


def _warn_of_left_out(folder: Path, left_out: Mapping[str, str], unsafe: Sequence[Path], safe: Sequence[Path]) -> None:
    """Warn of image files that are not read; refuse them where the names of the others do not match without them."""
    named = [f"{name} ({reason})" for name, reason in left_out.items()]
    summary = f"{'; '.join(named[:5])}{f'; and {len(named) - 5} more' if len(named) > 5 else ''}"
    if [path.stem for path in unsafe] != [path.stem for path in safe]:
        raise GuardConfigError(
            f"{shown_name(folder)} holds image files that are left out, {summary}, and without them the names in unsafe/ and "
            "safe/ do not match, so that images would get the wrong partners; convert these files, or remove them."
        )
    warnings.warn(f"{len(named)} image files in {shown_name(folder)} are left out: {summary}.", stacklevel=3)


def hash_image_pairs(pairs: Sequence[ImagePair]) -> str:
    """SHA-256 over all images in order."""
    return hashlib.sha256("".join(file_hash(path) for pair in pairs for path in pair[:2]).encode()).hexdigest()


def load_pair(pair: ImagePair, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(2, height, width, 3) bytes, unsafe first; both members are cropped to the same box."""
    images = []
    for path in pair[:2]:
        try:
            images.append(read_image(path))
        except ImageFileError as error:
            raise GuardConfigError(
                f"{error.name} is no image that can be read ({error.reason}); replace it, and its partner if needed."
            ) from error
    if images[0].size != images[1].size:
        raise GuardConfigError(
            f"{shown_name(pair.unsafe)} and {shown_name(pair.safe)} differ in size; a pair differs in the concept only."
        )
    return np.stack([fit_image(image, height, width) for image in images])


@torch.no_grad()
def encode_image_pairs(pipe: Any, pairs: Sequence[ImagePair], height: int, width: int) -> PairLatents:
    """Posteriors of all pairs by the pipeline's VAE, in float32, on the CPU."""
    vae = pipe.vae
    parameter = next(vae.parameters())
    dtype, device = parameter.dtype, parameter.device
    constants = latent_constants(vae)
    shift, scale = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in constants)
    means, stds = [], []
    try:
        vae.to(torch.float32)
        for pair in pairs:
            pixels = torch.from_numpy(load_pair(pair, height, width)).permute(0, 3, 1, 2).float() / 127.5 - 1
            posterior = vae.encode(pixels.to(device)).latent_dist
            means.append(((posterior.mean - shift) * scale).cpu())
            stds.append((posterior.std * scale).cpu())
    finally:
        vae.to(dtype)
    return PairLatents(torch.stack(means), torch.stack(stds))
