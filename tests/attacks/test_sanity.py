"""What makes a measurement credible: the order of attackers, controls that fail, and defences that only seem to hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.attacks.planted import CALL, CONCEPT, CONCEPT_PROMPT, NoOp, Projector, ProjectorConfig, make_planted, shows
from torch import Tensor

import saferedir as sr
from saferedir.attacks.budget import Budget
from saferedir.attacks.references import NoisedReference, mismatch
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.target import SoftPrompt, Target, Vocabulary

PROMPTS = [CONCEPT_PROMPT] * 2


@pytest.fixture(scope="module")
def world() -> Any:
    return make_planted()


def run(world: Any, name: str, guard: Any = None, **more: Any) -> Any:
    return sr.attack(world, guard, name, PROMPTS, judge=shows, call=CALL, **more)


def test_adaptive_does_at_least_as_well_as_transfer_and_transfer_as_static(world: Any) -> None:
    """And strictly better than both, on a guard that neither a rewriting nor the bare model's latents get past."""
    guard = Projector(ProjectorConfig(concept="star", threshold=0.3))
    bare = run(world, "latent-inversion")
    adaptive = run(world, "latent-inversion", guard)
    transfer = run(world, "latent-inversion", guard, candidates=[result.candidate for result in bare.results])
    static = run(world, "obfuscation", guard, settings={"transforms": ("typos",)})
    assert bare.success.value == adaptive.success.value == 1 > transfer.success.value >= static.success.value
    assert transfer.facts["is_transfer"] and all(result.ledger["nfe"] == 0 for result in transfer.results)


def test_a_search_that_begins_with_what_transfers_does_at_least_as_well(world: Any) -> None:
    """The candidates are judged first, and the search goes on only where they fail."""
    guard = Projector(ProjectorConfig(concept="star", threshold=0.8))
    bare = run(world, "best-of-n", settings={"n": 1})
    settings = {"start": "tree", "steps": 2, "samples": 1}
    weak = [replace(result.candidate, prompt="strar") for result in bare.results]
    transfer, adaptive, search = (
        run(world, "soft-embedding", guard, settings=settings, **more)
        for more in ({"candidates": weak}, {"candidates": weak, "search_on": True}, {})
    )
    assert adaptive.success.value >= max(transfer.success.value, search.success.value)
    assert transfer.facts["is_transfer"] and not adaptive.facts["is_transfer"]
    assert all(r.ledger["nfe"] > 0 for r in adaptive.results if not r.evaluations[0].is_success)


def test_a_network_with_random_weights_recovers_nothing_where_latents_keep_to_the_prior(world: Any) -> None:
    """And where they do not, it recovers everything: what the control is for, and the energy in the record says it."""
    true, random = (run(world, "latent-gradient", control=control) for control in ("none", "random-network"))
    assert random.success.hits == 0 < true.success.hits
    random = run(world, "latent-inversion", control="random-network")
    label = random.results[0].evaluations[-1].label
    assert random.success.value == 1 and float(label.split()[1]) > 5


def test_more_budget_never_does_worse(world: Any) -> None:
    guard = Projector(ProjectorConfig(concept="star", threshold=0.8))
    shares = [
        run(world, "best-of-n", guard, settings={"n": 4}, seed=3, budget=Budget(evaluations=count)).success.value
        for count in (0, 1, 4)
    ]
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("soft-embedding", {"start": "tree", "samples": 1, "checkpoint": 50}, [{"steps": n} for n in (0, 4, 20)]),
        ("latent-gradient", {"is_on_prior": False, "sampler_steps": None, "start": "noise", "learning_rate": 0.3},
         [{"steps": n} for n in (0, 3, 20)]),
    ],
)  # fmt: skip
def test_a_longer_search_run_by_itself_never_does_worse(
    world: Any, name: str, settings: dict[str, Any], sizes: list[dict[str, Any]]
) -> None:
    """Independent runs (S3): each counts what its own last candidate came to, and the longest brings every prompt back."""
    shares = [
        run(world, name, NoOp(GuardConfig(concept="star")), settings={**settings, **size}, stop_on_success=False,
            budget=Budget(evaluations=1)).success.value
        for size in sizes
    ]  # fmt: skip
    assert shares == sorted(shares) and shares[-1] == 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ring-a-bell", {"generations": 12, "mutation": 1.0, "population": 8}),
        ("greedy-coordinate", {"forbidden": (), "steps": 12, "candidates": 4}),
    ],
)
def test_the_released_searches_lose_what_they_have_found_and_ours_do_not(
    world: Any, name: str, settings: dict[str, Any]
) -> None:
    ours, released = (
        run(world, name, settings={**settings, "is_faithful": flag, "checkpoint": 50}, budget=Budget(evaluations=1))
        for flag in (False, True)
    )
    rises = [
        sum(b > a for a, b in zip(r.results[0].losses, r.results[0].losses[1:], strict=False)) for r in (ours, released)
    ]
    assert rises[0] == 0 < rises[1]


