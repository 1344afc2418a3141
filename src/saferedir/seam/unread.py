"""Conditioning that reaches a denoiser past its guards: phrases of GLIGEN, and whatever else attention processors are handed.

Used by `seam` at every denoiser call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saferedir.errors import GuardError

_CONTAINERS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs", "added_cond_kwargs")
#: what diffusers puts there itself: pooled embeddings, which guards read; sizes; image prompts, which docs/security.md names
_KNOWN = frozenset(
    ("text_embeds", "time_ids", "resolution", "aspect_ratio")
    + ("image_embeds", "ip_adapter_image_embeds", "ip_hidden_states", "ip_adapter_masks")
)


def check_all_is_read(kwargs: Mapping[str, Any]) -> None:
    """Raise GuardError if a denoiser's keyword arguments hold tensors or words that no guard reads."""
    for container in _CONTAINERS:
        for name, value in (kwargs.get(container) or {}).items():
            if name not in _KNOWN and not _is_number(value):
                raise GuardError(
                    f"{container}[{name!r}] may bring a concept in past the guards, which do not read it, so no image is "
                    "returned; leave it out."
                )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)
