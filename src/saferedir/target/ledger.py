"""What an attack spends, counted where it is spent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class BudgetSpent(Exception):
    """A cap of the ledger is reached; the attack returns its best so far."""


@dataclass
class Ledger:
    """Counts of one attack on one prompt.

    Attributes:
        nfe: rows through the denoiser.
        bwd: those of them that a gradient can come back through.
        te: rows through text encoders.
        gen: images generated to the end.
        queries: images shown to a judge.
        seconds: wall time since it was made.
        caps: name of a count -> its most; going on above one raises `BudgetSpent` before anything is spent.
    """

    nfe: int = 0
    bwd: int = 0
    te: int = 0
    gen: int = 0
    queries: int = 0
    caps: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self.started

    def charge(self, **counts: int) -> None:
        """Add to the counts; BudgetSpent, and nothing added, where one would pass its cap."""
        for name, count in counts.items():
            if getattr(self, name) + count > self.caps.get(name, getattr(self, name) + count):
                raise BudgetSpent(f"{name} is capped at {self.caps[name]}")
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the clock's start."""
        record = dataclasses.asdict(self)
        del record["started"]
        return record | {"seconds": round(self.seconds, 3)}


def count_rows(
    denoisers: Iterable[nn.Module], encoders: Iterable[nn.Module], ledger: Callable[[], Ledger]
) -> list[Any]:
    """Hooks that charge every row of every call to the ledger of that moment; their handles, to be removed."""

    def rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return next(len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1)

    def denoise(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        graded = torch.is_grad_enabled() and any(value.requires_grad for value in values)
        count = rows(args, kwargs)
        ledger().charge(nfe=count, bwd=count if graded else 0)

    def encode(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ledger().charge(te=rows(args, kwargs))

    return [
        *(module.register_forward_pre_hook(denoise, with_kwargs=True) for module in denoisers),
        *(module.register_forward_pre_hook(encode, with_kwargs=True) for module in encoders),
    ]
