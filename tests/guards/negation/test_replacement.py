"""The form "replace": shares of what is left, rows that are not touched, and which benign reference an image is led to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from tests.conftest import LATENT_SHAPE, generate, make_pipeline
from tests.guards.negation.oracle import circle, frame, make_run, make_step, randn, sd1_schedule
from tests.tiny.text_free import make_unconditional
from torch import Tensor

import saferedir as sr
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guard import Run
from saferedir.guards.negation import NegationSet
from saferedir.guards.negation.replacement import GROWTH, Replacement
from saferedir.guards.safe_denoiser import SafeDenoiser, SafeDenoiserConfig

SHAPE = (2, 1, 1)


def make_guard(negation: NegationSet, **settings: Any) -> SafeDenoiser:
    return SafeDenoiser.from_set(negation, concept="star", backbone=None, **settings)


def mixture_set(count: int = 400) -> NegationSet:
    mixture, generator = circle(), torch.Generator().manual_seed(5)
    parts = [mixture.sample(count, generator, part).float() for part in (mixture.is_unsafe, ~mixture.is_unsafe)]
    return NegationSet.from_latents(parts[0].view(-1, *SHAPE), parts[1].view(-1, *SHAPE), dtype=torch.float32)


def sample(guard: SafeDenoiser | None, count: int) -> Tensor:
    """Shares of the mixture's eight components in `count` samples of its exact denoiser by DDIM."""
    mixture, schedule, times = circle(), sd1_schedule(), list(range(981, 0, -20))
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = make_run(count, num_evaluations=len(times))
    state = None if guard is None else guard.start(run)
    for here, t in enumerate(times):
        alpha, sigma = frame(t)
        x0 = mixture.denoised(x, alpha, sigma)
        if guard is not None:
            rows = x.float().view(-1, *SHAPE)
            step = make_step(rows, x0.float().view(-1, *SHAPE), alpha, sigma, state, run, evaluation=here, index=here)
            assert step.x0 is not None
            x0 = guard.on_denoised(step, step.x0).flatten(1).double()
        eps = (x - alpha * x0) / sigma
        after = schedule[times[here + 1]] if here + 1 < len(times) else schedule[0]
        x = after.sqrt() * x0 + (1 - after).sqrt() * eps
    return torch.bincount(mixture.component(x), minlength=8).double() / count


def test_what_is_left_keeps_its_proportions() -> None:
    """Of eight kinds of image at 1/8 each, two of them unsafe, each other one has 1/6; handed to the neighbours it were 1/4."""
    unsafe, guard = circle().is_unsafe, make_guard(mixture_set(), form="replace", prior=0.25)
    before, shares = sample(None, 4000), sample(guard, 4000)
    ideal = before[~unsafe] / before[~unsafe].sum()
    assert before[unsafe].sum() > 0.2 and shares[unsafe].sum() <= 0.005
    assert (shares[~unsafe] - ideal * shares[~unsafe].sum()).abs().max() <= 0.04


def apart(count: int = 6) -> NegationSet:
    """Unsafe and benign references that no noise of the test mixes up."""
    shape = (count, 4, 4, 4)
    return NegationSet.from_latents(randn(*shape) + 3.0, randn(*shape, seed=1) - 3.0, dtype=torch.float32)


def at(guard: SafeDenoiser, state: Any, run: Run, t: int, x_t: Tensor, x0: Tensor) -> Tensor:
    return guard.on_denoised(make_step(x_t, x0, *frame(t), state, run), x0)


def benign_of(negation: NegationSet) -> Tensor:
    assert negation.benign is not None and isinstance(negation.benign.rows, Tensor)
    return negation.benign.rows.flatten(1) + negation.benign.centre


def test_unsafe_images_are_led_to_a_benign_one_and_no_other_is_touched() -> None:
    negation = apart()
    guard, run = make_guard(negation, form="replace"), make_run(3)
    state, alpha = guard.start(run), frame(701)[0]
    x_t = torch.cat([alpha * negation.latents()[:2], alpha * benign_of(negation)[:1].view(1, 4, 4, 4)])
    x0 = randn(3, 4, 4, 4, seed=2)
    early = at(guard, state, run, 981, x_t, x0)
    edited = at(guard, state, run, 701, x_t, x0)
    assert early is x0 and torch.equal(edited[2], x0[2])
    distance = torch.cdist(edited[:2].flatten(1), benign_of(negation)).min(dim=1).values
    torch.testing.assert_close(distance, torch.zeros(2), atol=1e-4, rtol=0)
    turned = torch.cat([-x_t[:2], x_t[2:]])
    still, after = (at(guard, state, run, t, turned, x0) for t in (501, 21))
    assert torch.equal(still, edited)  # it is led on, whatever it looks like
    assert after is x0
    for row in range(2):
        alone = make_run(1)
        single = at(guard, guard.start(alone), alone, 701, x_t[row : row + 1], x0[row : row + 1])
        torch.testing.assert_close(single[0], edited[row])


