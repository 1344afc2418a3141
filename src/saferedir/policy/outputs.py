"""What pipelines return, row by row: rows swapped between runs, blanks for blocked images, images for a verifier.

Knows no pipeline, only what one gave back. Used by `protect`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import BlockedError, GuardError
from saferedir.pipelines.safety_checker import NAME, flagged_images
from saferedir.policy.views import GuardedTuple, guarded_class
from saferedir.utils.images import OUTPUT_NAMES, output_images


class Result:
    """Output of one run, row by row: images (or videos), whatever else has a row for each, and the decisions."""

    def __init__(self, output: Any, decisions: list[Decision]) -> None:
        self.output, self.decisions = output, decisions
        parts = dict(enumerate(output)) if isinstance(output, tuple) else output if isinstance(output, Mapping) else {}
        self.parts: dict[Any, Any] = {key: copied(value) for key, value in parts.items()}
        key = next((key for key in (0, *OUTPUT_NAMES) if key in parts), None)
        if key is None or not isinstance(parts[key], list | np.ndarray | Tensor):
            raise GuardError(
                f"no images were found in the {type(output).__name__} of this pipeline; it is not supported."
            )
        self.images = self.parts[key]
        self.count = len(self.images)

    def _rows(self) -> dict[Any, Any]:
        """The parts with one entry for each image."""
        aligned = {key: part for key, part in self.parts.items() if isinstance(part, list | np.ndarray | Tensor)}
        return {key: part for key, part in aligned.items() if len(part) == self.count}

    def _blank_the_rest(self) -> None:
        """Other parts do not say which image they belong to, and may show one that must not be shown."""
        self.parts |= {key: _blank(part) for key, part in self.parts.items() if key not in self._rows()}

    def _flagged(self) -> list[int]:
        """Rows that the pipeline's own safety checker flagged."""
        parts = tuple(self.parts.values()) if isinstance(self.output, tuple) else self.parts
        return [row for row, is_flagged in enumerate(flagged_images(parts, self.count) or ()) if is_flagged]

    def check_finite(self) -> None:
        values = torch.as_tensor(self.images) if isinstance(self.images, np.ndarray) else self.images
        if isinstance(values, Tensor) and not bool(torch.isfinite(values).all()):
            raise GuardError("an image holds NaN or infinity, so none is returned; check dtype, scheduler and inputs.")

    def take(self, other: Result, rows: Sequence[int], attempts: int) -> None:
        """Replace `rows`, and only these, by those of another run."""
        if other.count != self.count:
            raise GuardError(f"a retry generated {other.count} images instead of {self.count}, so none is returned.")
        self._blank_the_rest()
        for key, part in self._rows().items():
            for row in rows:
                part[row] = other.parts[key][row]
        self.decisions = [
            replace(new, attempts=attempts) if new.image in rows else old
            for old, new in zip(self.decisions, other.decisions, strict=True)
        ]

    def finished(
        self, blocked: Mapping[int, str], blocked_by: Mapping[int, Sequence[str]] | None = None
    ) -> tuple[Any, list[Decision]]:
        """The output to hand out, blanks in place of the blocked rows (row -> why), and its decisions.

        Args:
            blocked_by: row -> the names of those that blocked it.

        What the pipeline's own safety checker flagged is blocked too: it is black already, and nobody may take it for an
        image that the guards let through.
        """
        reasons, names = dict(blocked), {row: tuple(by) for row, by in (blocked_by or {}).items()}
        for row in self._flagged():
            names[row] = (*names.get(row, ()), NAME)
            reason = f"{NAME} flagged it (nsfw_content_detected)"
            reasons[row] = f"{reasons[row]}, and {reason}" if row in reasons else reason
        if reasons:
            self._blank_the_rest()
        for part in self._rows().values():
            for row in reasons:
                part[row] = _blank(part[row])
        decisions = [_blocked(d, reasons[d.image]) if d.image in reasons else d for d in self.decisions]
        if isinstance(self.output, tuple):
            output: Any = GuardedTuple(self.parts.values())
        else:
            output = self.output
            output.__class__ = guarded_class(type(output))
            for key, part in self.parts.items():
                output[key] = part
        output.decisions, output.blocked = list(decisions), [row in reasons for row in range(self.count)]
        output.blocked_by = [names.get(row, ()) for row in range(self.count)]
        return output, decisions


def blocked_error(output: Any) -> BlockedError:
    """What to raise in place of a finished output of which images are blocked."""
    flags: list[bool] = output.blocked
    rows = [row for row, is_blocked in enumerate(flags) if is_blocked]
    images = output_images(output)
    kept = {row: images[row] for row in range(len(flags)) if row not in rows}
    reasons = " ".join(dict.fromkeys(d.message for d in output.decisions if d.image in rows))
    message = f"{len(rows)} of {len(flags)} images blocked. {reasons}".strip()
    return BlockedError(message, output.decisions, rows, kept)


def _blocked(decision: Decision, why: str) -> Decision:
    count = "1 attempt" if decision.attempts == 1 else f"{decision.attempts} attempts"
    message = f"Blocked after {count}: {why}. {decision.message}".strip()
    return replace(decision, action="blocked", message=message)


def _blank(value: Any) -> Any:
    """Black, zeros, or nothing, of the same kind and size; flags and numbers are no images and stay."""
    if isinstance(value, Image.Image):
        return Image.new(value.mode, value.size)
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, np.ndarray | np.generic):
        return np.zeros_like(value)
    if isinstance(value, list | tuple):
        return [_blank(item) for item in value]
    return value if isinstance(value, bool | int | float) else None


def images_of(row: Any) -> list[Image.Image]:
    """One row of the output as new PIL images: a single one, or every frame of a video."""
    if isinstance(row, Image.Image):
        return [row.copy()]
    if isinstance(row, list | tuple):
        return [image for item in row for image in images_of(item)]
    if isinstance(row, Tensor) and row.ndim >= 3:
        row = row.detach().float().cpu().movedim(-3, -1).numpy()
    if not isinstance(row, np.ndarray) or row.ndim not in (3, 4) or row.shape[-1] not in (1, 3):
        raise GuardError("the verifier cannot be shown this kind of output; ask for output_type 'pil', 'np' or 'pt'.")
    if row.dtype != np.uint8:
        row = (row.clip(0, 1) * 255).round().astype(np.uint8)
    frames = row if row.ndim == 4 else row[None]
    return [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]


def copied(value: Any) -> Any:
    """Copies of all tensors, arrays and images in plain containers, so that nobody writes into a run from outside."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray | Image.Image):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return tuple(copied(item) for item in value) if isinstance(value, tuple) else value


def same(first: Any, second: Any) -> bool:
    """Whether two values, as `copied` makes them, agree in every bit."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first is second or (isinstance(first, str | bytes | int | float) and bool(first == second))
