"""The merge operators of dual latent R2, docs/methods/dual_latent.md (9) to (11), as pure functions."""

from __future__ import annotations

import math

import pytest
import torch
from tests.guards.guidance_probe import close
from torch import Tensor

from saferedir.guards.dual_latent.merging import Stream, cosine, merge, renormed, slerp


def noises(rho: float, count: int = 200_000) -> tuple[Tensor, Tensor]:
    """Two noises (1, count) of mean 0, variance 1 and correlation rho, exactly."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(2, count, generator=generator, dtype=torch.float64)
    plain = plain - plain.mean(dim=1, keepdim=True)
    basis = torch.linalg.qr(plain.T)[0].T * math.sqrt(count)
    return basis[:1], rho * basis[:1] + math.sqrt(1 - rho**2) * basis[1:]


@pytest.mark.parametrize("w", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_renorm_keeps_the_variance_of_the_noise_and_linear_loses_what_the_formula_says(rho: float, w: float) -> None:
    one, other = noises(rho)
    level = torch.tensor([[w]], dtype=torch.float64)
    assert float(renormed(one, other, level).var()) == pytest.approx(1.0, abs=0.01)
    merged = merge(
        "linear", Stream(one, 0 * one), Stream(other, 0 * other), level[0], torch.ones(1, 1), torch.ones(1, 1)
    )
    expected = (1 - w) ** 2 + w**2 + 2 * w * (1 - w) * rho
    assert float(merged.var()) == pytest.approx(expected, abs=0.01)
    assert expected == pytest.approx(0.8, abs=0.01) or (rho, w) != (0.6, 0.5)


def test_renorm_merges_x0_linearly_and_its_parts_make_the_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 3, 4, 8, 8, generator=generator)
    eps = torch.randn(2, 3, 4, 8, 8, generator=generator)
    w = torch.tensor([0.0, 0.3, 1.0])
    for a, s in ((0.6, 0.8), (1.0, 7.0), (0.3, 0.7)):  # variance preserving, k-space, flow
        alpha, sigma = torch.full((3, 1, 1, 1), a), torch.full((3, 1, 1, 1), s)
        streams = [Stream(a * x0[k] + s * eps[k], x0[k]) for k in range(2)]
        found = merge("renorm", *streams, w, alpha, sigma)  # type: ignore[call-arg]
        column_w = w.view(-1, 1, 1, 1)
        expected = a * ((1 - column_w) * x0[0] + column_w * x0[1]) + s * renormed(eps[0], eps[1], column_w)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[0], streams[0].z[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[2], streams[1].z[2], rtol=1e-4, atol=1e-4)
    zero = torch.zeros(3, 1, 1, 1)
    assert torch.equal(merge("renorm", *streams, w, alpha, zero), merge("linear", *streams, w, alpha, zero))  # type: ignore[call-arg]


def test_opposite_noises_do_not_blow_up() -> None:
    one = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    assert renormed(one, -0.999 * one, torch.tensor([[0.5]])).abs().max() < 0.05


def test_slerp_keeps_the_norm_and_falls_back_to_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2))
    one, other = (value / value.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for value in (one, other))
    for w in (0.25, 0.5, 0.75):
        norm = slerp(one, other, torch.full((4, 1, 1, 1), w)).flatten(1).norm(dim=1)
        torch.testing.assert_close(norm, torch.ones(4), rtol=1e-5, atol=1e-5)
    quarter = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1 / 3]]))
    torch.testing.assert_close(quarter, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))
    leaf = one.clone().requires_grad_()
    same = slerp(leaf, one, torch.full((4, 1, 1, 1), 0.3))
    same.square().sum().backward()
    assert close(same, one, 1e-6) and leaf.grad is not None and leaf.grad.isfinite().all()
    assert torch.equal(cosine(one, 2 * one) > 0.999, torch.ones(4, 1, 1, 1, dtype=torch.bool))
