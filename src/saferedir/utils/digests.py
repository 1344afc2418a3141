"""Checksums of tensors by name: one way to take them, wherever weights are recognised again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

#: what counts of a tensor: its values as float32; its bytes; or its shape, dtype and bytes. Records on disk have all three.
Form = Literal["values", "bytes", "typed"]


class Digest(Protocol):
    """What hashlib's functions return."""

    def update(self, data: bytes, /) -> None: ...


def add_values(digest: Digest, tensors: Mapping[str, Tensor], form: Form = "values") -> None:
    """Add names and what `form` says of each tensor, in the order of the names; a device does not count.

    A new checksum takes the default, by which a guard that is kept in another precision without loss is the same one.
    """
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        values = values.float() if form == "values" else values
        kind = f"{tuple(values.shape)}{values.dtype}" if form == "typed" else ""
        # flat, since a scalar has no bytes of its own
        digest.update(f"{name}{kind}".encode() + values.reshape(-1).view(torch.uint8).numpy().tobytes())
