"""The errors of saferedir: every refusal is one of these, and each message says what to do next.

Raised everywhere; see docs/architecture.md for the fail-closed rule they serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SaferedirError(RuntimeError):
    """Base class of every saferedir error."""


class GuardError(SaferedirError):
    """A guard could not do its work, so no image may be shown; base class of every error of guards and the seam.

    Example:
        >>> import saferedir as sr
        >>> try:
        ...     sr.attach("no pipeline", ())
        ... except sr.GuardError as error:
        ...     print(error)
        attach needs one or more Guard objects, not (); see Guard.from_pretrained.
    """


class BlockedError(SaferedirError):
    """An image was blocked by the policy, and the caller asked for an exception then (`protect(..., on_block="raise")`).

    Attributes:
        decisions: one Decision per image and guard of the whole call, guard by guard.
        blocked: 0-based indices of the blocked images.
        images: index -> image of those that were not blocked, as the pipeline returns them.

    Example:
        >>> import saferedir as sr
        >>> pipe = sr.load_pipeline("pictoworld")
        >>> safe = sr.protect(pipe, sr.Guard.from_pretrained("pictoworld/star"), on_unsafe="block", on_block="raise")
        >>> try:
        ...     output = safe(["a red star", "a blue circle"], num_inference_steps=4)
        ... except sr.BlockedError as error:
        ...     print(error.blocked, list(error.images))
        (0,) [1]
        >>> safe.detach()
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
    """The pipeline family, scheduler or prediction type has no row in our tables.

    Example:
        >>> import saferedir as sr
        >>> try:
        ...     sr.attach("no pipeline", sr.Guard.from_pretrained("pictoworld/star"))
        ... except sr.UnsupportedPipelineError:
        ...     print("see docs/pipelines.md")
        see docs/pipelines.md
    """


class BackboneMismatchError(GuardError):
    """A guard was put on a backbone of another architecture than the one it was trained for.

    Example:
        >>> import saferedir as sr
        >>> guard = sr.Guard.from_pretrained("pictoworld/star")
        >>> guard.config.backbone["architecture"]["prompt_width"] = 768
        >>> try:
        ...     sr.attach(sr.load_pipeline("pictoworld"), guard)
        ... except sr.BackboneMismatchError as error:
        ...     print(error)
        guard 'saferedir' was trained for another backbone (prompt_width is 96, not 768); train it on this pipeline, ...
    """


class AlreadyAttachedError(GuardError):
    """The same guard object is already attached to this pipeline, or its denoiser belongs to another seam.

    Example:
        >>> import saferedir as sr
        >>> pipe, guard = sr.load_pipeline("pictoworld"), sr.Guard.from_pretrained("pictoworld/star")
        >>> with sr.attach(pipe, guard):
        ...     try:
        ...         sr.attach(pipe, guard)
        ...     except sr.AlreadyAttachedError as error:
        ...         print(error)
        guard 'saferedir' is already attached to this pipeline; detach it first, or load a second one.
    """


class GuardConfigError(GuardError, ValueError):
    """A guard's configuration has an unknown key or a value out of range.

    Example:
        >>> import saferedir as sr
        >>> from saferedir.guard import GuardConfig
        >>> try:
        ...     GuardConfig.from_dict({"concept": "star", "colour": "red"})
        ... except sr.GuardConfigError as error:
        ...     print(error)
        GuardConfig has no field 'colour'; known fields: backbone, concept, measured, training.
    """


class GuardNotFoundError(GuardError, FileNotFoundError):
    """No guard, pipeline or weights file under the given name.

    Example:
        >>> import saferedir as sr
        >>> try:
        ...     sr.Guard.from_pretrained("pictoworld/no-such-guard")
        ... except sr.GuardNotFoundError:
        ...     print("saferedir guards list")
        saferedir guards list
    """

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