def test_an_image_begins_anew_if_it_is_unsafe_after_it_was_led() -> None:
    benign = apart().benign
    assert benign is not None
    replacement = Replacement.choose(benign, [torch.Generator().manual_seed(0)], ())
    yes, no = torch.tensor([True]), torch.tensor([False])
    steps = [
        (no, 0.2),
        (yes, 0.3),
        (no, 1.4),
        (no, 0.3 * GROWTH),
        (yes, 2.0),
        (None, 2.0 * GROWTH - 0.1),
        (None, 2.0 * GROWTH),
    ]
    assert [bool(replacement.lead(unsafe, ratio)) for unsafe, ratio in steps] == [
        False,
        True,
        True,
        False,
        True,
        True,
        False,
    ]
    assert replacement.may_lead(2.0 * GROWTH - 0.1) and not replacement.may_lead(2.0 * GROWTH)


def test_a_retried_image_is_replaced_whatever_the_odds_and_from_another_reference() -> None:
    negation = apart(50)
    x_t, x0 = frame(701)[0] * benign_of(negation)[:1].view(1, 4, 4, 4), randn(1, 4, 4, 4, seed=2)
    found = []
    for level in (0, 1, 2):
        guard, run = make_guard(negation, form="replace"), make_run(1, retry_level=(level,))
        found.append(at(guard, guard.start(run), run, 701, x_t, x0))
    assert torch.equal(found[0], x0)
    assert len({tensor.sum().item() for tensor in found}) == 3


def test_settings_of_the_form() -> None:
    config = make_guard(apart(), form="replace").config
    assert (config.window, config.trust, config.kappa) == ((0.3, 0.8), None, None)
    for settings in (
        {"gate": "always"},
        {"base": "uncond"},
        {"beta_max": 3.0},
        {"renoise": "stale"},
        {"beta_min": 0.5},
    ):
        with pytest.raises(GuardConfigError, match=next(iter(settings))):
            make_guard(apart(), form="replace", **settings)
    with pytest.raises(GuardError, match="form='replace' compares with benign references"):
        make_guard(NegationSet.from_latents(randn(6, *SHAPE)), form="replace")
    with pytest.raises(GuardConfigError, match="form"):
        SafeDenoiserConfig(concept="star", mode="faithful", form="replace")


def test_through_a_pipeline() -> None:
    """All images are unsafe where the set has them: each is led to a benign one; with the groups turned none is touched."""
    pipe = make_pipeline()
    unsafe, benign = randn(8, *LATENT_SHAPE), 3.0 + randn(8, *LATENT_SHAPE, seed=1)
    bare = generate(pipe)
    for parts, is_touched in (((unsafe, benign), True), ((benign, unsafe), False)):
        guard = make_guard(NegationSet.from_latents(*parts, dtype=torch.float32), form="replace")
        with sr.attach(pipe, guard) as attached:
            images = generate(pipe)
            assert all(decision.fired == is_touched for decision in attached.decisions)
        assert torch.equal(images, bare) != is_touched


@pytest.mark.parametrize(
    "settings", [{"form": "replace"}, {"renoise": "stale", "gate": "always", "window": (0.2, 0.7)}]
)
def test_whole_runs_of_a_batch_equal_single_ones(settings: dict[str, Any]) -> None:
    """What is drawn depends on the initial latents alone, though the window opens steps later."""
    pipe = make_unconditional(DDIMPipeline, DDIMScheduler(clip_sample="form" in settings))
    shape = (3, 16, 16)
    negation = NegationSet.from_latents(randn(40, *shape), 3.0 + randn(40, *shape, seed=1), dtype=torch.float32)
    guard = make_guard(negation, **settings)

    def run(*seeds: int) -> tuple[Tensor, list[int | None]]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with sr.attach(pipe, guard) as attached, torch.no_grad():
            images = pipe(batch_size=len(seeds), generator=generators, num_inference_steps=8, output_type="np").images
        return torch.from_numpy(images), [decision.first_fired_step for decision in attached.decisions]

    batch, first = run(*range(6))
    assert all(step is not None and step > 1 for step in first)
    singles = torch.cat([run(seed)[0] for seed in range(6)])
    torch.testing.assert_close(batch, singles, atol=1e-4, rtol=0)
