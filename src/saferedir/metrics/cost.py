"""What a guard costs: seconds and memory of a call, and their ratio to the bare model's.

Compare at the same dtype, batch and steps, after a few warm-up calls, on a machine that does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from saferedir.errors import MetricError
from saferedir.metrics import checks
from saferedir.metrics.bootstrap import USUAL, Mean, Resampling, bootstrap_interval

T = TypeVar("T")


class Stopwatch:
    """Seconds and peak memory of a `with` block.

    On a CPU: process time, all threads together, which other processes do not disturb; no memory. On an accelerator: wall time
    between two synchronisations; on CUDA the highest allocated bytes as well (a stopwatch resets the device's peak, so they
    must not nest).

    Attributes:
        seconds: set when the block ends. peak_bytes: likewise; None where it cannot be known.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self._started = 0.0

    def __enter__(self) -> Stopwatch:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._started = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds = self._now() - self._started
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What a call returned, its seconds, and its peak bytes (None where unknown)."""

    value: T
    seconds: float
    peak_bytes: int | None


def measure(function: Callable[[], T], device: str | torch.device = "cpu", warmups: int = 0) -> Measured[T]:
    """Call `function` once under a `Stopwatch`, after some unmeasured calls."""
    for _ in range(warmups):
        function()
    with Stopwatch(device) as watch:
        value = function()
    return Measured(value, watch.seconds, watch.peak_bytes)


def time_ratio(guarded: Tensor, bare: Tensor, how: Resampling = USUAL) -> Mean:
    """median(guarded) / median(bare) of (N,) seconds an image, paired by prompt; lower is better, 1 costs nothing.

    The interval is the percentile bootstrap over pairs. Batches generated together count as one entry: they share their time.
    """
    over = checks.numbers("the guarded seconds", guarded)
    under = checks.numbers("the bare seconds", bare, len(over))
    if float(over.min()) < 0 or float(under.min()) <= 0:
        raise MetricError(
            f"seconds go down to {float(over.min()):.3g} guarded and {float(under.min()):.3g} bare, expected >= 0 and > 0."
        )

    def ratio(rows: Tensor) -> Tensor:
        return over[rows].quantile(0.5, dim=1) / under[rows].quantile(0.5, dim=1)

    everything = torch.arange(len(over))[None]
    return Mean(float(ratio(everything)), len(over), *bootstrap_interval(ratio, len(over), how))
