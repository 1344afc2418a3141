"""Intervals for distances between two sets of images: the jackknife that leaves out a group of prompts at a time.

A bootstrap would not do: it takes images twice, and an image that meets itself pulls every one of these distances
away from its value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from saferedir.errors import MetricError
from saferedir.metrics import checks
from saferedir.metrics.bootstrap import Mean
from saferedir.metrics.distributions import (
    CMMD_SCALE,
    CMMD_SIGMA,
    Kernel,
    feature_pair,
    frechet_of,
    gaussian_kernel,
    gaussian_of,
    polynomial_kernel,
)
from saferedir.metrics.student import student_quantile

#: groups at most: their number is the interval's degrees of freedom, and the distance is computed once for each
GROUPS = 20
#: groups at least, for an interval of a distance
LEAST_GROUPS = 5
_ROWS_AT_ONCE = 1024
Distance = Literal["fid", "kid", "cmmd"]
#: of one (G,) bool for each sample, the groups that are kept
Statistic = Callable[..., float]


def jackknife_interval(statistic: Statistic, *groups: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Interval about a statistic of one or several independent samples, with the delete-a-group jackknife's variance.

    It reaches as far as Student's t of G - 1 degrees of freedom does, G the fewest groups of a sample.

    With theta from everything, theta_g without group g of m_g of the n cases, h_g = n / m_g and the pseudo-values
    tau_g = h_g theta - (h_g - 1) theta_g, a sample adds the mean over g of (tau_g - mean_g)² / (h_g - 1), where mean_g =
    G theta - sum (1 - m_g / n) theta_g: (G - 1) / G sum (theta_g - mean)² where all groups are of one size. Shao & Tu 1995, "The
    Jackknife and Bootstrap", ch. 2; groups: Kott 2001, J. Official Statistics 17; of unequal size: Busing, Meijer & van der
    Leeden 1999, Statistics and Computing 9.

    Args:
        statistic: takes one (G,) bool a sample, the groups that are kept, and gives a finite number. Smooth statistics only, no
            medians.
        groups: for each sample the (N,) group, 0 to G - 1, of its cases; at least two groups. Cases that depend on each other
            belong into one group.
        level: probability of the interval, in (0, 1).
    """
    if not 0 < level < 1:
        raise MetricError(f"level is {level}, expected a number within (0, 1).")
    sizes = [_sizes(group) for group in groups]
    whole = [torch.ones(len(group_sizes), dtype=torch.bool) for group_sizes in sizes]
    value, variance = statistic(*whole), 0.0
    for sample, sizes_of_group in enumerate(sizes):
        without = []
        for left_out in range(len(sizes_of_group)):
            kept = whole[sample].clone()
            kept[left_out] = False
            without.append(statistic(*whole[:sample], kept, *whole[sample + 1 :]))
        replicates, h = torch.tensor(without, dtype=torch.float64), sizes_of_group.sum() / sizes_of_group
        pseudo = h * value - (h - 1) * replicates
        centre = len(sizes_of_group) * value - ((1 - 1 / h) * replicates).sum()
        variance += float(((pseudo - centre).square() / (h - 1)).mean())
    reach = student_quantile(min(map(len, sizes)) - 1, level) * variance**0.5
    return value - reach, value + reach


def _sizes(groups: Tensor) -> Tensor:
    """(G,) float64 number of cases of each group."""
    sizes = groups.cpu().bincount().double()
    if len(sizes) < 2 or not bool((sizes > 0).all()):
        raise MetricError(
            f"a jackknife has group sizes {sizes.long().tolist()[:GROUPS]}, expected at least two groups, none of them empty."
        )
    return sizes


def prompt_groups(prompts: Tensor, most: int = GROUPS) -> Tensor:
    """(N,) group of each image by its prompt's index: prompt i is in group i modulo `most`, all images of a prompt in one.

    Empty groups are closed up, so that the numbers run from 0 to G - 1.
    """
    if most < 2:
        raise MetricError(f"most is {most}, expected at least two groups.")
    checks.groups("the prompt index", prompts, len(prompts))
    return checks.groups("the groups", prompts % most, len(prompts))


