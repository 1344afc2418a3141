"""DUO's losses, rates, schedules and draws: closed forms and invariants of docs/methods/duo.md (1) to (10)."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy import stats
from tests.conftest import make_scheduler
from torch import Tensor

import saferedir as sr
from saferedir.training.duo.loss import NoiseLevel, duo_terms, mean_square, moment_rows, preference, rescaled
from saferedir.training.duo.noise import Schedule, sample_step, schedule_of
from saferedir.training.duo.train_config import TrainConfig

SHAPE = (4, 8, 8)
LN2 = math.log(2)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vp() -> Schedule:
    return schedule_of(make_scheduler("ddim"))


def flow(mode: str) -> Schedule:
    return schedule_of(FlowMatchEulerDiscreteScheduler(shift=3.0), sigma_mode=mode)


def terms_of(
    schedule: Schedule, trained: Tensor, base: Tensor, clean: Tensor, eps: Tensor, unsafe: NoiseLevel, safe: NoiseLevel
):
    moment = unsafe.cat(safe, schedule.prior(len(eps)))
    return duo_terms(schedule.kind, trained, base, clean, eps, moment, beta=500.0)


@pytest.mark.parametrize(
    ("beta", "margin", "loss"),
    [
        (250, 1e-3, 0.825939), (500, 1e-3, 0.974077), (500, -1e-3, 0.474077), (500, 2e-3, 1.313262),
        (1000, -1e-3, 0.313262), (1000, 2e-3, 2.126928), (500, 0.0, LN2), (1e4, 1.0, 1e4), (1e4, -1.0, 0.0),
    ],
)  # fmt: skip
def test_d2_preference_in_closed_form(beta: float, margin: float, loss: float) -> None:
    assert preference(torch.tensor([margin]), beta).item() == pytest.approx(loss, abs=2e-6)


@pytest.mark.parametrize(("margin", "slope"), [(0.0, 250.0), (1e-3, 311.230), (-1e-3, 188.770)])
def test_d3_its_slope(margin: float, slope: float) -> None:
    u = torch.tensor(margin, requires_grad=True)
    preference(u, 500.0).backward()
    assert u.grad is not None and u.grad.item() == pytest.approx(slope, abs=1e-3)


@pytest.mark.parametrize("schedule", [vp(), flow("paper"), flow("as_coded")], ids=["vp", "flow", "flow-as-coded"])
def test_d1_equal_networks_give_ln_2_and_no_prior(schedule: Schedule) -> None:
    draws = sample_step(schedule, SHAPE, 5, 2, 0, seed=0)
    output = rand(6, *SHAPE)
    terms = terms_of(schedule, output, output.clone(), rand(4, *SHAPE, seed=1), draws.eps, draws.unsafe, draws.safe)
    assert torch.equal(terms.margin, torch.zeros(2)) and torch.equal(terms.prior, torch.zeros(2))
    assert terms.total(5e6).item() == pytest.approx(LN2, abs=1e-7)


def test_d4_swapping_the_members_with_their_timesteps_negates_the_margin() -> None:
    schedule = vp()
    draws = sample_step(schedule, SHAPE, 5, 2, 0, seed=0, shared_t=False)
    trained, base, clean = rand(6, *SHAPE), rand(6, *SHAPE, seed=1), rand(4, *SHAPE, seed=2)

    def swap(rows: Tensor) -> Tensor:
        return torch.cat([rows[2:4], rows[:2], rows[4:]])

    first = terms_of(schedule, trained, base, clean, draws.eps, draws.unsafe, draws.safe)
    second = terms_of(schedule, swap(trained), swap(base), swap(clean), draws.eps, draws.safe, draws.unsafe)
    assert torch.allclose(first.margin, -second.margin, atol=1e-6) and first.margin.abs().min() > 1e-4
    assert torch.equal(first.prior, second.prior)


@pytest.mark.parametrize("shared", [True, False])
def test_d5_identical_members_teach_nothing_only_at_a_shared_timestep(shared: bool) -> None:
    schedule = vp()
    draws = sample_step(schedule, SHAPE, 5, 2, 3, seed=0, shared_t=shared)
    one = rand(2, *SHAPE)
    clean = torch.cat([one, one])
    noised = [moment.noised(one, draws.eps) for moment in (draws.unsafe, draws.safe)]
    rows, gain = torch.cat([*noised, draws.eps]), torch.tensor(0.9, requires_grad=True)
    terms = terms_of(schedule, gain * rows, rows, clean, draws.eps, draws.unsafe, draws.safe)
    terms.dpo.mean().backward()
    assert gain.grad is not None
    assert (terms.margin.abs().max().item() == 0) == shared and (gain.grad.item() == 0) == shared


def test_d7_tiling_the_pictures_leaves_the_margin_alone() -> None:
    schedule = vp()
    draws = sample_step(schedule, SHAPE, 5, 2, 0, seed=0)
    parts = [rand(6, *SHAPE), rand(6, *SHAPE, seed=1), rand(4, *SHAPE, seed=2), draws.eps]
    once = terms_of(schedule, *parts, draws.unsafe, draws.safe)  # type: ignore[call-arg]
    tiled = terms_of(schedule, *[part.repeat(1, 1, 2, 3) for part in parts], draws.unsafe, draws.safe)  # type: ignore[call-arg]
    assert torch.allclose(once.margin, tiled.margin, atol=1e-6)


@pytest.mark.parametrize(
    ("beta", "rate", "weight"),
    [(100, 3e-4, 1e6), (250, 1.2e-4, 2.5e6), (500, 6e-5, 5e6), (1000, 3e-5, 1e7), (2000, 1.5e-5, 2e7)],
)
def test_d8_rescaling(beta: float, rate: float, weight: float) -> None:
    found = rescaled("reference", beta, 3e-4, 1e6)
    assert found.learning_rate == pytest.approx(rate, rel=1e-12) and found.prior_weight == pytest.approx(
        weight, rel=1e-12
    )
    assert rescaled("none", beta, 3e-4, 1e6) == (3e-4, 1e6)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan, math.inf])
def test_d8_a_senseless_beta_is_one_sentence(beta: float) -> None:
    with pytest.raises(sr.GuardConfigError, match=r"beta is .* expected a finite number > 0"):
        TrainConfig(beta=beta)


def test_d10_timesteps_are_uniform_and_the_prior_is_at_the_end() -> None:
    schedule = vp()
    t = schedule.sample(100_000, torch.Generator().manual_seed(0)).t
    assert t.min() >= 0 and t.max() == 749
    assert stats.chisquare(torch.bincount(t, minlength=750).numpy()).pvalue > 1e-3
    assert schedule.prior(3).t.tolist() == [999] * 3
    draws = sample_step(schedule, (1, 1, 1), 5, 20_000, 0, seed=0, shared_t=False)
    assert torch.corrcoef(torch.stack([draws.unsafe.t, draws.safe.t]).float())[0, 1].abs() < 0.02
    shared = sample_step(schedule, (1, 1, 1), 5, 10, 0, seed=0)
    assert torch.equal(shared.unsafe.t, shared.safe.t)


def test_d11_the_schedule_of_stable_diffusion() -> None:
    alpha = vp().at_timesteps(torch.tensor([749, 999])).alpha.double()
    assert alpha[0] ** 2 == pytest.approx(0.0566235, abs=1e-6) and alpha[1] ** 2 == pytest.approx(0.0046601, abs=1e-6)


def test_d12_flow_as_coded_and_as_the_paper_means_it() -> None:
    coded, paper = flow("as_coded"), flow("paper")
    assert [coded.table[i].item() for i in (1, 749, 999)] == pytest.approx([0.9996664, 0.5013316, 0.0029940], abs=1e-6)
    assert coded.prior(1).sigma.item() ** 2 * 5e6 == pytest.approx(44.8, abs=0.1)
    assert paper.prior(1).sigma.item() == 1
    generator = torch.Generator().manual_seed(0)
    drawn = [schedule.sample(20_000, generator).sigma for schedule in (coded, paper)]
    assert 0.5013 < drawn[0].min() and drawn[0].max() < 0.9998
    assert 0.001 <= drawn[1].min() and drawn[1].max() <= 0.75 and drawn[1].mean() == pytest.approx(0.3755, abs=0.01)


def test_d12_errors_of_flow_models_are_those_of_x0() -> None:
    schedule = flow("paper")
    draws = sample_step(schedule, SHAPE, 5, 2, 0, seed=0)
    clean, trained = rand(4, *SHAPE), rand(6, *SHAPE, seed=1)
    velocity = torch.cat([draws.eps, draws.eps]) - clean
    exact = torch.cat([velocity, rand(2, *SHAPE, seed=3)])
    terms = terms_of(schedule, trained, exact, clean, draws.eps, draws.unsafe, draws.safe)
    wanted = draws.unsafe.sigma**2 * mean_square(trained[:2] - velocity[:2])
    assert torch.allclose(terms.unsafe, wanted, rtol=1e-5)


@pytest.mark.parametrize("schedule", [vp(), flow("paper")], ids=["vp", "flow"])
def test_d13_a_batch_is_the_mean_of_its_pairs(schedule: Schedule) -> None:
    draws = sample_step(schedule, SHAPE, 5, 3, 0, seed=0)
    trained, base, clean = rand(9, *SHAPE), rand(9, *SHAPE, seed=1), rand(6, *SHAPE, seed=2)
    whole = terms_of(schedule, trained, base, clean, draws.eps, draws.unsafe, draws.safe).total(10.0)
    single = [
        terms_of(
            schedule, trained[i::3], base[i::3], clean[i::3], draws.eps[i : i + 1],
            moment_rows(draws.unsafe, i, i + 1), moment_rows(draws.safe, i, i + 1),
        ).total(10.0)
        for i in range(3)
    ]  # fmt: skip
    assert whole.item() == pytest.approx(sum(single).item() / 3, rel=1e-5)


def test_v_models_are_compared_with_the_velocity() -> None:
    schedule = schedule_of(make_scheduler("ddim", prediction_type="v_prediction"))
    draws = sample_step(schedule, SHAPE, 5, 1, 0, seed=0)
    clean = rand(2, *SHAPE)
    alpha, sigma = draws.unsafe.cat(draws.safe).like(clean)
    exact = torch.cat([alpha * torch.cat([draws.eps, draws.eps]) - sigma * clean, rand(1, *SHAPE)])
    terms = terms_of(schedule, exact, rand(3, *SHAPE, seed=4), clean, draws.eps, draws.unsafe, draws.safe)
    assert terms.safe.item() < 0 and terms.unsafe.item() < 0


def test_d18_processes_draw_differently_unless_told_to_share() -> None:
    own = [sample_step(vp(), SHAPE, 50, 4, 7, seed=0, rank=rank) for rank in (0, 1)]
    shared = [sample_step(vp(), SHAPE, 50, 4, 7, seed=0, rank=rank, shared_noise=True) for rank in (0, 1)]
    assert not torch.equal(own[0].eps, own[1].eps) and not torch.equal(own[0].eps[0], own[0].eps[1])
    assert torch.equal(shared[0].eps, shared[1].eps) and torch.equal(shared[0].eps[0], shared[0].eps[1])
    assert torch.equal(shared[0].unsafe.t, shared[1].unsafe.t) and not torch.equal(shared[0].pairs, shared[1].pairs)
    assert not torch.equal(own[0].eps, sample_step(vp(), SHAPE, 50, 4, 8, seed=0).eps)


def test_the_two_variants() -> None:
    paper, coded = (TrainConfig.of_variant(name) for name in ("as-paper", "as-coded"))
    assert (paper.shared_t, paper.posterior, paper.rank_shared_noise) == (True, "mean", False)
    assert (coded.shared_t, coded.posterior, coded.rank_shared_noise) == (False, "sample", True)
    assert paper.rates == pytest.approx((6e-5, 5e6)) == coded.rates
    assert TrainConfig.of_variant("as-coded", is_flow=True).rates.learning_rate == pytest.approx(6e-6)
    with pytest.raises(sr.GuardConfigError, match="no DUO variant 'both'"):
        TrainConfig.of_variant("both")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"t_max": 5, "t_min": 6},
        {"sigma_mode": "x"},
        {"posterior": "x"},
        {"conditioning": "x"},
        {"rescale": "x"},
    ],
)
def test_bad_settings_are_named(change: dict[str, object]) -> None:
    with pytest.raises(sr.GuardConfigError, match=rf"TrainConfig\.{next(iter(change))} is .*expected"):
        TrainConfig(**change)
