"""Guard: what a guard's author imports. The base class is in `guards/base.py`, what a guard is told in `guards/step.py`."""

from saferedir.guards.base import Apart, Embeds, Guard, GuardConfig, Run, SkipFeatures, Step, TextSettings

__all__ = ["Guard", "GuardConfig", "Run", "Step", "Embeds", "Apart", "SkipFeatures", "TextSettings"]
