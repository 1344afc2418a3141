"""Small whole numbers that the host knows, followed onto a device: what is read of them there waits for nothing.

A pipeline's `encode_prompt` moves the tokens and masks of its tokenizer to the device and asks them there for lengths. Inside
`knowing_host_values` these tensors, and what is computed of them alone, have a copy on the host that answers. Copies are made by
the same operations, so that the answers are the same; what the host does not know is read as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from saferedir.utils.host_copies import keep

#: largest tensor that is followed; masks of prompts have some hundred values a row
MAX_VALUES = 1 << 20
#: what makes tensors out of numbers, and tensors out of tensors without chance and without writing
_MAKES = frozenset(("tensor", "as_tensor", "ones", "zeros", "full", "arange"))
_COMPUTES = frozenset(
    (
        *("to", "long", "int", "bool", "clone", "detach", "contiguous", "nonzero", "__getitem__", "masked_fill", "where"),
        *("view", "reshape", "flatten", "unsqueeze", "squeeze", "expand", "repeat", "flip", "cat", "stack", "chunk", "split"),
        *("unbind", "transpose", "permute", "select", "narrow", "pad", "sum", "max", "min", "amax", "amin", "any", "all"),
        *("cumsum", "argmax", "argmin", "count_nonzero", "add", "sub", "mul", "clamp", "logical_not", "logical_and"),
        *("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"),
        *("eq", "ne", "lt", "le", "gt", "ge", "logical_or", "bitwise_not", "bitwise_and", "bitwise_or"),
        *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__invert__", "__and__", "__or__"),
        *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"),
    )
)  # fmt: skip
_READS = frozenset(("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__"))


@contextmanager
def knowing_host_values() -> Iterator[HostValues]:
    """Inside, reading what the host knows does not wait for the device that it was moved to. On the CPU nothing changes."""
    following = HostValues()
    with following:
        yield following


class HostValues(TorchFunctionMode):
    """What is known; as a context it follows all operations of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        #: tensor on a device -> its copy, and how often each had been written to
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        away = [each for each in given if each.device.type != "cpu"]
        copies = [self._copy(each) for each in given]
        if any(copy is None for copy in copies):
            return func(*self._without_masks(name, args), **kwargs)
        if name in _MAKES and not (args and isinstance(args[0], Tensor)):
            return self._made(func, self._on_host(args), kwargs)
        if not away and name != "to":
            return func(*args, **kwargs)
        if name in _READS or (name == "to" and _target(args, kwargs) == "cpu"):
            return func(*self._on_host(args), **self._on_host(kwargs))
        if name not in _COMPUTES:
            return func(*args, **kwargs)
        if name == "nonzero":  # its shape depends on values
            return self._moved(func(*self._on_host(args), **self._on_host(kwargs)), away[0].device)
        answer = func(*self._without_masks(name, args), **kwargs)
        leaves = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
        if all(_is_small(leaf) and leaf.device.type != "cpu" for leaf in leaves):
            copied = func(*self._on_host(args, is_move=name == "to"), **self._on_host(kwargs, is_move=name == "to"))
            theirs = [leaf for leaf in tree_leaves(copied) if isinstance(leaf, Tensor)]
            for mine, copy in zip(leaves, theirs, strict=True):
                self._keep(mine, copy)
        return answer

    def _made(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer = func(*args, **kwargs)
        if isinstance(answer, Tensor) and answer.device.type != "cpu" and _is_small(answer):
            self._keep(answer, func(*args, **{**kwargs, "device": "cpu"}))
        return answer

    def remember(self, values: Tensor | None) -> None:
        """Let `host_copies` know a tensor's copy, if there is one, so that nobody reads the tensor later."""
        if values is not None and (copy := self._copy(values)) is not None:
            keep(values, copy)

    def _without_masks(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of an indexing with numbers in the place of masks and of ends of slices that the host knows."""
        if name not in ("__getitem__", "__setitem__") or args[0].device.type == "cpu":
            return args
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        numbers: list[Any] = []
        for each in index:
            is_mask = isinstance(each, Tensor) and each.dtype == torch.bool and each.ndim > 0
            copy = self._copy(each) if is_mask else None
            if copy is not None:
                numbers += [self._moved(part, args[0].device) for part in copy.nonzero(as_tuple=True)]
            else:
                numbers.append(self._slice(each))
        return (args[0], tuple(numbers), *args[2:])

    def _slice(self, index: Any) -> Any:
        """A slice with numbers for its ends; anything else as it is."""
        if not isinstance(index, slice):
            return index
        ends = (index.start, index.stop, index.step)
        return slice(
            *(int(copy) if isinstance(end, Tensor) and (copy := self._copy(end)) is not None else end for end in ends)
        )

    def _moved(self, values: Any, device: torch.device | None) -> Any:
        """Tensors of the host on the device, which are known there."""

        def moved(value: Tensor) -> Tensor:
            answer = value.to(device)
            self._keep(answer, value)
            return answer

        return tree_map_only(Tensor, moved, values)

    def _keep(self, values: Tensor, copy: Tensor) -> None:
        if copy.shape == values.shape and copy.dtype == values.dtype and not values.is_inference():
            self._known[values] = (copy, copy._version, values._version)

    def _copy(self, values: Tensor) -> Tensor | None:
        """The copy of a tensor as it is now; of one on the host itself, None where it is not known."""
        if values.device.type == "cpu":
            return values if _is_small(values) else None
        copy, writes, writes_there = self._known.get(values, (None, 0, 0))
        is_valid = copy is not None and (copy._version, values._version) == (writes, writes_there)
        return copy if is_valid else None

    def _on_host(self, values: Any, *, is_move: bool = False) -> Any:
        """The copies in the place of tensors; `is_move`: and the CPU in the place of a device."""

        def copied(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self._copy(value)
            if isinstance(value, slice):
                return self._slice(value)
            return torch.device("cpu") if is_move and isinstance(value, torch.device | str) else value

        return tree_map(copied, values)


def _is_small(values: Tensor) -> bool:
    return not values.is_floating_point() and not values.is_complex() and values.numel() <= MAX_VALUES


def _target(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Type of the device that `Tensor.to` moves to, "" where it does not say."""
    for each in (*args[1:], kwargs.get("device"), kwargs.get("other")):
        if isinstance(each, Tensor):
            return each.device.type
        if isinstance(each, torch.device | str):
            return torch.device(each).type
    return ""
