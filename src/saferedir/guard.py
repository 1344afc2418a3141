"""Guard: what a guard's author imports. The base class is in `guards/base.py`, what a guard is given in `guards/step.py`."""

from typing import Any

from saferedir.guards.base import (
    AttentionFeatures,
    Conditioning,
    Guard,
    GuardConfig,
    PromptEmbeds,
    Run,
    SecondLatents,
    SkipFeatures,
    Step,
    TextSettings,
)
from saferedir.utils.renamed import old_name

__all__ = [
    "AttentionFeatures",
    "Conditioning",
    "Guard",
    "GuardConfig",
    "PromptEmbeds",
    "Run",
    "SecondLatents",
    "SkipFeatures",
    "Step",
    "TextSettings",
]


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
