"""Judge: images in, raw scores out. What a score means is decided afterwards, by a rule (rules.py), so that any threshold
can be applied again without generating again.

Concrete judges: one file each; their names: registry.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from saferedir.errors import JudgeError

#: finished images in, one bool each out: true where the concept is there
Verifier = Callable[[Sequence[Image.Image]], list[bool]]


@dataclass(frozen=True)
class Scores:
    """Scores of one judge for N images.

    Attributes:
        labels: L names. "group:value" labels compete within their group (a classifier's head); others stand alone.
        values: (N, L) float32 raw scores in the judge's own units. NaN rows: the image was never made (refused or blocked).
    """

    labels: tuple[str, ...]
    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.labels):
            raise JudgeError(
                f"scores have shape {tuple(self.values.shape)}, expected (N, {len(self.labels)}), one column a label."
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_missing(self) -> Tensor:
        """(N,) bool: images that were never made."""
        return self.values.isnan().all(dim=1)

    def column(self, label: str) -> Tensor:
        """(N,) scores of one label."""
        if label not in self.labels:
            raise JudgeError(f"there is no score {label!r}; known: {', '.join(self.labels)}.")
        return self.values[:, self.labels.index(label)]

    def group(self, name: str) -> tuple[tuple[str, ...], Tensor]:
        """Values of a label group, and their (N, values) scores."""
        columns = [index for index, label in enumerate(self.labels) if label.startswith(f"{name}:")]
        if not columns:
            groups = sorted({label.split(":")[0] for label in self.labels if ":" in label})
            raise JudgeError(f"there is no label group {name!r}; known: {', '.join(groups) or 'none'}.")
        return tuple(self.labels[index].split(":", 1)[1] for index in columns), self.values[:, columns]

    def rows(self, which: Tensor) -> Scores:
        """The scores of some images."""
        return Scores(self.labels, self.values[which])


class Judge(ABC):
    """Base class. A judge is deterministic, scores each image by itself, and never reads the prompt."""

    #: name in the registry and in records
    name: ClassVar[str] = ""
    #: the names of the score columns
    labels: tuple[str, ...]
    #: makes a verifier of a judge and a rule; verifiers.py, which stands above this file, sets it
    make_verifier: ClassVar[Callable[[Judge, Any], Verifier]]

    @abstractmethod
    def score(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1] to (B, L) float32, one column a label."""

    def features(self, images: Tensor) -> Tensor | None:
        """(B, d) float32 description for distances between images; None where the judge has none."""
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Plain data that fix the scores: "id", "weights" (checksum), "channels" ("RGB"/"BGR"), "resize", "floor" (smallest
        score that is ever returned), "version".
        """

    def verifier(self, rule: Any) -> Verifier:
        """This judge as `verify` of `saferedir.protect`.

        Args:
            rule: a rule of rules.py, its plain data, or the name of a preset.

        Returns:
            A `verifiers.JudgeVerifier`.

        Raises:
            JudgeError: the rule does not fit the judge (see `verifiers.verifier_of`).
        """
        return Judge.make_verifier(self, rule)

    def check(self, images: Tensor) -> Tensor:
        """The images as float32, or one clear sentence."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise JudgeError(f"images have shape {tuple(images.shape)}, expected (B, 3, H, W).")
        images = images.float()
        if images.numel() and not bool(torch.isfinite(images).all() & (images.min() >= 0) & (images.max() <= 1)):
            raise JudgeError("images must lie in [0, 1]; divide 8-bit values by 255.")
        return images

    def __call__(self, images: Tensor) -> Scores:
        """Check, score, and check the answer: a score that is not finite is a JudgeError, for NaN means an image never made."""
        scores = Scores(self.labels, self.score(self.check(images)).detach().float().cpu())
        bad = (~scores.values.isfinite()).nonzero()
        if len(bad):
            row, column = (int(index) for index in bad[0])
            raise JudgeError(
                f"judge {self.name!r} gave {float(scores.values[row, column])} for {self.labels[column]!r}, in {len(bad)} scores "
                "in all that are not finite; check the judge's weights and options."
            )
        return scores
