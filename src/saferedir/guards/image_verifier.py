"""An image verifier: a verifier of finished images that a guard brings along in its folder, trained apart from the guard.

A guard's own classifier reads latents, and an attack that looks through it silences it. This one reads decoded images, with
another architecture, other data and another seed (`training/image_verifier`); `saferedir.protect` asks it under "verify" and
"block".
Shapes: images (B, 3, H, W) in [0, 1] of any size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from saferedir.errors import GuardConfigError
from saferedir.utils.checks import is_number
from saferedir.utils.files import finite_json, replacing, save_tensors
from saferedir.utils.images import to_rgb
from saferedir.utils.shared_files import VERIFIER_CONFIG, VERIFIER_WEIGHTS

WEIGHTS_HASH = "weights_sha256"
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ImageVerifierConfig:
    """Sizes, threshold and record of an image verifier.

    Attributes:
        concept: what it looks for.
        size: side in pixels of the square that images are resized to.
        width: channels of the first stage.
        threshold: an image whose logit is at or above it shows the concept.
        training: with what it was trained, for people.
        measured: recall, false positives and AUROC on held-out images, each with n.
    """

    concept: str
    size: int = 64
    width: int = 24
    threshold: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("size", 16), ("width", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low or value % 8:
                raise GuardConfigError(
                    f"the image verifier's {name} is {value!r}; expected a multiple of 8, at least {low}."
                )
        if not is_number(self.threshold):
            raise GuardConfigError(f"the image verifier's threshold is {self.threshold!r}; expected a finite number.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `asdict`; an unknown or missing field is one clear sentence."""
        known = {entry.name for entry in fields(cls)}
        if not isinstance(values, Mapping) or set(values) - known or "concept" not in values:
            raise GuardConfigError(f"{VERIFIER_CONFIG} must hold the fields {', '.join(sorted(known))}, and no others.")
        return cls(**values)


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, by which the two files know each other."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Residual(nn.Module):
    """Halves height and width; two convolutions beside a 1x1 one."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(given, made, 3, 2, 1), nn.Conv2d(made, made, 3, 1, 1)
        self.beside = nn.Conv2d(given, made, 1, 2)
        self.norm_first, self.norm_second = nn.GroupNorm(8, made), nn.GroupNorm(8, made)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm_second(self.second(gelu(self.norm_first(self.first(x)))))
        y: Tensor = gelu(out + self.beside(x))
        return y


class ImageVerifier(nn.Module):
    """A residual network of four stages whose head reads the mean and the maximum over places; one logit an image."""

    def __init__(self, config: ImageVerifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * factor for factor in (1, 2, 3, 4)]
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.stages = nn.ModuleList(
            _Residual(given, made) for given, made in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.head = nn.Linear(2 * widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B,) logits that the images show the concept, differentiable in the images."""
        x = self._resized(images.to(self.head.weight.dtype))
        x = gelu(self.stem(4 * x - 2))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))[:, 0]
        return logits

    def _resized(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the square that the network reads."""
        size = (self.config.size, self.config.size)
        return images if images.shape[-2:] == size else interpolate(images, size=size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def logits(self, images: Sequence[Image.Image]) -> Tensor:
        """(N,) logits of images of any size and mode, on the CPU."""
        device = self.head.weight.device
        pixels = [torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).float() / 255 for image in images]
        small = [self._resized(part[None]) for part in pixels]
        parts = [
            self(torch.cat(small[start : start + _BATCH]).to(device)).cpu() for start in range(0, len(small), _BATCH)
        ]
        return torch.cat(parts) if parts else torch.zeros(0)

    def sees(self, images: Sequence[Image.Image]) -> list[bool]:
        """For each image, of any size and mode, whether it shows the concept; a logit that is not finite counts as yes."""
        return (~(self.logits(images) < self.config.threshold)).tolist()

    def save(self, folder: Path) -> None:
        """Write both files into a guard's folder, the weights in half precision."""
        tensors = {name: value.detach().cpu().half().contiguous() for name, value in self.state_dict().items()}
        save_tensors(tensors, folder / VERIFIER_WEIGHTS, {"format": "pt"})
        record = {**asdict(self.config), WEIGHTS_HASH: _file_hash(folder / VERIFIER_WEIGHTS)}
        with replacing(folder / VERIFIER_CONFIG) as temporary:
            text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The image verifier of a guard's folder, or None where it has none.

        Raises:
            GuardConfigError: half of its files are missing, or they do not fit.
        """
        parts = [folder / VERIFIER_CONFIG, folder / VERIFIER_WEIGHTS]
        if not any(part.exists() for part in parts):
            return None
        try:
            record = finite_json(parts[0].read_text(encoding="utf-8"))
            written = record.pop(WEIGHTS_HASH, None) if isinstance(record, dict) else None
            verifier = cls(ImageVerifierConfig.from_dict(record))
            if written != _file_hash(parts[1]):
                raise GuardConfigError(
                    f"the image verifier's two files in {folder} do not belong together; copy the whole folder, or train again."
                )
            verifier.load_state_dict(load_file(parts[1]))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, GuardConfigError):
                raise
            raise GuardConfigError(
                f"the image verifier in {folder} cannot be read ({str(error).splitlines()[0]}); copy the whole folder, or train "
                "it again."
            ) from error
        return verifier.eval().requires_grad_(False)
