"""What is known of a loaded model and its guards, as records and lists hold it."""

from __future__ import annotations

from dataclasses import dataclass, field

from saferedir.utils.packaged import library_version


@dataclass(frozen=True)
class GuardFacts:
    """A guard on a model.

    Attributes:
        name: what it was loaded by.
        fingerprint: SHA-256 of its settings and weights.
        reads_prompts: whether its decisions have a prompt score.
        reads_images: whether a verifier of finished images came with it.
    """

    name: str
    method: str
    concept: str
    fingerprint: str
    reads_prompts: bool
    reads_images: bool


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a loaded model.

    Attributes:
        fingerprint: SHA-256 of the pipeline's fingerprint.
        bytes: of its weights and of its guards'.
        saferedir: version of the library in the process that loaded it.
    """

    fingerprint: str
    guards: tuple[GuardFacts, ...]
    bytes: int
    can_edit: bool
    saferedir: str = field(default_factory=library_version)


def difference(expected: ModelFacts, actual: ModelFacts) -> str | None:
    """What two loaded models differ in, in words; None where they are of the same weights, guards and library."""
    if expected == actual:
        return None
    if expected.saferedir != actual.saferedir:
        return f"saferedir {actual.saferedir} instead of {expected.saferedir}"
    if expected.fingerprint != actual.fingerprint:
        return "another model's weights"
    pairs = zip(expected.guards, actual.guards, strict=False)
    changed = next((ours.name for ours, theirs in pairs if ours != theirs), None)
    if changed is not None or len(expected.guards) != len(actual.guards):
        return "other guards" if changed is None else f"another guard {changed!r}"
    return "another size in memory or another pipeline class"
