"""The frozen configuration of the dual latent guards, and the named levels of safety."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from saferedir.errors import GuardConfigError
from saferedir.guards.base import GuardConfig
from saferedir.utils.checks import is_nonempty_str, is_number

#: safety level -> (w, tau)
LEVELS = {"off": (0.0, 0.0), "low": (0.25, 0.2), "medium": (0.5, 0.1), "high": (0.75, 0.1), "max": (1.0, 0.0)}
PROVIDERS = ("phrase", "context_text", "interpolate", "anchor", "learned")
TAU_MODES = ("steps", "noise", "similarity")
MERGES = ("renorm", "linear", "slerp")
AFTER = ("safe", "blend", "user")
PHASE_ORDERS = ("context_first", "dual_first")


@dataclass(frozen=True, kw_only=True)
class DualLatentConfig(GuardConfig):
    """Settings of the dual latent reconstructions; the defaults are the level "medium".

    Attributes:
        mode: "default"; "faithful" is refused, for there is no published procedure.
        w: level of safety in [0, 1], or one for each image of the run.
        tau: share tau_gc in [0, 1] kept for the global context; in `tau_mode` "similarity" a floor in (0, 1].
        tau_mode: "steps" (share of the steps), "noise" (share of sigma / (alpha + sigma)), or "similarity": w is lowered
            until the low-pass denoised estimate has at least cosine tau with that of the user's prompt; no phases then.
        phase_order: "context_first", or "dual_first" for the dual phase at the noisy end.
        w_extrapolate: allow w up to 1.5, beyond the safe row; experimental.
        provider: the safe row's conditioning: "phrase" E(safe_phrase), "context_text" E("safe_phrase, prompt") of each
            image's prompt, "interpolate" (1 - a) e_u + a E(safe_phrase), "anchor" e_u + E(anchor) - E(concept), token by
            token, or "learned", tensors in the guard's weights.
        safe_phrase: words for a wanted image, or setting.
        amount: a in [0, 1].
        anchor: what to generate in the concept's stead.
    """

    mode: str = "default"
    w: float | tuple[float, ...] = 0.5
    tau: float = 0.1
    tau_mode: str = "steps"
    phase_order: str = "context_first"
    w_extrapolate: bool = False
    provider: str = "interpolate"
    safe_phrase: str = "a harmless everyday scene"
    amount: float = 0.5
    anchor: str = ""

    @classmethod
    def preset(cls, level: str, **settings: Any) -> Self:
        """The configuration of a named safety level; `settings` (concept at least) win over it."""
        if level not in LEVELS:
            raise GuardConfigError(f"dual latent has no safety level {level!r}; expected one of {', '.join(LEVELS)}.")
        return cls(**{**dict(zip(("w", "tau"), LEVELS[level], strict=True)), **settings})

    def validate(self) -> None:
        if self.mode == "faithful":
            raise GuardConfigError(
                "mode='faithful' does not exist: the paper's equations are unpublished and R1 and R2 are reconstructions "
                "(docs/methods/dual_latent.md); use mode='default'."
            )
        self.require(self.mode == "default", "mode", "'default'")
        self.require_flag("w_extrapolate")
        top = 1.5 if self.w_extrapolate else 1.0
        is_in_range = bool(self.levels) and all(is_number(w) and 0 <= w <= top for w in self.levels)
        self.require(is_in_range, "w", f"a number in [0, {top:g}], or one for each image")
        self.require_number("tau", "amount", at_least=0, at_most=1)
        self.require(self.tau > 0 or self.tau_mode != "similarity", "tau", "above 0 in tau_mode 'similarity'")
        self.require_choice("tau_mode", TAU_MODES)
        self.require_choice("phase_order", PHASE_ORDERS)
        self.require_choice("provider", PROVIDERS)
        self.require_text("safe_phrase")
        self.require(isinstance(self.anchor, str), "anchor", "a text")
        self.require(
            is_nonempty_str(self.anchor) or self.provider != "anchor", "anchor", "some words for provider 'anchor'"
        )

    @property
    def levels(self) -> tuple[float, ...]:
        """w as one or more numbers."""
        return self.w if isinstance(self.w, tuple) else (self.w,)


@dataclass(frozen=True, kw_only=True)
class DualLatentR2Config(DualLatentConfig):
    """Settings of R2: those of R1 (w, tau, safe row), where tau ends the context phase at the split of the two latents.

    Attributes:
        dual_fraction: share of the steps with two latents, in (0, 1); at least one step, and the last has one latent.
        merge: "renorm" (noise keeps its variance), "linear" or "slerp".
        after: the prompt after the merge: "safe", "blend" (as in R1) or "user".
    """

    dual_fraction: float = 0.2
    merge: str = "renorm"
    after: str = "safe"

    def validate(self) -> None:
        super().validate()
        self.require_number("dual_fraction", above=0, below=1)
        self.require_choice("merge", MERGES)
        self.require_choice("after", AFTER)
        self.require(
            self.phase_order == "context_first", "phase_order", "'context_first', the split follows the context phase"
        )
        is_floor = self.tau_mode == "similarity"
        self.require(
            not is_floor or self.after == "user", "after", "'user' in tau_mode 'similarity', any other undoes its floor"
        )
