"""The frozen settings that Safe Denoiser and SPELL share."""

from __future__ import annotations

from collections.abc import Mapping
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
        window: noise fractions u = sigma / (alpha + sigma), lowest and highest, at which to act; None: those of the mode,
            see `window_in_use`.
        outside_window: what happens to a run none of whose denoiser calls is in the window (image to image at low strength, few
            steps), where the guard can do nothing: "raise" (no image), or "ignore" (its decision says so).
        seed: of the guard's own noise, sampled only where it re-noises.
    """

    file_fields: ClassVar[tuple[str, ...]] = ("bank",)
    #: window of a mode where none is set; a mode that is not named acts at all noise fractions
    mode_windows: ClassVar[Mapping[str, tuple[float, float]]] = {}

    mode: str = "default"
    bank: str | None = None
    window: tuple[float, float] | None = None
    outside_window: str = "raise"
    seed: int = 0

    def validate(self) -> None:
        self.require_choice("mode", MODES)
        self.require_choice("outside_window", OUTSIDE_WINDOW)
        self.require(self.bank is None or is_nonempty_str(self.bank), "bank", "a path, or None")
        window = self.window_in_use
        is_pair = isinstance(window, tuple) and len(window) == 2 and all(map(is_number, window))
        is_window = is_pair and 0 <= window[0] <= window[1] <= 1
        self.require(is_window, "window", "two noise fractions in [0, 1], the lower one first")
        self.require_whole("seed")

    @property
    def window_in_use(self) -> tuple[float, float]:
        """The noise fractions at which the guard acts, lowest and highest."""
        return self.mode_windows.get(self.mode, (0.0, 1.0)) if self.window is None else self.window
