"""How to train a DUO guard, checked. Symbols and both variants: docs/methods/duo.md (arXiv:2407.21035)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from saferedir.errors import GuardConfigError
from saferedir.training.duo.loss import Rates, rescaled
from saferedir.training.duo.noise import SIGMA_MODES
from saferedir.training.saferedir.dataset import check_call
from saferedir.utils.checks import Checked, is_int, is_nonempty_str

VARIANTS = ("as-paper", "as-coded")
CONDITIONING = ("null", "prompt")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How to train a DUO guard; the defaults are the variant "as-paper", the paper's nudity setting on SD 1.4.

    Every deviation is in docs/methods/duo.md.

    Attributes:
        steps: optimiser steps, >= 1.
        batch: pairs per step, >= 1.
        rank: of the LoRA, >= 1.
        targets: ends of the names of the adapted projections; () for self-attention only (UNets) or the image stream (SD3).
        beta: preference temperature; a smaller one pulls less towards the base model.
        learning_rate: of AdamW, constant.
        prior_weight: lambda of the preserving term.
        rescale: "none", or "reference" for learning rate 100 / beta and lambda beta / 100.
        weight_decay: of AdamW.
        t_min: first trained timestep; of flow models sigma in thousandths, from 1 on.
        t_max: last trained timestep; of flow models sigma up to (t_max + 1) / 1000.
        sigma_mode: trained sigmas (SD3), see `noise.Schedule`.
        shared_t: whether both members of a pair have one timestep.
        posterior: "mean" of the VAE's posterior, or a "sample" for each member.
        rank_shared_noise: whether all pairs of a step share noise and timesteps (in the released code those of all processes do;
            here training is a single process).
        conditioning: "null" trains at the empty prompt, as the method does; "prompt" at the prompt of each pair's unsafe image
            (an option of the released code, unused there): it reaches models that hardly listen to their empty prompt.
        prior_conditioning: prompts of the preserving term's rows, "null" or "prompt" likewise (which needs the latter above).
            The preference depends only on how the two members differ; what they share (a background) is held at "prompt".
        stop_after: steps in a row at accuracy 1 after which training ends; 0 for never.
        checkpoint_every: optimiser steps between two checkpoints, >= 1.
        size: (height, width) of the images in pixels; None for those in `call`, or what the pipeline generates by default.
        call: arguments of the pipeline's call: its size, and what changes embeddings, such as max_sequence_length.
        seed: of weights, pairs and noise.

    Example:
        >>> from saferedir.training.duo.train_config import TrainConfig
        >>> TrainConfig.of_variant("as-coded").shared_t
        False
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
    call: dict[str, Any] = field(default_factory=dict)
    seed: int = 42

    @classmethod
    def of_variant(cls, variant: str, *, is_flow: bool = False, **changes: Any) -> Self:
        """ "as-paper": the defaults. "as-coded": the released code's random numbers and docs/methods/duo.md (9), (10)."""
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
        for name in ("targets", "size"):  # JSON has no tuples
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        self.require_whole("steps", "batch", "rank", "checkpoint_every", at_least=1)
        self.require_whole("t_min", "t_max", "stop_after", "seed", at_least=0)
        self.require_number("beta", "learning_rate", above=0)
        self.require_number("prior_weight", "weight_decay", at_least=0)
        self.require(self.t_max >= self.t_min, "t_max", f"a whole number >= t_min = {self.t_min}")
        is_named = isinstance(self.targets, tuple) and all(map(is_nonempty_str, self.targets))
        self.require(is_named, "targets", "names of projections, or ()")
        is_pair = isinstance(self.size, tuple) and len(self.size) == 2
        is_size = is_pair and all(is_int(side) and side >= 1 for side in self.size or ())
        self.require(self.size is None or is_size, "size", "two whole numbers >= 1, or None")
        check_call(self.call)
        self.require_flag("shared_t", "rank_shared_noise")
        self.require_choice("sigma_mode", SIGMA_MODES)
        self.require_choice("posterior", ("mean", "sample"))
        self.require_choice("conditioning", CONDITIONING)
        self.require_choice("prior_conditioning", CONDITIONING)
        self.require(
            self.prior_conditioning in ("null", self.conditioning),
            "prior_conditioning",
            'null, or prompt together with conditioning="prompt"',
        )
        self.require_choice("rescale", ("none", "reference"))

    @property
    def rates(self) -> Rates:
        """Learning rate and prior weight after rescaling."""
        return rescaled(self.rescale, self.beta, self.learning_rate, self.prior_weight)
