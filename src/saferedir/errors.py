"""The errors of saferedir: every refusal is one of these, and each message says what to do next.

Raised everywhere; see docs/architecture.md for the fail-closed rule they serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SaferedirError(RuntimeError):
    """Base class of every saferedir error."""


class GuardError(SaferedirError):
    """A guard could not do its work, so no image may be shown. Base class of every error of guards and the seam."""


class BlockedError(SaferedirError):
    """An image was blocked by the policy, and the caller asked for an exception then (`protect(..., on_block="raise")`).

    Attributes:
        decisions: one Decision per image and guard of the whole call, guard by guard.
        blocked: 0-based indices of the blocked images.
        images: index -> image of those that were not blocked, as the pipeline returns them.
    """

    def __init__(
        self,
        message: str,
        decisions: Sequence[Any] = (),
        blocked: Sequence[int] = (),
        images: Mapping[int, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.decisions, self.blocked, self.images = list(decisions), tuple(blocked), dict(images or {})


class UnsupportedPipelineError(GuardError):
    """The pipeline family, scheduler or prediction type has no row in our tables."""


class BackboneMismatchError(GuardError):
    """A guard meets a backbone of another architecture than the one it was trained for."""


class AlreadyAttachedError(GuardError):
    """The same guard object is already attached to this pipeline, or its denoiser belongs to another seam."""


class GuardConfigError(GuardError, ValueError):
    """A guard's configuration has an unknown key or a value out of range."""


class GuardNotFoundError(GuardError, FileNotFoundError):
    """No guard, pipeline or weights file under the given name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class JudgeError(SaferedirError, ValueError):
    """A judge cannot be loaded, or was given images or scores it cannot read."""


class EncoderError(SaferedirError, ValueError):
    """An encoder cannot be loaded, or gave vectors that cannot be what it was asked for."""


class TextFileError(SaferedirError, ValueError):
    """A text file cannot be read as it is: another encoding, a NUL character, a malformed row or line."""


class PromptFileError(SaferedirError, ValueError):
    """A prompt file cannot be used as it is: missing column, wrong row count, duplicates."""


class MetricError(SaferedirError, ValueError):
    """Numbers that cannot be what a metric needs."""


class BenchError(SaferedirError):
    """A bench cannot be planned, run, resumed or reported as asked."""


class OutputError(SaferedirError, OSError):
    """The place for the results cannot be used; the message says why and what to do."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingExtraError(SaferedirError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


class AttackError(SaferedirError, ValueError):
    """An attack cannot be made as asked: no such step, a soft prompt that fits no encoder, no word left to write with."""


class ImageFileError(SaferedirError, ValueError):
    """An image file cannot be read; `name` is the file, `reason` says why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be read as an image: {reason}; replace it, or take it out.")
        self.name, self.reason = name, reason
