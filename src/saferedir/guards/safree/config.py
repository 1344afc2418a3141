"""The frozen configuration of SAFREE."""

from __future__ import annotations

from dataclasses import dataclass

from saferedir.guards.base import GuardConfig
from saferedir.guards.safree.math import CALIBRATIONS
from saferedir.utils.checks import is_nonempty_str, is_number

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
        is_texts = isinstance(self.phrases, tuple) and all(map(is_nonempty_str, self.phrases))
        self.require(is_texts, "phrases", "a list of non-empty texts")
        for name, choices in CHOICES.items():
            self.require_choice(name, choices)
        self.require_number("margin", at_least=-1, or_none=True)
        self.require_flag("negative", "filter_eos")
        is_pair = isinstance(self.lra_factors, tuple) and len(self.lra_factors) == 2
        is_pair = is_pair and all(is_number(factor) and 0 <= factor <= 1 for factor in self.lra_factors)
        self.require(is_pair, "lra_factors", "two numbers in [0, 1]")
        if self.mode == "faithful":
            self.require(self.lra == "off", "lra", "'off' in mode 'faithful': it never runs in the authors' code")
            self.require(not self.filter_eos, "filter_eos", "False in mode 'faithful'")

    @property
    def texts(self) -> tuple[str, ...]:
        """One text for each direction of the subspace."""
        return self.phrases or (self.concept,)
