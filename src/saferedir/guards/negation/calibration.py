"""Calibration of a negation set: kernel width, gate threshold and shield radius from the references alone.

Implements docs/methods/safe_denoiser.md (7) and (8), docs/methods/spell.md (3).
Pure functions; imports torch only. Everything is stored against the noise fraction u = sigma / (alpha + sigma), the one clock
that VP, k-space and flow schedulers share: the Gaussian kernel uses alpha and sigma through alpha / sigma = (1 - u) / u only.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from saferedir.utils.renamed import old_name

if TYPE_CHECKING:
    from saferedir.guards.negation.engine import Block

#: effective number of references that the calibrated kernel averages over
TARGET_ESS = 8.0
QUANTILE = 0.05
#: references that are noised to calibrate; fewer for a huge set
PROBES, FEW_PROBES, HUGE = 64, 16, 2**16
#: u of the grid, evenly spaced in log(sigma / alpha)
GRID = tuple(1 / (1 + math.exp(-z)) for z in torch.linspace(-3.0, 7.0, 21).tolist())
#: threshold of a set too small for weights
ALWAYS_OPEN = -1e30
_BISECTIONS = 24
_SMALLEST_KAPPA = 1e-10


class RowSource(Protocol):
    """`engine.References` with a length and single rows."""

    @property
    def centre(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def blocks(self) -> Iterable[Block]: ...
    def pick(self, indices: Tensor) -> Block: ...


@dataclass(frozen=True)
class KernelCalibration:
    """noise, kappa, threshold (T,): u of the grid, the tempering there, and the gate's threshold for score / kappa;
    radius: 5 % quantile of nearest-neighbour distances, NaN for a single reference.
    """

    noise: Tensor
    kappa: Tensor
    threshold: Tensor
    radius: float

    NAMES: ClassVar[tuple[str, ...]] = ("calibration_noise", "calibration_kappa", "calibration_threshold", "radius")

    def at(self, u: float) -> tuple[float, float]:
        """(kappa, threshold) at noise fraction u: log kappa interpolated in log(sigma / alpha), the threshold in
        (alpha / sigma)^2, in which scores of noised references are linear: -(||eps||^2 + (alpha / sigma)^2 ||r_i - r_n||^2) / 2.
        """
        if u not in self._known:  # the same few at every run
            self._known[u] = self._interpolated(u)
        return self._known[u]

    @cached_property
    def _known(self) -> dict[float, tuple[float, float]]:
        return {}

    def _interpolated(self, u: float) -> tuple[float, float]:
        knots, log_kappas, thresholds = self._curves
        where = min(max(_logit(u), knots[0]), knots[-1])
        right = min(max(bisect_right(knots, where), 1), len(knots) - 1)
        share = (where - knots[right - 1]) / ((knots[right] - knots[right - 1]) or 1.0)
        log_kappa = log_kappas[right - 1] + share * (log_kappas[right] - log_kappas[right - 1])
        here, before, after = (math.exp(-2 * position) for position in (where, knots[right - 1], knots[right]))
        share = (here - before) / ((after - before) or 1.0)
        threshold = thresholds[right - 1] + share * (thresholds[right] - thresholds[right - 1])
        return (math.exp(log_kappa) if log_kappa > -600 else 0.0), threshold

    @cached_property
    def _curves(self) -> tuple[list[float], list[float], list[float]]:
        """log(sigma / alpha), log kappa and threshold as plain numbers."""
        log_kappa = self.kappa.double().clamp(min=1e-300).log()
        return [_logit(u) for u in self.noise.tolist()], log_kappa.tolist(), self.threshold.tolist()

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the file format."""
        values = (self.noise.float(), self.kappa.float(), self.threshold.float(), torch.tensor([self.radius]))
        return dict(zip(self.NAMES, values, strict=True))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> KernelCalibration:
        """Inverse of `tensors`."""
        noise, kappa, threshold, radius = (tensors[name] for name in cls.NAMES)
        return cls(noise, kappa, threshold, float(radius[0]))


def calibrate(references: RowSource, seed: int = 0, grid: tuple[float, ...] = GRID) -> KernelCalibration:
    """kappa, threshold and radius of a set.

    P references are noised to each u and compared with all others (leave one out). kappa: the largest value <= 1 (never sharper
    than the exact posterior) at which the median effective sample size reaches min(8, M/2). threshold: 5 % quantile of
    log-sum-exp / kappa, so that 95 % of noised references would open the gate.
    """
    count = len(references)
    noise = torch.tensor(grid)
    if count < 2:
        return KernelCalibration(noise, torch.zeros(len(grid)), torch.full((len(grid),), ALWAYS_OPEN), math.nan)
    probe_rows, cross, shift, norms, energy = _products(references, seed)
    others = torch.ones_like(cross, dtype=torch.bool).scatter_(1, probe_rows[:, None], False)
    squared = (norms[probe_rows][:, None] + norms - 2 * cross).clamp(min=0)  # ||r_i - r_n||^2
    nearest = squared.masked_fill(~others | (squared < 1e-6 * (norms + 1e-30)), torch.inf).amin(dim=1)
    nearest = nearest[torch.isfinite(nearest)].sqrt()
    radius = float(torch.quantile(nearest, QUANTILE)) if len(nearest) else math.nan
    kappas, thresholds = [], []
    for u in grid:
        ratio = (1 - u) / u
        half = -0.5 * (ratio**2 * squared + 2 * ratio * shift.gather(1, probe_rows[:, None]) - 2 * ratio * shift)
        half = (half - 0.5 * energy[:, None]).masked_fill(~others, -torch.inf)  # -||x - alpha r_n||^2 / (2 sigma^2)
        kappa = 0.0 if count < 4 else _bisect(half, min(TARGET_ESS, count / 2))
        kappas.append(kappa)
        thresholds.append(
            float(torch.quantile(torch.logsumexp(kappa * half, dim=1) / kappa, QUANTILE)) if kappa else ALWAYS_OPEN
        )
    return KernelCalibration(noise, torch.tensor(kappas), torch.tensor(thresholds), radius)


def _products(references: RowSource, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(indices of P probes, r_i.r_n (P, M), eps_i.r_n (P, M), ||r_n||^2 (M,), ||eps_i||^2 (P,)), in one pass over the set."""
    count = len(references)
    generator = torch.Generator().manual_seed(seed)
    probe_rows = torch.randperm(count, generator=generator)[: PROBES if count <= HUGE else FEW_PROBES].sort().values
    probes = references.pick(probe_rows).rows.float().cpu()
    noise = torch.randn(probes.shape, generator=generator)
    both, norms = torch.cat([probes, noise]), []
    products = torch.empty(len(both), count)
    for block in references.blocks():
        products[:, block.start : block.start + len(block.rows)] = both @ block.rows.float().cpu().T
        norms.append(block.norms.float().cpu())
    return (
        probe_rows,
        products[: len(probe_rows)],
        products[len(probe_rows) :],
        torch.cat(norms),
        noise.square().sum(dim=1),
    )


def _bisect(half: Tensor, target: float) -> float:
    """Largest kappa in [1e-10, 1] whose median effective sample size over rows of `half` (P, M) is at least `target`."""

    def is_enough(log_kappa: float) -> bool:
        weights = torch.softmax(math.exp(log_kappa) * half, dim=1)
        return float((1 / weights.square().sum(dim=1)).median()) >= target

    low, high = math.log(_SMALLEST_KAPPA), 0.0
    if is_enough(high):
        return 1.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return math.exp(low)


def _logit(u: float) -> float:
    u = min(max(u, 1e-9), 1 - 1e-9)
    return math.log(u / (1 - u))


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
