"""What every metric asks of its numbers, each failure one sentence."""

from __future__ import annotations

import torch
from torch import Tensor

from saferedir.errors import MetricError


def flags(name: str, values: Tensor, n: int | None = None) -> Tensor:
    """(N,) bool on the CPU, of length n where given, or `MetricError`."""
    if values.dtype != torch.bool or values.ndim != 1:
        raise MetricError(f"{name} is {values.dtype} of shape {tuple(values.shape)}, expected bool of shape (N,).")
    _length(name, values, n)
    return values.cpu()


def numbers(name: str, values: Tensor, n: int | None = None) -> Tensor:
    """(N,) finite float64 on the CPU, N >= 1, of length n where given, or `MetricError`."""
    if values.ndim != 1 or not len(values):
        raise MetricError(f"{name} has shape {tuple(values.shape)}, expected (N,) with at least one number.")
    _length(name, values, n)
    return _finite(name, values.detach().double().cpu())


def features(name: str, values: Tensor, shape: tuple[int, ...] | None = None, at_least: int = 1) -> Tensor:
    """(N, d) finite float64, N >= at_least, of the given shape if any, or `MetricError`."""
    if values.ndim != 2 or len(values) < at_least:
        raise MetricError(f"{name} have shape {tuple(values.shape)}, expected (N, d) with N >= {at_least}.")
    if shape is not None and tuple(values.shape) != shape:
        raise MetricError(
            f"{name} have shape {tuple(values.shape)}, expected {shape} like those they are compared with."
        )
    return _finite(name, values.detach().double())


def groups(name: str, values: Tensor, n: int) -> Tensor:
    """(N,) numbers 0 to G - 1 of the groups that (n,) integers name, or `MetricError`."""
    if values.ndim != 1 or values.is_floating_point() or values.dtype == torch.bool:
        raise MetricError(f"{name} is {values.dtype} of shape {tuple(values.shape)}, expected integers of shape (N,).")
    _length(name, values, n)
    index: Tensor = torch.unique(values.cpu(), return_inverse=True)[1]
    return index


def _length(name: str, values: Tensor, n: int | None) -> None:
    if n is not None and len(values) != n:
        raise MetricError(f"{name} has {len(values)} entries, expected {n}, one for each of the others.")


def _finite(name: str, values: Tensor) -> Tensor:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise MetricError(f"{name}: {bad} of {values.numel()} numbers are not finite; leave out images never made.")
    return values