def distance_with_interval(
    kind: Distance, features_a: Tensor, features_b: Tensor, groups_a: Tensor, groups_b: Tensor | None = None
) -> Mean:
    """`frechet_distance`, `kernel_distance` or `cmmd` of two sets with a 95 % jackknife interval; lower is nearer.

    KID of paired sets leaves the pairs (a_i, b_i) out, as Gretton et al. 2012, eq. 4, does: an image is more like its partner
    than like others, so `kernel_distance`, made for independent sets, would give less than 0 for sets that are the same.

    Args:
        kind: "fid", "kid" or "cmmd".
        features_a: (N, d).
        features_b: (M, d).
        groups_a: (N,) group of each row (`prompt_groups`).
        groups_b: (M,) of the second set, where the two are independent samples. None where row i of both is the same prompt
            and seed: the same groups then leave both.

    Returns:
        A `Mean` with n = N. FID and CMMD, which are never negative, have intervals that end at 0.
    """
    if kind not in get_args(Distance):
        raise MetricError(f"the distance is {kind!r}, expected one of {', '.join(get_args(Distance))}.")
    a, b = feature_pair(features_a, features_b)
    first = checks.groups("the groups of the first set", groups_a, len(a))
    second = checks.groups("the groups of the second set", first if groups_b is None else groups_b, len(b))
    for rows, groups in ((a, first), (b, second)):
        if int(groups.max()) + 1 < LEAST_GROUPS:
            raise MetricError(
                f"the interval of a distance needs images of at least {LEAST_GROUPS} prompts, found {int(groups.max()) + 1}."
            )
        if len(rows) - int(groups.bincount().max()) < 2:
            raise MetricError(f"leaving out a group leaves fewer than 2 of {len(rows)} images; give more prompts.")
    is_paired = groups_b is None
    statistic = _frechet(a, b, first, second) if kind == "fid" else _discrepancy(kind, a, b, first, second, is_paired)
    if is_paired:
        low, high = jackknife_interval(lambda kept: statistic(kept, kept), first)
    else:
        low, high = jackknife_interval(statistic, first, second)
    value = statistic(*(torch.ones(int(groups.max()) + 1, dtype=torch.bool) for groups in (first, second)))
    return Mean(value, len(a), low if kind == "kid" else max(0.0, low), high)


def _frechet(a: Tensor, b: Tensor, groups_a: Tensor, groups_b: Tensor) -> Statistic:
    whole = gaussian_of(a), gaussian_of(b)

    def statistic(kept_a: Tensor, kept_b: Tensor) -> float:
        first = whole[0] if bool(kept_a.all()) else gaussian_of(a[kept_a[groups_a]])
        second = whole[1] if bool(kept_b.all()) else gaussian_of(b[kept_b[groups_b]])
        return frechet_of(first, second)

    return statistic


@dataclass(frozen=True)
class _Sums:
    """A kernel summed over pairs of rows, by their groups, (G, H); own: (G,), over pairs (i, i), 0 where these count."""

    pairs: Tensor
    diagonal: Tensor
    sizes: tuple[Tensor, Tensor]
    leaves_out: bool

    @classmethod
    def of(
        cls, kernel: Kernel, x: Tensor, y: Tensor, groups_x: Tensor, groups_y: Tensor, leaves_out: bool = False
    ) -> _Sums:
        """`leaves_out`: whether pairs (i, i) do not count."""
        sizes = groups_x.bincount().double(), groups_y.bincount().double()
        pairs, diagonal = torch.zeros(len(sizes[0]), len(sizes[1]), dtype=torch.float64), torch.zeros_like(sizes[0])
        for start in range(0, len(x), _ROWS_AT_ONCE):
            groups = groups_x[start : start + _ROWS_AT_ONCE]
            values = kernel(x[start : start + _ROWS_AT_ONCE], y)
            by_group = torch.zeros(len(groups), len(sizes[1]), dtype=torch.float64).index_add_(1, groups_y, values)
            pairs.index_add_(0, groups, by_group)
            if leaves_out:
                diagonal.index_add_(0, groups, values.diagonal(start))
        return cls(pairs, diagonal, sizes, leaves_out)

    def mean(self, kept_x: Tensor, kept_y: Tensor) -> float:
        """Mean over the pairs of the groups kept."""
        total = self.pairs[kept_x][:, kept_y].sum() - self.diagonal[kept_x].sum()
        n, m = self.sizes[0][kept_x].sum(), self.sizes[1][kept_y].sum()
        return float(total / (n * (m - 1 if self.leaves_out else m)))


def _discrepancy(
    kind: Distance, a: Tensor, b: Tensor, groups_a: Tensor, groups_b: Tensor, is_paired: bool
) -> Statistic:
    """KID or CMMD of the groups kept, out of sums that are computed once."""
    is_kid = kind == "kid"
    kernel = polynomial_kernel(a.shape[1]) if is_kid else gaussian_kernel(CMMD_SIGMA)
    within_a = _Sums.of(kernel, a, a, groups_a, groups_a, leaves_out=is_kid)
    within_b = _Sums.of(kernel, b, b, groups_b, groups_b, leaves_out=is_kid)
    between = _Sums.of(kernel, a, b, groups_a, groups_b, leaves_out=is_kid and is_paired)

    def statistic(kept_a: Tensor, kept_b: Tensor) -> float:
        within = within_a.mean(kept_a, kept_a) + within_b.mean(kept_b, kept_b)
        distance = within - 2 * between.mean(kept_a, kept_b)
        return distance if is_kid else max(0.0, CMMD_SCALE * distance)

    return statistic
