"""Safe Denoiser against closed forms on a Gaussian mixture, its gates and limits, the released loop, and through pipelines."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import LATENT_SHAPE, generate, make_pipeline
from tests.guards.negation.oracle import circle, frame, make_run, make_step, randn, sd1_schedule
from torch import Tensor

import saferedir as sr
from saferedir.errors import GuardConfigError, GuardError, GuardNotFoundError
from saferedir.guards.dual_latent import DualLatentR2, DualLatentR2Config
from saferedir.guards.negation import NegationSet, attend, gaussian_xt
from saferedir.guards.negation.index import CandidateIndex
from saferedir.guards.negation.released import channel_normalised, released_estimate, released_flow_step
from saferedir.guards.safe_denoiser import SafeDenoiser, SafeDenoiserConfig, correction, log_odds
from saferedir.pipelines.schedules import from_x0, to_x0

SHAPE = (2, 2, 2)
EVERYWHERE = {"window": (0.0, 1.0), "gate": "always", "trust": None}


def make_set(count: int = 6, shape: tuple[int, ...] = SHAPE, benign: int = 0, seed: int = 0) -> NegationSet:
    safe = randn(benign, *shape, seed=seed + 9) - 1.0 if benign else None
    return NegationSet.from_latents(randn(count, *shape, seed=seed) + 1.0, safe, dtype=torch.float32)


def make_guard(negation: NegationSet | None = None, **settings: Any) -> SafeDenoiser:
    return SafeDenoiser.from_set(negation or make_set(), concept="star", **{"backbone": None, **settings})


def denoise(
    guard: SafeDenoiser, x_t: Tensor, x0: Tensor, t: int = 801, retry_level: tuple[int, ...] = (), **step: Any
) -> Tensor:
    run = make_run(len(x_t), retry_level=retry_level)
    return guard.on_denoised(make_step(x_t, x0, *frame(t), guard.start(run), run, **step), x0)


# ---------------------------------------------------------------- 1-4: the identity, on a mixture


@pytest.mark.parametrize("dim", [2, 16, 64])
@pytest.mark.parametrize("t", [981, 601, 201])
def test_identity_holds_in_float64(dim: int, t: int) -> None:
    base = circle()
    means = torch.cat([base.means, torch.zeros(8, dim - 2, dtype=torch.float64)], dim=1)
    mixture = type(base)(means, base.weights, base.s, base.is_unsafe)
    generator, (alpha, sigma) = torch.Generator().manual_seed(dim), frame(t)
    x0 = mixture.sample(400, generator)
    x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    odds = mixture.log_odds(x, alpha, sigma).exp()
    kept = odds < 1e6
    data, unsafe, safe = (
        mixture.denoised(x, alpha, sigma, part)[kept] for part in (None, mixture.is_unsafe, ~mixture.is_unsafe)
    )
    gain = odds[kept, None]
    error = (data + correction(data, data, unsafe, gain, None)[0] - safe).abs()
    assert bool((error <= 1e-9 * (1 + gain)).all())


SLOPES = {  # dm/dx0, written down by hand, alpha and sigma in the sampler's own frame
    "epsilon": lambda a, s: -a / s,
    "v_prediction": lambda a, s: -((a**2 + s**2) ** 0.5) / s,
    "sample": lambda a, s: 1.0,
    "flow": lambda a, s: -1.0 / s,
}


TABLE = [*((kind, space) for kind in list(SLOPES)[:3] for space in ("vp", "k")), ("flow", "flow")]


@pytest.mark.parametrize(("kind", "space"), TABLE)
def test_prediction_table_round_trips_and_has_the_delta_form(kind: str, space: str) -> None:
    a, s = {"vp": frame(801), "k": (1.0, 7.3), "flow": (0.3, 0.7)}[space]
    alpha, sigma = torch.tensor(a), torch.tensor(s)
    x, m, delta = randn(3, 50), randn(3, 50, seed=1), randn(3, 50, seed=2)
    x0 = to_x0(kind, m, x, alpha, sigma)
    torch.testing.assert_close(from_x0(kind, x0, x, alpha, sigma), m, rtol=1e-5, atol=2e-6)
    full = from_x0(kind, x0 + delta, x, alpha, sigma)
    torch.testing.assert_close(full, m + SLOPES[kind](a, s) * delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cap", "lowest", "share"),
    [(None, 0, 0.0), (10.0, 0, 0.007), (1.0, 0, 0.068), (None, 780, 0.186), (None, 400, 0.039), (0.0, 0, 0.252)],
)
def test_sampling_the_mixture_reaches_the_measured_shares(cap: float | None, lowest: int, share: float) -> None:
    mixture, schedule = circle(), sd1_schedule()
    times = list(range(981, 0, -20))
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for here, t in enumerate(times):
        alpha, sigma = frame(t)
        x0 = mixture.denoised(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        if t >= lowest and cap != 0.0:
            odds = mixture.log_odds(x, alpha, sigma).clamp(max=math.log(cap or 1e6)).exp()
            unsafe = mixture.denoised(x, alpha, sigma, mixture.is_unsafe)
            x0 = x0 + correction(x0, x0, unsafe, odds[:, None], None)[0]
            eps = (x - alpha * x0) / sigma
        abar = schedule[times[here + 1]] if here + 1 < len(times) else schedule[0]
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    found = mixture.is_unsafe[mixture.component(x)].double().mean().item()
    assert found == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("t", [981, 781, 401, 201])
def test_ratio_gate_measures_the_posterior_odds(t: int) -> None:
    mixture, generator, (alpha, sigma) = circle(), torch.Generator().manual_seed(1), frame(t)
    unsafe, safe = (mixture.sample(16384, generator, part).float() for part in (mixture.is_unsafe, ~mixture.is_unsafe))
    negation = NegationSet.from_latents(unsafe, safe, dtype=torch.float32)
    x = alpha * mixture.sample(1000, generator)
    x = x + sigma * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    query = gaussian_xt(x.float(), negation.references.centre, alpha, sigma)
    assert negation.benign is not None
    both = [attend(query, part).log_sum for part in (negation.references, negation.benign)]
    found = log_odds(both[0], 16384, both[1], 16384, prior=0.25)
    truth = mixture.log_odds(x, alpha, sigma)
    near = truth.abs() < 4
    assert (found - truth)[near].square().mean().sqrt() <= 0.1


# ---------------------------------------------------------------- gates, limits, settings


def test_idle_settings_return_the_very_object() -> None:
    x0 = randn(2, *SHAPE)
    for settings in ({"eta": 0.0}, {"window": (0.0, 0.5), "outside_window": "ignore"}):
        assert denoise(make_guard(gate="always", **settings), randn(2, *SHAPE, seed=1), x0) is x0


def test_closed_gates_leave_rows_to_the_bit() -> None:
    negation = make_set(30, (4, 4, 4))
    alpha, sigma = frame(801)
    near = alpha * negation.latents()[:1] + sigma * randn(1, 4, 4, 4, seed=6)
    x_t, x0 = torch.cat([near, near + 30.0]), randn(2, 4, 4, 4, seed=3)
    edited = denoise(make_guard(negation), x_t, x0)
    assert not torch.equal(edited[0], x0[0]) and torch.equal(edited[1], x0[1])


def test_ratio_gate_tells_unsafe_from_benign() -> None:
    negation = make_set(30, (4, 4, 4), benign=30)
    assert negation.benign is not None
    alpha, sigma = frame(801)
    benign = negation.benign.rows[:1].view(1, 4, 4, 4) + negation.references.centre.view(4, 4, 4)  # type: ignore[union-attr]
    x_t = torch.cat([alpha * negation.latents()[:1], alpha * benign]) + sigma * randn(2, 4, 4, 4, seed=5)
    x0 = randn(2, 4, 4, 4, seed=3)
    edited = denoise(make_guard(negation, beta_min=0.5), x_t, x0)
    assert not torch.equal(edited[0], x0[0]) and torch.equal(edited[1], x0[1])


@pytest.mark.parametrize("t", [981, 781, 401])
def test_both_forms_are_the_safe_mean_on_the_mixture(t: int) -> None:
    mixture, generator, (alpha, sigma) = circle(), torch.Generator().manual_seed(3), frame(t)
    unsafe, safe = (mixture.sample(20_000, generator, part).float() for part in (mixture.is_unsafe, ~mixture.is_unsafe))
    negation = NegationSet.from_latents(unsafe.view(-1, 2, 1, 1), safe.view(-1, 2, 1, 1), dtype=torch.float32)
    x = alpha * mixture.sample(500, generator)
    x = x + sigma * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    odds = mixture.log_odds(x, alpha, sigma)
    x, odds = x[odds.abs() < 3], odds[odds.abs() < 3]
    truth = mixture.denoised(x, alpha, sigma, ~mixture.is_unsafe)
    x0 = mixture.denoised(x, alpha, sigma).float().view(-1, 2, 1, 1)
    prior = float(mixture.weights[mixture.is_unsafe].sum() / mixture.weights.sum())
    found = {}
    for form in ("posterior", "odds"):
        cap = {"beta_max": None} if form == "odds" else {}
        usual = {"window": (0.0, 1.0), "trust": None, "kappa": 1.0, "beta_min": 0.0}
        guard = make_guard(negation, form=form, prior=prior, **usual, **cap)
        edited = denoise(guard, x.float().view(-1, 2, 1, 1), x0, t=t).flatten(1)
        found[form] = (edited - truth).square().sum(1).mean().sqrt().item()
    before = (x0.flatten(1) - truth).square().sum(1).mean().sqrt().item()
    assert found["posterior"] <= 0.1 * before and found["odds"] <= 0.3 * before


def test_the_posterior_form_never_leaves_the_references_span() -> None:
    """However sure the gate is, the shift is no longer than the distance of two means, where the odds overflow."""
    negation, x0 = make_set(30, benign=30), randn(3, *SHAPE, seed=2)
    x_t = torch.cat([negation.latents()[:1], 50 * negation.latents()[:1], 1e4 * negation.latents()[:1]])
    edited = denoise(make_guard(negation, kappa=1.0), x_t, x0, t=201)
    latents = torch.cat([negation.latents().flatten(1), randn(30, *SHAPE, seed=9).flatten(1) - 1.0])
    assert bool((edited - x0).flatten(1).norm(dim=1).le(torch.cdist(latents, latents).max() + 1e-4).all())
    assert bool(torch.isfinite(edited).all())


def test_which_defaults_a_set_brings() -> None:
    """The posterior form comes with benign references alone; settings of the odds, and folders of before, keep the odds."""

    def found(negation: NegationSet, **settings: Any) -> tuple[Any, ...]:
        config = make_guard(negation, **settings).config
        return config.form, config.window, config.trust

    early, whole = ("odds", (0.82, 1.0), 0.08), ("posterior", (0.0, 1.0), None)
    both = make_set(benign=6)
    assert found(both) == whole == found(both, form="posterior") and found(make_set()) == early
    assert found(both, eta=2.0, window=(0.4, 1.0)) == ("posterior", (0.4, 1.0), None)
    for settings in (
        {"form": "odds"},
        {"renoise": "stale"},
        {"beta_max": 10.0},
        {"base": "uncond"},
        {"mode": "faithful"},
    ):
        assert found(both, **settings) == early
    written = SafeDenoiserConfig.from_dict({"concept": "star", "trust": 0.08, "window": [0.82, 1.0]})
    assert (written.form, written.window, written.trust) == early
    faithful = SafeDenoiserConfig.from_dict({"concept": "star", "mode": "faithful", "trust": 0.08})
    assert faithful.window == (0.82, 1.0)
    assert SafeDenoiserConfig.paper_literal("star", eta=1.0, beta_min=0.1).window == (0.82, 1.0)


@pytest.mark.parametrize("settings", [{"gate": "always"}, {"gate": "quantile"}, {"base": "uncond"}, {"beta_max": 3.0}])
def test_the_posterior_form_refuses_what_it_would_not_read(settings: dict[str, Any]) -> None:
    with pytest.raises(GuardConfigError, match=next(iter(settings))):
        make_guard(make_set(benign=4), form="posterior", **settings)
    with pytest.raises(GuardError, match="form='posterior' compares with benign references"):
        make_guard(make_set(), form="posterior")


@pytest.mark.parametrize("trust", [0.01, 0.08, 0.5])
def test_trust_region_bounds_every_row(trust: float) -> None:
    x_t, x0 = randn(4, *SHAPE, seed=1), randn(4, *SHAPE) * torch.tensor([0.1, 1, 10, 100]).view(4, 1, 1, 1)
    edited = denoise(make_guard(gate="always", trust=trust, eta=50.0), x_t, x0)
    moved, length = (edited - x0).flatten(1).norm(dim=1), x0.flatten(1).norm(dim=1)
    assert bool((moved <= trust * length * 1.0001).all()) and bool((moved > 0.5 * trust * length).all())


@pytest.mark.parametrize(
    "change",
    [
        {"eta": 0.5}, {"kappa": 0.01}, {"trust": 0.01}, {"base": "uncond"}, {"kernel": "gaussian_x0", "width": 2.0},
        {"kernel": "gaussian_x0", "width": 0.7}, {"gate": "ratio"}, {"gate": "ratio", "prior": 0.2},
        {"gate": "ratio", "beta_min": 1e9}, {"gate": "literal", "beta_min": 0.0}, {"gate": "ratio", "beta_max": 0.3},
        {"gate": "ratio", "beta_max": 1.0, "kappa": 0.01, "form": "posterior"},
        {"mode": "faithful"}, {"mode": "faithful", "scale": 0.1}, {"mode": "faithful", "width": 1.0},
        {"mode": "faithful", "threshold": 1e9}, {"mode": "faithful", "threshold": 6.0, "margin": 0.0},
        {"renoise": "stale"}, {"renoise": "stale", "seed": 5}, {"window": (0.0, 0.1), "outside_window": "ignore"},
    ],
    ids=str,
)  # fmt: skip
def test_each_configured_value_changes_the_output(change: dict[str, Any]) -> None:
    negation, x_t, x0 = make_set(benign=5), randn(2, *SHAPE, seed=1), randn(2, *SHAPE, seed=2)

    def answer(**settings: Any) -> Tensor:
        usual: dict[str, Any] = {**EVERYWHERE, "beta_max": 1e6}
        if settings.get("mode") == "faithful":
            usual = {"window": (0.0, 1.0)}
        guard = make_guard(negation, **{**usual, **settings})
        run = make_run(2)
        step = make_step(x_t, x0, *frame(401), guard.start(run), run, x0_uncond=randn(2, *SHAPE, seed=3))
        found = guard.on_denoised(step, x0)
        pending = step.state.pending
        return torch.cat([found, x0 * 0 if pending is None else pending])

    partner = {
        "gate": "ratio",
        "mode": "faithful",
        "renoise": "stale",
        "kernel": "gaussian_x0",
        "kappa": 0.01,
        "beta_max": 1.0,
    }
    last = list(change)[-1]
    before = {name: value for name, value in change.items() if name in partner and name != last}
    if "width" in change and "kernel" in change:
        before["width"] = 1.3
    assert not torch.equal(answer(**before), answer(**change))


def test_default_correction_equals_its_formula() -> None:
    negation, x_t, x0 = make_set(), randn(2, *SHAPE, seed=1), randn(2, *SHAPE, seed=2)
    edited = denoise(make_guard(negation, kappa=0.7, eta=0.4, **EVERYWHERE), x_t, x0)
    alpha, sigma = frame(801)
    rows = negation.latents().flatten(1).double()
    square = (x_t.flatten(1).double()[:, None] - alpha * rows).square().sum(-1)
    unsafe = (-0.7 * square / (2 * sigma**2)).softmax(dim=1) @ rows
    expected = x0.double() + 0.4 * (x0.double() - unsafe.view_as(x0))
    torch.testing.assert_close(edited.double(), expected, rtol=1e-5, atol=1e-5)


def test_uncond_base_pushes_from_the_unconditional_estimate() -> None:
    x_t, x0, uncond = randn(2, *SHAPE, seed=1), randn(2, *SHAPE, seed=2), randn(2, *SHAPE, seed=3)
    guided, other = (make_guard(base=base, **EVERYWHERE) for base in ("guided", "uncond"))
    moved = denoise(other, x_t, x0, x0_uncond=uncond) - denoise(guided, x_t, x0)
    torch.testing.assert_close(moved, uncond - x0, rtol=1e-4, atol=1e-5)
    with pytest.raises(GuardError, match="classifier-free guidance"):
        denoise(other, x_t, x0)


def test_paper_literal_scales_with_the_mean_kernel_value() -> None:
    config = SafeDenoiserConfig.paper_literal("star", eta=2.0, beta_min=0.0, window=(0.0, 1.0))
    negation, x0 = make_set(), randn(2, *SHAPE, seed=2)
    x_t = 0.2 * randn(2, *SHAPE, seed=1)
    edited = denoise(SafeDenoiser(config, negation), x_t, x0, x0_uncond=x0)
    alpha, sigma = frame(801)
    rows = negation.latents().flatten(1)
    kernel = (-(x_t.flatten(1)[:, None] - alpha * rows).square().sum(-1) / (2 * sigma**2)).exp()
    beta, unsafe = kernel.mean(dim=1, keepdim=True), kernel @ rows / kernel.sum(dim=1, keepdim=True)
    expected = x0.flatten(1) + 2.0 * beta * (x0.flatten(1) - unsafe)
    torch.testing.assert_close(edited.flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_a_retry_opens_the_gate_and_pushes_harder() -> None:
    negation, x0 = make_set(30), randn(3, *SHAPE, seed=2)
    x_t = randn(3, *SHAPE, seed=1) + 20.0
    edited = denoise(make_guard(negation, trust=0.08), x_t, x0, retry_level=(0, 1, 2))
    moved = (edited - x0).flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1)
    assert moved[0] == 0 and moved[1].item() == pytest.approx(0.16, rel=1e-4)
    assert moved[2].item() == pytest.approx(0.24, rel=1e-4)


def test_gradients_flow_to_the_latents_and_the_estimate() -> None:
    guard = make_guard(gate="always", window=(0.0, 1.0))
    x_t, x0 = randn(2, *SHAPE, seed=1).requires_grad_(), randn(2, *SHAPE, seed=2).requires_grad_()
    grads = torch.autograd.grad(denoise(guard, x_t, x0).square().sum(), (x_t, x0))
    assert all(bool(torch.isfinite(grad).all()) and bool(grad.any()) for grad in grads)


# ---------------------------------------------------------------- the released loop


#: S and the first three numbers of x0', worked out once
GOLDEN = (2.6290367, 0.3868980, -0.5948669, 0.9490246)


def golden() -> tuple[NegationSet, Tensor]:
    """Three references in eight dimensions (2 channels of 2x2), each position of norm 1, and one x0."""
    angles = torch.tensor([[0.0, 30, 60, 90], [10, 20, 30, 40], [180, 190, 200, 210]]) * math.pi / 180
    rows = 3.0 * torch.stack([angles.cos(), angles.sin()], dim=1).view(3, 2, 2, 2)
    x0 = torch.tensor([0.5, -0.5, 1.0, 0.0, 0.25, 0.75, -1.0, 0.5]).view(1, 2, 2, 2)
    return NegationSet.from_latents(rows, dtype=torch.float32), x0


def test_released_estimate_has_the_values_worked_out_by_hand() -> None:
    """Here with scalars in float64: d_n = |x0 - r_n|, k_n = exp(-d_n / (2 * 3.15^2)), S = sum k + 1e-8."""
    negation, x0 = golden()
    normalised = negation.mapped(channel_normalised)
    assert torch.allclose(normalised.latents().norm(dim=1), torch.ones(3, 2, 2), atol=1e-6)
    edited, kernel_sum = released_estimate(x0.flatten(1), normalised, 0.33, 3.15)
    rows, flat = normalised.latents().flatten(1).double().numpy(), x0.flatten().double().numpy()
    distance = [math.sqrt(sum((a - b) ** 2 for a, b in zip(flat, row, strict=True))) for row in rows]
    kernel = [math.exp(-d / (2 * 3.15**2)) for d in distance]
    total = sum(kernel) + 1e-8
    expected = [x - 0.33 * sum(k * r for k, r in zip(kernel, column, strict=True)) / total
                for x, column in zip(flat, rows.T, strict=True)]  # fmt: skip
    np.testing.assert_allclose(edited[0], expected, rtol=1e-5, atol=1e-6)
    assert kernel_sum.item() == pytest.approx(total, rel=1e-6)
    np.testing.assert_allclose([kernel_sum.item(), *edited[0, :3].tolist()], GOLDEN, rtol=1e-5)
    # far away only the epsilon is left: E_u = 0 and S = 1e-8
    far, tiny = released_estimate(x0.flatten(1) + 1e5, normalised, 0.33, 3.15)
    assert tiny.item() == pytest.approx(1e-8) and torch.equal(far, x0.flatten(1) + 1e5)


def test_faithful_renoises_with_its_own_second_draw() -> None:
    negation, x0 = golden()
    guard = make_guard(negation, mode="faithful", window=(0.0, 1.0), threshold=0.0, margin=1.6, seed=3)
    x_t, run, (alpha, sigma) = randn(1, *SHAPE, seed=1), make_run(1), frame(801)
    state = guard.start(run)
    step = make_step(x_t, x0, alpha, sigma, state, run)
    assert guard.on_denoised(step, x0) is x0
    again = guard.start(run)
    again.sample_noise(step, 3)  # the variance noise of the scheduler call that yields x0
    fresh = again.sample_noise(step, 3)
    edited, _ = released_estimate(x0.flatten(1), negation.mapped(channel_normalised), 0.33, 3.15)
    torch.testing.assert_close(state.pending, alpha * edited.view_as(x0) + sigma * fresh - x_t)
    eps = (x_t - alpha * x0) / sigma
    p, q = 0.4, 0.9
    stepped = guard.on_step_end(step, p * x0 + q * eps)
    moved = alpha * edited.view_as(x0) + sigma * fresh
    torch.testing.assert_close(stepped, p * (moved - sigma * eps) / alpha + q * eps, rtol=1e-4, atol=1e-4)


def test_faithful_gate_closes_below_its_threshold() -> None:
    negation, x0 = golden()
    guard = make_guard(negation, mode="faithful", window=(0.0, 1.0), threshold=5.0, margin=1.6)
    run = make_run(1)
    step = make_step(randn(1, *SHAPE, seed=1), x0, *frame(801), guard.start(run), run)
    guard.on_denoised(step, x0)
    stepped = 0.4 * x0 + 0.9 * (step.x_t - step.alpha * x0) / step.sigma
    assert torch.equal(guard.on_step_end(step, stepped), stepped)
    automatic = make_guard(negation, mode="faithful")
    assert 1.0 < automatic.start(run).threshold < 3.0


def test_faithful_flow_takes_the_step_itself() -> None:
    negation, x0 = golden()
    guard = make_guard(negation, mode="faithful", window=(0.0, 1.0))
    run = make_run(1, prediction_type="flow", timesteps=(900.0, 400.0))
    x_t = randn(1, *SHAPE, seed=1)
    step = make_step(x_t, x0, 0.1, 0.9, guard.start(run), run)
    guard.on_denoised(step, x0)
    eps = (x_t - 0.1 * x0) / 0.9
    stepped = guard.on_step_end(step, 0.6 * x0 + 0.4 * eps)
    noise = guard.start(run).sample_noise(step, 0)
    measured = channel_normalised(x0)
    moved, _ = released_estimate(measured.flatten(1), negation.mapped(channel_normalised), 0.33, 3.15)
    edited = x0 + moved.view_as(x0) - measured
    torch.testing.assert_close(stepped, released_flow_step(step, edited, noise))
    expected = 0.6 * edited + 0.4 * (math.sqrt(0.4) * eps + math.sqrt(0.6) * noise)
    torch.testing.assert_close(stepped, expected)


# ---------------------------------------------------------------- through pipelines


def pipeline_set(seed: int = 0) -> NegationSet:
    return make_set(12, LATENT_SHAPE, seed=seed)


@pytest.mark.parametrize(
    "settings",
    [
        {"eta": 0.0},
        {"window": (0.0, 0.01), "outside_window": "ignore"},
        {"gate": "literal", "beta_min": 1e30, "window": (0.0, 1.0)},
    ],
    ids=str,
)
def test_idle_guards_leave_images_and_generators_to_the_bit(pipe: Any, settings: dict[str, Any]) -> None:
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    plain = generate(pipe, generator=generators[0], eta=1.0)
    with sr.attach(pipe, make_guard(pipeline_set(), **settings)):
        guarded = generate(pipe, generator=generators[1], eta=1.0)
    assert torch.equal(plain, guarded)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_multistep_history_holds_the_corrected_prediction() -> None:
    pipe = make_pipeline("dpm++")
    seen: list[Tensor] = []

    class Recorder(SafeDenoiser):
        def on_denoised(self, step: Any, x0: Tensor) -> Tensor:
            seen.append(super().on_denoised(step, x0))
            assert seen[-1] is not x0
            return seen[-1]

    with sr.attach(pipe, Recorder.from_set(pipeline_set(), concept="star", gate="always", window=(0.0, 1.0))):
        generate(pipe)
    history = pipe.scheduler.model_outputs  # DPM++ keeps x0
    assert len(seen) == 3 and len(history) == pipe.scheduler.config.solver_order
    for kept, corrected in zip(history, seen[-len(history) :], strict=True):
        torch.testing.assert_close(kept, corrected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_stale_renoising_equals_stepping_from_the_renoised_latents(scheduler: str) -> None:
    pipe = make_pipeline(scheduler)
    checked: list[float] = []

    class Checked(SafeDenoiser):
        def on_step_end(self, step: Any, latents: Tensor) -> Tensor:
            pending = step.state.pending
            found = super().on_step_end(step, latents)
            other = make_pipeline(scheduler).scheduler
            other.set_timesteps(step.num_steps)
            if scheduler == "euler":
                other._step_index, other.is_scale_input_called = step.index, True
            wanted = other.step(step.pred, other.timesteps[step.index], step.x_t + pending).prev_sample
            checked.append(float((found - wanted).abs().max() / wanted.abs().max()))
            return found

    with sr.attach(
        pipe, Checked.from_set(pipeline_set(), concept="star", gate="always", window=(0, 1), renoise="stale")
    ):
        generate(pipe)
    assert len(checked) == 3 and max(checked) < 1e-4


def test_renoise_only_control_changes_images_and_batches_equal_single_runs(pipe: Any) -> None:
    plain = generate(pipe, ["a star", "a moon"])
    guard = make_guard(pipeline_set(), eta=0.0, renoise="stale", gate="always", window=(0.0, 1.0))
    with sr.attach(pipe, guard):
        both = generate(pipe, ["a star", "a moon"])
        single = generate(pipe, "a moon", seeds=[1])
    assert not torch.allclose(both, plain, atol=1e-2)
    torch.testing.assert_close(both[1], single[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheduler", ["dpm++", "ddpm", "heun", "euler-ancestral"])
def test_renoising_refuses_samplers_it_is_not_exact_for(scheduler: str) -> None:
    pipe = make_pipeline(scheduler)
    with (
        sr.attach(pipe, make_guard(pipeline_set(), renoise="stale", gate="always", window=(0.0, 1.0))),
        pytest.raises(GuardError, match="first-order"),
    ):
        generate(pipe)


def test_decisions_and_saved_guards(pipe: Any, tmp_path: Any) -> None:
    guard = make_guard(pipeline_set(), gate="always", window=(0.0, 1.0))
    with sr.attach(pipe, guard) as attached:
        images = generate(pipe, ["a star", "a moon"])
    first = attached.decisions[0]
    assert first.fired and first.action == "edited" and first.steps_redirected == 3 and len(first.image_scores) == 3
    loaded = sr.Guard.from_pretrained(guard.save_pretrained(tmp_path / "guard"))
    with sr.attach(pipe, loaded):
        again = generate(pipe, ["a star", "a moon"])
    torch.testing.assert_close(again, images, rtol=1e-2, atol=1e-2)  # rows are kept as float16


# ---------------------------------------------------------------- runs outside of the window


def call_near_the_clean_end(guard: SafeDenoiser, levels: tuple[int, ...]) -> tuple[Any, Any]:
    """The calls of a run at these timesteps; (state, run)."""
    run, x0 = (
        make_run(2, timesteps=tuple(map(float, levels)), num_steps=len(levels), num_evaluations=len(levels)),
        randn(2, *SHAPE),
    )
    state = guard.start(run)
    for evaluation, t in enumerate(levels):
        step = make_step(randn(2, *SHAPE, seed=1), x0, *frame(t), state, run, evaluation=evaluation)
        assert guard.on_denoised(step, x0) is x0 or t > 780
    return state, run


def test_a_run_that_never_enters_the_window_gives_no_image() -> None:
    with pytest.raises(
        GuardError, match=r"no image is returned.*\(0\.6\d* to 0\.0\d*\) is in the window 0\.82 to 1;.*strength"
    ):
        call_near_the_clean_end(make_guard(gate="always", window=(0.82, 1.0)), (521, 301, 1))
    _, run = call_near_the_clean_end(make_guard(gate="always", window=(0.82, 1.0)), (801, 401, 1))
    assert run.num_evaluations == 3
    guard = make_guard(gate="always", window=(0.82, 1.0), outside_window="ignore")
    state, run = call_near_the_clean_end(guard, (521, 301, 1))
    for seen in guard.verdict(run, state):
        assert not seen.fired and "Left alone: none of this run's noise fractions" in seen.message
    state, run = call_near_the_clean_end(guard, (801, 301, 1))
    assert all("Left alone" not in seen.message for seen in guard.verdict(run, state))


def test_image_to_image_at_low_strength_fails_closed() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**make_pipeline("ddim").components)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"prompt": "a star", "image": torch.rand(1, 3, 32, 32), "num_inference_steps": 5,
                            "strength": 0.6, "output_type": "latent"}  # fmt: skip
    plain = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    with (
        sr.protect(pipe, make_guard(pipeline_set(), window=(0.82, 1.0))) as guarded,
        pytest.raises(GuardError, match="window 0"),
    ):
        guarded(**call)
    with sr.attach(pipe, make_guard(pipeline_set(), window=(0.82, 1.0), outside_window="ignore")) as attached:
        assert torch.equal(pipe(**call, generator=torch.Generator().manual_seed(0)).images, plain)
    assert "Left alone" in attached.decisions[0].message


# ---------------------------------------------------------------- guards that rewrite the step


def test_two_guards_that_rewrite_the_step_are_refused_at_once() -> None:
    pipe = make_pipeline("ddim")
    r2 = DualLatentR2(DualLatentR2Config(concept="a star"))
    faithful, stale, plain = (
        make_guard(pipeline_set(), **settings) for settings in ({"mode": "faithful"}, {"renoise": "stale"}, {})
    )
    for pair in ([faithful, stale], [r2, stale], [stale, r2]):
        with pytest.raises(GuardError, match="both rewrite the sampler's step"):
            sr.attach(pipe, pair)
    with sr.attach(pipe, stale), pytest.raises(GuardError, match="both rewrite"):
        sr.attach(pipe, faithful)
    sr.attach(pipe, [r2, plain]).detach()
    sr.attach(pipe, [plain, stale]).detach()


# ---------------------------------------------------------------- files beside the guard's folder


def test_a_streamed_set_moves_with_its_folder(tmp_path: Any) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = pipeline_set().save(home / "set.safetensors")
    guard = SafeDenoiser.from_set(NegationSet.open(path, stream=True), concept="star")
    folder = guard.save_pretrained(home / "guards" / "star")
    assert json.loads((folder / "guard_config.json").read_text())["bank"] == "../../set.safetensors"
    home.rename(tmp_path / "moved")
    found: Any = sr.Guard.from_pretrained(tmp_path / "moved" / "guards" / "star")
    assert found.config.bank == str(tmp_path / "moved" / "set.safetensors") and len(found.negation) == 12
    with pytest.raises(GuardConfigError, match="not uploaded"):
        found.push_to_hub("me/star")


# ---------------------------------------------------------------- bad input


def test_wrong_shape_other_vae_missing_set_and_settings(tmp_path: Any) -> None:
    with pytest.raises(GuardError, match=r"holds latents \(2, 2, 2\).*this run's are \(4, 8, 8\)"):
        denoise(make_guard(), randn(1, 4, 8, 8), randn(1, 4, 8, 8))
    with pytest.raises(GuardError, match="no negation set"):
        SafeDenoiser(SafeDenoiserConfig(concept="star")).start(make_run(1))
    with pytest.raises(GuardError, match="benign references"):
        make_guard(gate="ratio")
    with pytest.raises(GuardConfigError, match="there is no index"):
        make_guard(index=str(tmp_path / "none"))
    pipe = make_pipeline()
    with pytest.raises(GuardError, match="no negation set"):
        sr.attach(pipe, SafeDenoiser(SafeDenoiserConfig(concept="star")))
    bad: list[dict[str, Any]] = [{"eta": -1.0}, {"gate": "x"}, {"renoise": "recompute"}, {"window": (0.5, 2.0)}, {"prior": 1.0},
                                 {"kernel": "gaussian_x0"}, {"kappa": 1.0, "gate": "quantile"}, {"window": (0.9, 0.1)},
                                 {"window": (1.5, -3)}, {"window": (1, 0)}, {"window": 5}, {"window": (0.0, math.nan)},
                                 {"eta": "1"}, {"eta": None}, {"prior": "a"}, {"seed": "a"}, {"candidates": 1.5}, {"bank": 3},
                                 {"outside_window": "maybe"}, {"mode": "faithful", "threshold": math.nan}, {"beta_min": None},
                                 {"mode": "faithful", "margin": math.nan}, {"mode": "faithful", "eta": 2.0},
                                 {"mode": "faithful", "gate": "always"}, {"scale": 0.1}, {"threshold": 1.0}, {"margin": 0.0},
                                 {"mode": "faithful", "renoise": "stale"}]  # fmt: skip
    for settings in bad:
        with pytest.raises(GuardConfigError, match="expected"):
            SafeDenoiserConfig(concept="star", **settings)


def test_streamed_set_travels_by_its_path(pipe: Any, tmp_path: Any) -> None:
    path = pipeline_set().save(tmp_path / "set.safetensors")
    whole, streamed = NegationSet.open(path), NegationSet.open(path, stream=True)
    settings = {"concept": "star", "gate": "always", "window": (0.0, 1.0)}
    with sr.attach(pipe, SafeDenoiser.from_set(whole, **settings)):
        expected = generate(pipe)
    folder = SafeDenoiser.from_set(streamed, **settings).save_pretrained(tmp_path / "guard")
    assert not (folder / "model.safetensors").exists()
    with sr.attach(pipe, sr.Guard.from_pretrained(folder)):
        assert torch.equal(generate(pipe), expected)
    path.unlink()
    with pytest.raises(GuardNotFoundError, match=r"needs the file .*set\.safetensors.*move or copy it along"):
        sr.Guard.from_pretrained(folder)


def test_pure_noise_has_no_estimate_to_correct() -> None:
    guard, x0, run = make_guard(gate="always"), randn(1, *SHAPE), make_run(1)
    assert guard.on_denoised(make_step(x0, x0, 0.0, 1.0, guard.start(run), run), x0) is x0
    flow = make_run(1, prediction_type="flow")
    assert not torch.equal(guard.on_denoised(make_step(x0, x0, 0.0, 1.0, guard.start(flow), flow), x0), x0)


def test_what_is_made_from_the_set_is_made_once() -> None:
    guard = make_guard(mode="faithful")
    assert guard.start(make_run(1)).negation is guard.start(make_run(2)).negation


def test_index_serves_the_guard_and_is_refused_without_faiss(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    negation = make_set(200, (4, 4, 4))
    x_t, x0 = 0.4 * negation.latents()[:2] + 0.2 * randn(2, 4, 4, 4), randn(2, 4, 4, 4, seed=1)
    settings: dict[str, Any] = {**EVERYWHERE, "index": str(tmp_path / "set.faiss"), "candidates": 200}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faiss", None)
        (tmp_path / "set.faiss").write_bytes(b"")
        with pytest.raises(GuardError, match="pip install"):
            denoise(make_guard(negation, **settings), x_t, x0)
    pytest.importorskip("faiss")
    CandidateIndex.build(negation.references, lists=1).save(tmp_path / "set.faiss")
    near = denoise(make_guard(negation, **settings), x_t, x0, t=401)
    torch.testing.assert_close(near, denoise(make_guard(negation, **EVERYWHERE), x_t, x0, t=401), rtol=1e-3, atol=1e-3)
