"""The frozen settings that Safe Denoiser and SPELL share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saferedir.guards.base import GuardConfig
from saferedir.utils.checks import is_nonempty_str, is_number

MODES = ("default", "faithful")
OUTSIDE_WINDOW = ("raise", "ignore")


@dataclass(frozen=True, kw_only=True)
class NegationConfig(GuardConfig):
    """Settings of every guard with a negation set.

    Attributes:
        mode: "default" (this project's fixes) or "faithful" (the released code).
        bank: path of a set too large to travel with the guard; None where it is in model.safetensors.
        window: noise fractions u = sigma / (alpha + sigma), lowest and highest, at which to act.
        outside_window: what happens to a run none of whose denoiser calls is in the window (image to image at low strength, few
            steps), where the guard can do nothing: "raise" (no image), or "ignore" (its decision says so).
        seed: of the guard's own noise, sampled only where it re-noises.
    """

    file_fields: ClassVar[tuple[str, ...]] = ("bank",)

    mode: str = "default"
    bank: str | None = None
    window: tuple[float, float] = (0.0, 1.0)
    outside_window: str = "raise"
    seed: int = 0

    def validate(self) -> None:
        self.require_choice("mode", MODES)
        self.require_choice("outside_window", OUTSIDE_WINDOW)
        self.require(self.bank is None or is_nonempty_str(self.bank), "bank", "a path, or None")
        is_pair = isinstance(self.window, tuple) and len(self.window) == 2 and all(map(is_number, self.window))
        is_window = is_pair and 0 <= self.window[0] <= self.window[1] <= 1
        self.require(is_window, "window", "two noise fractions in [0, 1], the lower one first")
        self.require_whole("seed")
