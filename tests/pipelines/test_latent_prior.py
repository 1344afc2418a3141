"""Latents against the prior: honest noise fails no more often than stated, and what is not noise is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats

from saferedir.pipelines.latent_prior import prior_test

RATES = (1e-2, 1e-3)


def noise(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shape", "count"), [((4, 8, 8), 20_000), ((4, 4, 6), 20_000), ((2, 3, 8, 8), 10_000)])
def test_honest_noise_fails_no_more_often_than_stated(shape: tuple[int, ...], count: int) -> None:
    p_values = prior_test(noise(count, *shape)).p_value
    for rate in RATES:
        failures = int((p_values < rate).sum())
        assert stats.binomtest(failures, count, rate, alternative="greater").pvalue > 1e-3, (rate, failures)
    assert bool(((p_values >= 0) & (p_values <= 1)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_sign_of_anything(dtype: torch.dtype) -> None:
    p_values = prior_test(noise(2_000, 4, 16, 16).to(dtype)).p_value
    assert stats.binomtest(int((p_values < 1e-2).sum()), 2_000, 1e-2, alternative="greater").pvalue > 1e-3


def unlike(kind: str, z: torch.Tensor) -> torch.Tensor:
    """Latents (B, 4, 16, 16) that are no draw from the prior, as inversion and optimisation leave them."""
    if kind == "mean square 1.34":
        return z * (1.34 / z.flatten(1).square().mean(dim=1)).sqrt().view(-1, 1, 1, 1)
    if kind == "mean square .75":
        return z * 0.75**0.5
    if kind == "one channel shifted":
        return z + torch.tensor([0.6, 0, 0, 0]).view(4, 1, 1)
    if kind == "neighbours alike":
        mixed = z + 0.25 * z.roll(1, dims=-1)
        return mixed / (1 + 0.25**2) ** 0.5
    if kind == "not finite":
        return torch.where(torch.arange(16) == 3, torch.nan, z)
    return torch.zeros_like(z)


@pytest.mark.parametrize(
    "kind",
    ["mean square 1.34", "mean square .75", "one channel shifted", "neighbours alike", "not finite", "zero"],
)
def test_what_is_no_noise_is_found(kind: str) -> None:
    found = prior_test(unlike(kind, noise(200, 4, 16, 16, seed=1)))
    assert float((found.p_value < 1e-3).double().mean()) >= 0.99, found.p_value.sort().values[-5:]
    assert bool(found.p_value.isfinite().all())


def test_each_row_is_tested_by_itself() -> None:
    z = noise(3, 4, 16, 16)
    z[1] *= 2
    together, single = prior_test(z), [prior_test(row[None]) for row in z]
    for name in together._fields:
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(found, name) for found in single]))
    assert together.p_value[1] < 1e-9 < together.p_value[[0, 2]].min()


def test_the_tails_are_those_of_scipy() -> None:
    z: Any = noise(1, 4, 8, 8)
    square = float(z.double().square().sum())
    means = z.double().flatten(2).mean(dim=2).square().sum() * 64
    ends = [2 * min(stats.chi2.cdf(square, 256), stats.chi2.sf(square, 256)), stats.chi2.sf(float(means), 4)]
    products = [(z[..., 1:] * z[..., :-1]).double().sum(), (z[..., 1:, :] * z[..., :-1, :]).double().sum()]
    ends.append(stats.chi2.sf(sum(float(total) ** 2 for total in products) / 224 / (square / 256) ** 2, 2))
    assert float(prior_test(z).p_value) == pytest.approx(min(1, 3 * min(ends)), rel=1e-5)
