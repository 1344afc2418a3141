"""The frozen configuration of a DUO guard, and which layers it adapts by default."""

from __future__ import annotations

from dataclasses import dataclass

from saferedir.guards.base import GuardConfig
from saferedir.utils.checks import is_nonempty_str

#: denoiser attribute -> projections that carry the LoRA by default, by the ends of their names.
#: UNets: self-attention only. SD3: a joint block has no separate self-attention, so the image stream's q, k, v and out are
#: taken; the text stream's (add_*_proj, to_add_out) and those of SD3.5's second attention (attn2) stay as they are.
TARGETS: dict[str, tuple[str, ...]] = {
    "unet": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    "transformer": ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
}


@dataclass(frozen=True, kw_only=True)
class DUOConfig(GuardConfig):
    """Settings of a DUO guard (arXiv:2407.21035).

    Attributes:
        component: attribute of the pipeline that holds the adapted denoiser, "unet" or "transformer".
        rank: r of the LoRA, whose alpha equals it (so that any LoRA loader scales it rightly).
        targets: ends of the names of the adapted projections.
        weight: factor on the LoRA's delta; several concepts are several guards, whose weighted deltas add up.
    """

    component: str = "unet"
    rank: int = 32
    targets: tuple[str, ...] = TARGETS["unet"]
    weight: float = 1.0

    def validate(self) -> None:
        self.require_choice("component", tuple(TARGETS))
        self.require_whole("rank", at_least=1)
        is_named = isinstance(self.targets, tuple) and bool(self.targets) and all(map(is_nonempty_str, self.targets))
        self.require(is_named, "targets", "at least one name of a projection")
        self.require_number("weight")
