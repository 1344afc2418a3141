"""What is known of a loaded model and its guards, as records and lists hold it."""

from __future__ import annotations

from collections.abc import Sequence
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
class JudgeFacts:
    """A judge of a model's finished images.

    Attributes:
        name: the preset it was loaded by.
        fingerprint: SHA-256 of what the judge says fixes its scores (`Judge.facts`: weights, options) and of its rule.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a loaded model.

    Attributes:
        fingerprint: SHA-256 of the pipeline's fingerprint.
        bytes: of its weights and of its guards'.
        judges: those that decide beside the guards which images are delivered.
        saferedir: version of the library in the process that loaded it.
    """

    fingerprint: str
    guards: tuple[GuardFacts, ...]
    bytes: int
    can_edit: bool
    judges: tuple[JudgeFacts, ...] = ()
    saferedir: str = field(default_factory=library_version)


def difference(expected: ModelFacts, actual: ModelFacts) -> str | None:
    """What two loaded models differ in, in words; None where they are of the same weights, guards, judges and library."""
    if expected == actual:
        return None
    if expected.saferedir != actual.saferedir:
        return f"saferedir {actual.saferedir} instead of {expected.saferedir}"
    if expected.fingerprint != actual.fingerprint:
        return "another model's weights"
    if (guard := _changed(expected.guards, actual.guards)) is not None:
        return f"another guard {guard!r}" if guard else "other guards"
    if (judge := _changed(expected.judges, actual.judges)) is not None:
        return f"another judge {judge!r}" if judge else "other judges"
    return "another size in memory or another pipeline class"


def _changed(expected: Sequence[GuardFacts | JudgeFacts], actual: Sequence[GuardFacts | JudgeFacts]) -> str | None:
    """Name of the first that differs; "" where only their number does, None where all are the same."""
    changed = next((ours.name for ours, theirs in zip(expected, actual, strict=False) if ours != theirs), None)
    return "" if changed is None and len(expected) != len(actual) else changed
