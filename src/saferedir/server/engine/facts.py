"""What is known of a loaded model and its guards, as records and lists hold it."""

from __future__ import annotations

from dataclasses import dataclass


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
    """What is known of a loaded model; `bytes` are those of its weights and of its guards'."""

    fingerprint: str
    guards: tuple[GuardFacts, ...]
    bytes: int
    can_edit: bool
