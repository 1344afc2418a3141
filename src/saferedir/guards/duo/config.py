"""The frozen configuration of a DUO guard, and which layers it adapts by default."""

from __future__ import annotations

from dataclasses import dataclass

from saferedir.guards.weights import WeightConfig

#: denoiser attribute -> projections that carry the LoRA by default, by the ends of their names.
#: UNets: self-attention only. SD3: a joint block has no separate self-attention, so the image stream's q, k, v and out are
#: taken; the text stream's (add_*_proj, to_add_out) and those of SD3.5's second attention (attn2) stay as they are.
TARGETS: dict[str, tuple[str, ...]] = {
    "unet": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    "transformer": ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
}


@dataclass(frozen=True, kw_only=True)
class DUOConfig(WeightConfig):
    """Settings of a DUO guard (arXiv:2407.21035): those of `WeightConfig`."""

    targets: tuple[str, ...] = TARGETS["unet"]
