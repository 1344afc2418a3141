"""Which arithmetic generates fastest here without a loss that matters: bf16 autocast where the processor has it.

Guarded and unguarded images must be generated under the same one, or they are not comparable.
"""

from __future__ import annotations

import torch

_BF16_FEATURES = ("avx512_bf16", "amx_bf16", "bf16")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is worth using: on CUDA, and on processors with instructions for it."""
    if device.type != "cpu":
        return device.type == "cuda"
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # torch >= 2.10
    features = capabilities() if capabilities is not None else {}
    return any(bool(features.get(name)) for name in _BF16_FEATURES)


def fast_precision(device: torch.device) -> torch.autocast:
    """A context for generation: bf16 autocast where that is fast, plain float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))


def precision_name(device: torch.device) -> str:
    """What `fast_precision` amounts to, for records."""
    return "bf16 autocast" if has_fast_bf16(device) else "float32"
