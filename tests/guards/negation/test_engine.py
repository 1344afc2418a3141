"""The engine against naive float64 loops, its invariants (batch, order, shifts, hull), extremes, gradients and streaming."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.guards.negation.oracle import circle, frame, naive_attend, randn
from torch import Tensor

from saferedir.guards.negation import (
    NegationSet,
    attend,
    engine,
    gaussian_x0,
    gaussian_xt,
    laplace_x0,
    push_out,
    reference_rows,
)
from saferedir.guards.negation.engine import attend_all

SIZES = {
    "count": st.integers(1, 12),
    "dim": st.integers(1, 9),
    "batch": st.integers(1, 4),
    "seed": st.integers(0, 10**6),
}


def exact(rows: Tensor, benign: Tensor | None = None) -> NegationSet:
    """A set that keeps every bit of its latents."""
    return NegationSet.from_latents(rows, benign, dtype=torch.float32)


def attended(x: Tensor, rows: NegationSet, alpha: float, sigma: float, kappa: float = 1.0) -> engine.Attention:
    references = rows.references
    return attend(gaussian_xt(x.flatten(1), references.centre, alpha, sigma, kappa), references)


@settings(max_examples=60, deadline=None)
@given(**SIZES, t=st.sampled_from([981, 801, 401, 101]), kappa=st.floats(1e-3, 1.0), offset=st.floats(-3, 3))
def test_engine_equals_naive_loops(
    count: int, dim: int, batch: int, seed: int, t: int, kappa: float, offset: float
) -> None:
    alpha, sigma = frame(t)
    rows, x = randn(count, dim, seed=seed) + offset, 2 * randn(batch, dim, seed=seed + 1)
    found = attended(x, exact(rows), alpha, sigma, kappa)
    mean, log_sum, ess = naive_attend(x, rows, alpha, sigma, kappa)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-4 * float(rows.abs().max()))
    np.testing.assert_allclose(found.log_sum, log_sum, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.ess, ess, rtol=2e-3)


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_batch_is_loop_order_is_nothing_and_mean_stays_in_the_hull(count: int, dim: int, batch: int, seed: int) -> None:
    alpha, sigma = frame(801)
    rows, x = randn(count, dim, seed=seed), randn(batch, dim, seed=seed + 1)
    negation = exact(rows)
    mean = attended(x, negation, alpha, sigma).mean
    single = torch.cat([attended(one[None], negation, alpha, sigma).mean for one in x])
    torch.testing.assert_close(mean, single, rtol=1e-4, atol=1e-5)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mean, attended(x, exact(rows[order]), alpha, sigma).mean, rtol=1e-4, atol=1e-5)
    for direction in randn(8, dim, seed=seed + 2):  # a point lies in the hull if no half-space of the hull excludes it
        assert bool(((mean @ direction) <= (rows @ direction).max() + 1e-4).all())


@settings(max_examples=30, deadline=None)
@given(**SIZES, shift=st.floats(-20, 20))
def test_shifting_references_and_latents_shifts_the_mean(
    count: int, dim: int, batch: int, seed: int, shift: float
) -> None:
    alpha, sigma = frame(801)
    rows, x = randn(count, dim, seed=seed), randn(batch, dim, seed=seed + 1)
    moved = attended(x + alpha * shift, exact(rows + shift), alpha, sigma).mean
    torch.testing.assert_close(moved, attended(x, exact(rows), alpha, sigma).mean + shift, rtol=1e-3, atol=2e-4)


def test_one_reference_is_the_mean_to_the_bit() -> None:
    rows, x = randn(1, 4, 3, 3), randn(5, 4, 3, 3, seed=1)
    for dtype in (torch.float16, torch.float32):
        negation = NegationSet.from_latents(rows, dtype=dtype)
        assert torch.equal(attended(x, negation, *frame(801)).mean, rows.flatten(1).expand(5, -1))


def test_limits_of_kappa_and_alpha() -> None:
    rows, x = randn(6, 5), randn(3, 5, seed=1)
    negation, (alpha, sigma) = exact(rows), frame(801)
    plain = rows.mean(dim=0).expand(3, -1)
    torch.testing.assert_close(attended(x, negation, alpha, sigma, 1e-9).mean, plain)
    torch.testing.assert_close(attended(x, negation, 0.0, 1.0).mean, plain)
    assert torch.allclose(attended(x, negation, 0.0, 1.0).ess, torch.tensor(6.0))
    nearest = rows[torch.cdist(x / alpha, rows).argmin(dim=1)]
    torch.testing.assert_close(attended(x, negation, alpha, sigma, 1e5).mean, nearest)
    sizes = torch.stack([attended(x, negation, alpha, sigma, kappa).ess for kappa in np.geomspace(1e-3, 1e3, 25)])
    assert bool((sizes.diff(dim=0) <= 1e-3).all())


def test_extreme_inputs_stay_finite_and_the_score_keeps_its_value() -> None:
    rows, (alpha, sigma) = randn(20, 64), frame(801)
    x = 1e3 * randn(2, 64, seed=1)
    found = attended(x, exact(rows), alpha, sigma)
    assert all(bool(torch.isfinite(part).all()) for part in found)
    _, log_sum, _ = naive_attend(x, rows, alpha, sigma, 1.0)
    np.testing.assert_allclose(found.log_sum, log_sum, rtol=1e-4)
    far = gaussian_x0(torch.full((1, 64), math.sqrt(2e6 / 64)), torch.zeros(64), 1.0)
    far_score = attend(far, exact(torch.zeros(3, 64)).references).log_sum
    assert far_score.item() == pytest.approx(-1e6 + math.log(3), rel=1e-5)


def test_laplace_kernel_adds_its_epsilon() -> None:
    rows, x = randn(5, 6), randn(2, 6, seed=1)
    mean, total = attend_all(laplace_x0(x, rows.mean(dim=0), 0.8), exact(rows).references, 1e-8)
    distance = torch.cdist(x.double(), rows.double())
    weights = (-distance / (2 * 0.8**2)).exp()
    torch.testing.assert_close(total.double(), weights.sum(dim=1) + 1e-8, rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), weights @ rows.double() / total.double()[:, None], rtol=1e-4, atol=1e-5)
    far, _ = attend_all(laplace_x0(x + 1e4, rows.mean(dim=0), 0.8), exact(rows).references, 1e-8)
    assert not far.any()  # the epsilon is a nearness gate


@pytest.mark.parametrize("t", [981, 781, 401, 201])
def test_finite_sets_approach_the_unsafe_denoiser(t: int) -> None:
    mixture, generator, (alpha, sigma) = circle(), torch.Generator().manual_seed(0), frame(t)
    x0 = mixture.sample(2000, generator, mixture.is_unsafe)
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    truth = mixture.denoised(x, alpha, sigma, mixture.is_unsafe)
    for count, bound in ((4096, 0.03), (256, 0.08)):
        rows = mixture.sample(count, generator, mixture.is_unsafe).float()
        error = (attended(x.float(), exact(rows), alpha, sigma).mean - truth).square().mean().sqrt()
        assert error <= bound, (count, float(error))


def test_streaming_equals_memory_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BLOCK", 64 * 7)
    monkeypatch.setattr(reference_rows, "BLOCK", 64 * 7)  # seven rows a block
    negation = NegationSet.from_latents(randn(100, 4, 4, 4) + 1.0, randn(30, 4, 4, 4, seed=2))
    path = negation.save(tmp_path / "set.safetensors")
    streamed, loaded = NegationSet.open(path, stream=True), NegationSet.open(path)
    assert streamed.is_streamed and not loaded.is_streamed
    x = randn(3, 64, seed=1)
    for part in ("references", "benign"):
        answers = []
        for one in (negation, loaded, streamed):
            rows = getattr(one, part)
            answers.append(attend(gaussian_xt(x, rows.centre, *frame(801), 0.3), rows))
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*answers, strict=True))
    assert torch.equal(streamed.latents(), loaded.latents())
    pushed = [push_out(x, one.references, 12.0) for one in (loaded, streamed)]
    assert torch.equal(pushed[0][0], pushed[1][0]) and bool(pushed[0][1].any())


@pytest.mark.parametrize("stream", [False, True])
def test_gradients_match_finite_differences_through_many_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(reference_rows, "BLOCK", 6 * 3)
    path = exact(randn(10, 6)).save(tmp_path / "set.safetensors")
    rows = NegationSet.open(path, stream=stream).references

    def score(x: Tensor) -> Tensor:
        found = attend(gaussian_xt(x, rows.centre.double(), 0.6, 0.8, 0.5), rows)
        return found.mean.square().sum() + found.log_sum.sum() + found.ess.sum()

    x = randn(2, 6, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(score, (x,), eps=1e-6, atol=1e-4)
    assert torch.autograd.gradcheck(lambda x: push_out(x, rows, 3.0)[0], (x,), eps=1e-6, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(distance=st.floats(0.01, 0.99), radius=st.floats(0.5, 50), dim=st.integers(1, 20), seed=st.integers(0, 1000))
def test_one_shield_moves_to_its_sphere(distance: float, radius: float, dim: int, seed: int) -> None:
    centre, direction = randn(1, dim, seed=seed), randn(1, dim, seed=seed + 1)
    x0 = centre + distance * radius * direction / direction.norm()
    push, entered = push_out(x0, exact(centre).references, radius)
    assert entered.item() == 1
    scale = 1e-6 * (radius + float(centre.norm()) + 1)
    assert float((x0 + push - centre).norm()) == pytest.approx(radius, abs=3 * scale)
    over = distance * radius + 1.6 * (radius - distance * radius)
    assert float((x0 + 1.6 * push - centre).norm()) == pytest.approx(over, abs=5 * scale)


def test_shields_outside_symmetric_exact_hit_and_dynamic() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    references = exact(rows).references
    push, entered = push_out(torch.tensor([[0.0, 5.0], [0.0, 0.0]]), references, 2.0)
    assert not push.any() and entered.tolist() == [0, 2]  # outside of all; and two pushes that cancel
    push, entered = push_out(rows[:1], references, 0.5)
    assert push.norm().item() == pytest.approx(0.5) and entered.item() == 1  # the reference itself
    batch = torch.tensor([[10.0, 0.0], [10.5, 0.0], [50.0, 0.0]])
    push, entered = push_out(batch, references, 1.0, dynamic=batch)
    assert entered.tolist() == [1, 1, 0]  # the own entry does not count
    torch.testing.assert_close(push, torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.0]]))


@settings(max_examples=30, deadline=None)
@given(**SIZES, radius=st.floats(0.1, 6))
def test_push_equals_its_naive_sum(count: int, dim: int, batch: int, seed: int, radius: float) -> None:
    rows, x0 = randn(count, dim, seed=seed) + 3, randn(batch, dim, seed=seed + 1) + 3
    push, _ = push_out(x0, exact(rows).references, radius)
    difference = x0.double()[:, None] - rows.double()[None]
    distance = difference.norm(dim=-1, keepdim=True)
    expected = ((radius / distance - 1).clamp(min=0) * difference).sum(dim=1)
    torch.testing.assert_close(push.double(), expected, rtol=1e-4, atol=1e-4)
