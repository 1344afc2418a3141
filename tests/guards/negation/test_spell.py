"""SPELL as a guard: bit-identical outside of all shields, onto the sphere inside, radius from the set, faithful and dynamic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import LATENT_SHAPE, generate, make_pipeline
from tests.guards.negation.oracle import frame, make_run, make_step, randn
from torch import Tensor

import saferedir as sr
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.negation import NegationSet
from saferedir.guards.negation.released import channel_normalised
from saferedir.guards.spell import SPELL, SPELLConfig

SHAPE = (2, 3, 3)


def make_set(count: int = 5, shape: tuple[int, ...] = SHAPE) -> NegationSet:
    return NegationSet.from_latents(randn(count, *shape), dtype=torch.float32)


def pushed(guard: SPELL, x0: Tensor, retry_level: tuple[int, ...] = ()) -> Tensor:
    run = make_run(len(x0), retry_level=retry_level)
    step = make_step(x0, x0, *frame(401), guard.start(run), run)
    return guard.on_denoised(step, x0)


def test_rows_outside_of_all_shields_keep_every_bit() -> None:
    negation = make_set()
    x0 = torch.cat([negation.latents()[:1] + 0.1, negation.latents()[:1] + 100.0])
    edited = pushed(SPELL.from_set(negation, concept="star", radius=3.0), x0)
    assert not torch.equal(edited[0], x0[0]) and torch.equal(edited[1], x0[1])


@pytest.mark.parametrize(("strength", "lands"), [(1.0, 3.0), (1.6, 3.0 + 0.6 * 2.5), (0.5, 1.75)])
def test_one_shield_lands_where_lambda_says(strength: float, lands: float) -> None:
    negation = make_set(1)
    direction = randn(1, *SHAPE, seed=4)
    x0 = negation.latents() + 0.5 * direction / direction.norm()
    edited = pushed(SPELL.from_set(negation, concept="star", radius=3.0, strength=strength), x0)
    assert float((edited - negation.latents()).norm()) == pytest.approx(lands, abs=1e-6 * 10)
    twice = pushed(SPELL.from_set(negation, concept="star", radius=3.0, strength=strength), x0, retry_level=(1,))
    assert float((twice - x0).norm()) == pytest.approx(2 * float((edited - x0).norm()), rel=1e-4)


def test_radius_auto_is_the_quantile_of_nearest_neighbours() -> None:
    negation = make_set(40)
    distances = torch.cdist(*[negation.latents().flatten(1)] * 2) + torch.eye(40) * 1e9
    expected = torch.quantile(distances.amin(dim=1), 0.05).item()
    guard = SPELL.from_set(negation, concept="star")
    assert guard.radius(guard.start(make_run(1))) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(GuardError, match="set SPELL's radius"):
        SPELL.from_set(make_set(1), concept="star")


def test_faithful_uses_normalised_references_and_the_published_radius() -> None:
    guard = SPELL.from_set(make_set(), concept="star", mode="faithful")
    state = guard.start(make_run(1))
    torch.testing.assert_close(state.negation.latents(), channel_normalised(make_set().latents()), rtol=1e-5, atol=1e-6)
    assert guard.radius(state) == 38.746


def test_dynamic_shields_images_of_a_batch_from_each_other() -> None:
    x0 = torch.cat([randn(1, *SHAPE, seed=7) + 50, randn(1, *SHAPE, seed=7) + 50.2])
    settings: dict[str, Any] = {"concept": "star", "radius": 4.0, "strength": 1.0}
    assert torch.equal(pushed(SPELL.from_set(make_set(), **settings), x0), x0)
    edited = pushed(SPELL.from_set(make_set(), dynamic=True, **settings), x0)
    before, after = float((x0[0] - x0[1]).norm()), float((edited[0] - edited[1]).norm())
    assert after == pytest.approx(before + 2 * (4.0 - before), rel=1e-4)
    single = pushed(SPELL.from_set(make_set(), dynamic=True, **settings), x0[:1])
    assert torch.equal(single, x0[:1])


def test_gradients_flow_inside_a_shield() -> None:
    x0 = (make_set().latents()[:2] + 0.1).requires_grad_()
    (grad,) = torch.autograd.grad(pushed(SPELL.from_set(make_set(), concept="star", radius=9.0), x0).square().sum(), x0)
    assert bool(torch.isfinite(grad).all()) and bool(grad.any())


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++", "euler"])
def test_through_pipelines(scheduler: str, tmp_path: Any) -> None:
    pipe = make_pipeline(scheduler)
    plain = generate(pipe, ["a star", "a moon"])
    far = NegationSet.from_latents(randn(4, *LATENT_SHAPE) + 500.0)
    with sr.attach(pipe, SPELL.from_set(far, concept="star", radius=5.0)) as attached:
        assert torch.equal(generate(pipe, ["a star", "a moon"]), plain)
    assert [seen.fired for seen in attached.decisions] == [False, False]
    near = NegationSet.from_latents(plain[:1], dtype=torch.float32)
    guard = SPELL.from_set(near, concept="star", radius=float(0.5 * (plain[0] - plain[1]).norm()))
    with sr.attach(pipe, guard) as attached:
        guarded = generate(pipe, ["a star", "a moon"])
    assert float((guarded[0] - plain[0]).norm()) > 0.5 * guard.config.radius  # type: ignore[operator]
    assert attached.decisions[0].fired and attached.decisions[0].action == "edited"
    loaded = sr.Guard.from_pretrained(guard.save_pretrained(tmp_path / "guard"))
    with sr.attach(pipe, loaded):
        torch.testing.assert_close(generate(pipe, ["a star", "a moon"]), guarded, rtol=1e-2, atol=1e-2)


def test_bad_settings() -> None:
    for settings in (
        {"radius": 0.0},
        {"radius": float("inf")},
        {"strength": -1.0},
        {"mode": "x"},
        {"bank": None, "window": (2,)},
        {"strength": "a"},
        {"strength": float("nan")},
        {"dynamic": "yes"},
        {"seed": 0.5},
    ):
        with pytest.raises(GuardConfigError, match="expected"):
            SPELLConfig(concept="star", **settings)
