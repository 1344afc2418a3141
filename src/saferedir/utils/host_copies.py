"""Copies on the CPU of tensors on a device: made once for as long as these stay as they are, and known of their views, too.

Reading a device waits for it; what is read at every step (a schedule, masks of prompts) is read once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from saferedir.utils.device import read_together
from saferedir.utils.writes import writes_of

#: tensor on another device -> how often it had been written to, and its copy on the CPU; one goes with the other
_ON_HOST: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def keep(values: Tensor, copy: Tensor) -> None:
    """Remember `copy`, on the CPU, as that of `values`."""
    if values.device.type != "cpu":
        _ON_HOST[values] = (writes_of([values]), copy)


def read_once(values: Sequence[Tensor], *others: Tensor) -> list[Tensor]:
    """Have copies of `values`, all that are missing in one transfer; `others` come along and are returned."""
    missing = [value for value in values if known(value) is None]
    copies = read_together(*missing, *others)
    for value, copy in zip(missing, copies, strict=False):
        keep(value, copy)
    return copies[len(missing) :]


def on_host(values: Tensor) -> Tensor:
    """A tensor on the CPU: itself if it is there, else its copy, made where there is none."""
    copy = known(values)
    if copy is None:
        copy = values.cpu()
        keep(values, copy)
    return copy


def known(values: Tensor) -> Tensor | None:
    """A tensor on the CPU, None where it would have to be read: it, or the tensor that it is a view of, has a copy."""
    if values.device.type == "cpu":
        return values
    if (copy := _copy(values)) is not None:
        return copy
    base = values._base
    copy = None if base is None or base.dtype != values.dtype or not base.is_contiguous() else _copy(base)
    if base is None or copy is None:
        return None
    return copy.contiguous().as_strided(values.shape, values.stride(), values.storage_offset() - base.storage_offset())


def _copy(values: Tensor) -> Tensor | None:
    """The copy of a tensor as it is now."""
    writes, copy = _ON_HOST.get(values, (None, None))
    return copy if writes == writes_of([values]) else None