def test_the_published_objective_for_edited_weights_does_not_see_a_guard_on_the_estimate(world: Any) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    losses: dict[str, list[float]] = {"noise": [], "bare": []}
    for guard in (NoOp(GuardConfig(concept="star")), Projector(ProjectorConfig(concept="star", threshold=0.1))):
        with Target(world, [guard], CALL) as target, torch.no_grad():
            prediction = target.predict(latents, 2, prompt=[CONCEPT_PROMPT])
            reference = NoisedReference(2, latents, torch.zeros_like(latents))
            for objective, values in losses.items():
                values.append(float(mismatch(prediction, reference, objective)))
    assert losses["noise"][0] == losses["noise"][1] and abs(losses["bare"][0] - losses["bare"][1]) > 1e-3


def test_an_image_that_nobody_optimised_is_the_mixture_and_the_bound_holds(world: Any) -> None:
    """The control of `recall`: as many judged candidates of one mixture, all of it within the bound at radius 0.1."""
    control, bounded = (
        run(world, "recall", settings=settings, stop_on_success=False).results[0]
        for settings in ({"iterations": 0}, {"radius": 0.1})
    )
    assert control.ledger["bwd"] == 0 and len(control.evaluations) == len(bounded.evaluations) == 3
    assert control.candidate.x0 is not None and bounded.candidate.x0 is not None
    change = (bounded.candidate.x0 - control.candidate.x0).abs()
    assert 0 < float(change.max()) <= 0.1 + 1e-6


class Detached(Projector):
    """Looks white-box, and hides its gradient: what obfuscated gradients are."""

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return x0 + (super().on_denoised(step, x0.detach()) - x0.detach())

    def differentiable(self) -> Detached:
        return self


class Stale(Guard[GuardConfig]):
    """Remembers on itself, so that a second run is another one."""

    method = "stale"
    count = 0

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        self.count += 1
        return x0 * (1 + 0.01 * self.count)


def slope_error(world: Any, guard: Guard[Any]) -> float:
    """Relative difference of the gradient and central differences, of a sum over the estimate, along random directions (CT4)."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 8, 8, generator=generator) + 2 * CONCEPT
    with Target(world, [guard], CALL) as target:

        def value(x: Tensor) -> Tensor:
            return (target.predict(x, 3, prompt=[CONCEPT_PROMPT]).x0 * (CONCEPT + 1)).sum()

        x = latents.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(value(x), x)
        errors = []
        for _ in range(3):
            way = torch.randn(latents.shape, generator=generator)
            with torch.no_grad():
                measured = float(value(latents + 1e-2 * way) - value(latents - 1e-2 * way)) / 2e-2
            errors.append(abs(float((slope * way).sum()) - measured) / max(1e-6, abs(measured)))
    return max(errors)


def test_a_guard_that_hides_its_gradient_is_caught_by_central_differences(world: Any) -> None:
    config = ProjectorConfig(concept="star", threshold=0.1)
    assert slope_error(world, Projector(config)) < 0.05 < slope_error(world, Detached(config))


def test_a_guard_that_remembers_on_itself_is_caught_by_asking_twice(world: Any) -> None:
    """Two identical calls give identical estimates (CT3), unless something is kept between runs."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for guard, is_pure in (
        (Projector(ProjectorConfig(concept="star")), True),
        (Stale(GuardConfig(concept="star")), False),
    ):
        with Target(world, [guard], CALL) as target, torch.no_grad():
            first, second = (target.predict(latents, 2, prompt=["tree"]).x0 for _ in range(2))
        assert torch.equal(first, second) == is_pure


def test_text_tokens_and_embeddings_are_one_prompt(world: Any) -> None:
    """CT6: what a guard does may not depend on how the same prompt came in."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with Target(world, [Projector(ProjectorConfig(concept="star"))], CALL) as target, torch.no_grad():
        ids = target.text_encoders[0].ids([CONCEPT_PROMPT])
        cond, uncond = world.encode_prompt(CONCEPT_PROMPT, "cpu", 1, True)
        by_text = target.predict(latents, 2, prompt=[CONCEPT_PROMPT])
        by_tokens = target.predict(latents, 2, [SoftPrompt(ids, target.embed(ids))], prompt=[CONCEPT_PROMPT])
        by_embeds = target.predict(latents, 2, prompt_embeds=cond, negative_prompt_embeds=uncond)
    for other in (by_tokens, by_embeds):
        assert torch.allclose(by_text.x0, other.x0, atol=1e-6) and by_text.gates.keys() == other.gates.keys()


@pytest.mark.parametrize("name", ["p4d", "greedy-coordinate", "ring-a-bell"])
def test_what_a_search_of_texts_sends_is_read_again_as_the_same_tokens(world: Any, name: str) -> None:
    """CT7: judged is a text that can be typed."""
    small = {"p4d": {"steps": 4}, "greedy-coordinate": {"steps": 3}, "ring-a-bell": {"generations": 3}}[name]
    record = run(world, name, settings=small, budget=Budget(evaluations=2))
    with Target(world, (), CALL) as target:
        vocabulary = Vocabulary(target.text_encoders[0])
        for result in record.results:
            ids = vocabulary.text_encoder.ids([result.candidate.prompt])
            again = vocabulary.text_encoder.ids(vocabulary.texts(ids))
            assert torch.equal(ids, again) and not result.candidate.soft
