"""The errors of saferedir: every refusal is one of these, and each message says what to do next.

Imports nothing. Raised everywhere; see docs/architecture.md for the fail-closed rule they serve.
"""

from __future__ import annotations


class GuardError(RuntimeError):
    """A guard could not do its work, so no image may be shown. Base class of every saferedir error."""


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
