"""Writes in place to tensors that somebody remembers: by counts, and by values where nothing counts."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Generic, TypeVar

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.utils.device import is_readable, refuse

ValueT = TypeVar("ValueT")


def writes_of(tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
    """How often each tensor was written to in place; tensors made for inference alone do not count."""
    return tuple(-1 if each is None or each.is_inference() else each._version for each in tensors)


def are_objects(now: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> bool:
    """Whether both hold the very same objects."""
    return len(now) == len(given) and all(map(is_, now, given))


def have_values(now: Sequence[Tensor | None], kept: Sequence[Tensor | None]) -> bool:
    """Whether tensors have the values of `kept`, which nobody wrote to.

    Where reading would wait, equal shapes are enough, and other values are refused at the end of the run.
    """
    for mine, theirs in zip(now, kept, strict=True):
        if mine is theirs:
            continue
        if mine is None or theirs is None or _form(mine) != _form(theirs):
            return False
        if not is_readable(mine):
            refuse(mine.detach() != theirs.detach(), written_error)
        elif not torch.equal(mine, theirs):
            return False
    return True


class Remembered:
    """Tensors of somebody else, and whether others are the very same objects with the values that they had."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._given, self._writes = tuple(tensors), writes_of(tensors)
        self._copies = tuple(None if each is None else each.detach().clone() for each in tensors)

    def is_same(self, now: Sequence[Tensor | None]) -> bool:
        """Where reading would wait, by the counts of writes; what only values show is refused at the end of the run."""
        if not are_objects(now, self._given):
            return False
        is_read = all(each is None or is_readable(each) for each in now)
        return (is_read or writes_of(now) == self._writes) and have_values(now, self._copies)


class MadeOf(Generic[ValueT]):
    """A value, and what it was made of: taken again while these tensors are the same objects and nobody wrote to them.

    For what no guard decides by: on the CPU, too, writes that nothing counts go unseen (see `Remembered`).
    """

    def __init__(self, value: ValueT, *sources: Tensor | None) -> None:
        self.value, self._sources, self._writes = value, sources, writes_of(sources)

    def is_of(self, *sources: Tensor | None) -> bool:
        """Whether the value would be made of the same again."""
        return are_objects(sources, self._sources) and writes_of(sources) == self._writes


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def written_error() -> GuardError:
    """Of a write that only values show."""
    return GuardError(
        "the prompt embeddings were written to in the middle of a run, so the guard's verdict on them no longer holds and no "
        "image is returned; give other embeddings as another tensor."
    )
