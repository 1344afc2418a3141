"""How to train a DUO guard, checked. Section 4 and 5 of our specification of arXiv:2407.21035. Imports `loss`, `noise`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from saferedir.errors import GuardConfigError
from saferedir.guards.duo.loss import Rates, rescaled
from saferedir.guards.duo.noise import SIGMA_MODES

VARIANTS = ("as-paper", "as-coded")
CONDITIONING = ("null", "prompt")


@dataclass(frozen=True)
class TrainConfig:
    """Defaults: the paper's nudity setting on SD 1.4, with every fix of the specification's table (variant "as-paper").

    Attributes:
        steps, batch: optimiser steps, pairs per step and process. rank: of the LoRA. targets: ends of the names of the adapted
            projections; () for self-attention only (UNets) or the image stream (SD3).
        beta: preference temperature; smaller pulls less towards the base model. learning_rate: of AdamW, constant.
        prior_weight: lambda of the preserving term. rescale: "none", or "reference" for lr 100/beta and lambda beta/100.
        t_min, t_max: trained timesteps (UNets); sigma_mode: trained sigmas (SD3), see noise.Schedule.
        shared_t: both members of a pair at one timestep. posterior: "mean" of the VAE's, or a "sample" for each member.
        rank_shared_noise: all pairs of a step share noise and timesteps, on all processes.
        conditioning: "null" trains at the empty prompt, as the method does; "prompt" at the prompt of each pair's unsafe picture
            (an option of the released code, unused there): it reaches models that hardly listen to their empty prompt.
        prior_conditioning: prompts of the preserving term's rows, "null" or "prompt" likewise (which needs the latter above).
            The preference sees differences of the two members only; what they share, such as a background, is held at "prompt".
        stop_after: steps in a row at accuracy 1 after which training ends; 0 for never.
        size: (height, width) of the pictures; None for what the pipeline draws by default.
    """

    steps: int = 1000
    batch: int = 4
    rank: int = 32
    targets: tuple[str, ...] = ()
    beta: float = 500.0
    learning_rate: float = 6e-5
    prior_weight: float = 5e6
    rescale: str = "none"
    weight_decay: float = 1e-2
    t_min: int = 0
    t_max: int = 749
    sigma_mode: str = "paper"
    shared_t: bool = True
    posterior: str = "mean"
    rank_shared_noise: bool = False
    conditioning: str = "null"
    prior_conditioning: str = "null"
    stop_after: int = 0
    checkpoint_every: int = 50
    size: tuple[int, int] | None = None
    seed: int = 42

    @classmethod
    def of_variant(cls, variant: str, *, is_flow: bool = False, **changes: Any) -> Self:
        """ "as-paper": the defaults. "as-coded": the released code's draws and coupled rates, flaws 1 to 4, 6 and 7 included."""
        if variant not in VARIANTS:
            raise GuardConfigError(f"there is no DUO variant {variant!r}; expected one of {', '.join(VARIANTS)}.")
        coded: dict[str, Any] = {}
        if variant == "as-coded":
            coded = {
                "shared_t": False, "posterior": "sample", "rank_shared_noise": True, "sigma_mode": "as_coded",
                "rescale": "reference", "learning_rate": 3e-5 if is_flow else 3e-4, "prior_weight": 1e6,
            }  # fmt: skip
        elif is_flow:
            coded = {"learning_rate": 6e-6}
        return cls(**{**coded, **changes})

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1),
            ("batch", 1),
            ("rank", 1),
            ("checkpoint_every", 1),
            ("t_min", 0),
            ("stop_after", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            self._require(
                isinstance(value, int) and not isinstance(value, bool) and value >= low,
                name,
                f"a whole number >= {low}",
            )
        for name in ("beta", "learning_rate"):
            self._require(math.isfinite(getattr(self, name)) and getattr(self, name) > 0, name, "a finite number > 0")
        for name in ("prior_weight", "weight_decay"):
            self._require(math.isfinite(getattr(self, name)) and getattr(self, name) >= 0, name, "a finite number >= 0")
        self._require(self.t_max >= self.t_min, "t_max", f"a whole number >= t_min = {self.t_min}")
        self._require(self.sigma_mode in SIGMA_MODES, "sigma_mode", f"one of {', '.join(SIGMA_MODES)}")
        self._require(self.posterior in ("mean", "sample"), "posterior", "mean or sample")
        for name in ("conditioning", "prior_conditioning"):
            self._require(getattr(self, name) in CONDITIONING, name, f"one of {', '.join(CONDITIONING)}")
        self._require(
            self.prior_conditioning in ("null", self.conditioning),
            "prior_conditioning",
            'null, or prompt together with conditioning="prompt"',
        )
        self._require(self.rescale in ("none", "reference"), "rescale", "none or reference")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise GuardConfigError(f"TrainConfig.{name} is {getattr(self, name)!r}; expected {expected}.")

    @property
    def rates(self) -> Rates:
        """Learning rate and prior weight after rescaling."""
        return rescaled(self.rescale, self.beta, self.learning_rate, self.prior_weight)
