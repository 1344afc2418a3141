"""The frozen configuration of SAFREE. Imports `guard` for the base class, and the calibrations of math.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saferedir.guard import GuardConfig
from saferedir.guards.safree.math import CALIBRATIONS

CHOICES = {
    "mode": ("default", "faithful"),
    "svf": ("code", "paper", "off"),
    "order": ("code", "paper"),
    "calibration": tuple(CALIBRATIONS),
    "lra": ("off", "paper"),
    "unknown_text": ("filter_all", "raise"),
}


@dataclass(frozen=True, kw_only=True)
class SafreeConfig(GuardConfig):
    """Settings of SAFREE.

    Attributes:
        phrases: what to keep away from, one subspace for all; () stands for (concept,).
        mode: "default", or "faithful".
        margin: a, by how much a trigger stands out; -1 for nothing but triggers, None (infinity) for no triggers.
        svf: length t' of the filtered part: as in the "code", as in the "paper", or "off" for all steps.
        order: "code" (I - P_C) P_I, which leaves nothing of the concept, or "paper" P_I (I - P_C).
        calibration: constants of svf "code", for "general" concepts or "artists".
        negative: whether the joined phrases replace the negative prompt.
        filter_eos: whether closing and padding tokens are replaced along with triggers.
        lra: latent re-attention, "off" or "paper"; UNets only, one more row in the steps that filter.
        lra_factors: s of the widest layers and of the next.
        unknown_text: what happens to a prompt of unknown text, "filter_all" or "raise".
    """

    phrases: tuple[str, ...] = ()
    mode: str = "default"
    margin: float | None = 0.01
    svf: str = "code"
    order: str = "code"
    calibration: str = "general"
    negative: bool = True
    filter_eos: bool = False
    lra: str = "off"
    lra_factors: tuple[float, float] = (0.9, 0.2)
    unknown_text: str = "filter_all"

    def validate(self) -> None:
        is_texts = isinstance(self.phrases, tuple) and all(
            isinstance(text, str) and text.strip() for text in self.phrases
        )
        self.require(is_texts, "phrases", "a list of non-empty texts")
        for name, choices in CHOICES.items():
            self.require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")
        self.require(self.margin is None or -1 <= self.margin < math.inf, "margin", "a number >= -1, or None")
        is_pair = len(self.lra_factors) == 2 and all(0 <= factor <= 1 for factor in self.lra_factors)
        self.require(is_pair, "lra_factors", "two numbers in [0, 1]")
        if self.mode == "faithful":
            self.require(self.lra == "off", "lra", "'off' in mode 'faithful': it never runs in the authors' code")
            self.require(not self.filter_eos, "filter_eos", "False in mode 'faithful'")

    @property
    def texts(self) -> tuple[str, ...]:
        """One text for each direction of the subspace."""
        return self.phrases or (self.concept,)
