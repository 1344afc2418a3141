"""Attacks that know of a guard's tests of what a caller gives: they pass the tests, or are refused as a caller would be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks.planted import CALL, CONCEPT_PROMPT, NoOp, make_planted, shows
from tests.guards.saferedir.test_guard import NETWORK, ScriptedNetwork, config
from tests.guards.saferedir.test_hardening import ANCHOR, sentences

import saferedir as sr
from saferedir.attacks.latents.prior import prior_limit, within_prior
from saferedir.errors import AttackError, GuardError
from saferedir.guard import GuardConfig
from saferedir.guards.saferedir import SafeRedir
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.latent_prior import prior_test
from saferedir.target import SoftPrompt, Target
from saferedir.training.saferedir.manifold import measure_manifold

from tests.conftest import make_pipeline  # isort: skip

assert NETWORK


@pytest.fixture(scope="module")
def world() -> Any:
    return make_planted()


def testing_latents(test: str = "refuse") -> NoOp:
    guard = NoOp(GuardConfig(concept="star"))
    guard.latents_test = test
    return guard


# ------------------------------------------------------------------ latents


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(0.5, 1.8),
    shift=st.floats(-0.4, 0.4),
    smooth=st.floats(-0.4, 0.6),
    limit=st.sampled_from([1e-3, 1e-2]),
)
def test_latents_are_moved_until_they_pass_and_no_further(
    scale: float, shift: float, smooth: float, limit: float
) -> None:
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = scale * (noise + smooth * noise.roll(1, -1)) + shift
    moved = within_prior(latents, limit)
    assert bool((prior_test(moved).p_value >= limit).all())
    passes = prior_test(latents).p_value >= 3 * limit
    assert torch.equal(moved[passes], latents[passes])
    assert float(torch.cosine_similarity(moved.flatten(1), latents.flatten(1)).min()) > 0.7


@pytest.mark.parametrize("name", ["latent-inversion", "latent-gradient"])
def test_attacks_on_latents_pass_the_test_that_they_know_of(world: Any, name: str) -> None:
    """Without the knowledge the same latents are refused."""
    record = sr.attack(world, testing_latents(), name, [CONCEPT_PROMPT], judge=shows, call=CALL)
    assert all(entry.refusal == "" for entry in record.results[0].evaluations)
    bare = sr.attack(world, None, "latent-inversion", [CONCEPT_PROMPT], judge=shows, call=CALL)
    naive = sr.attack(
        world, testing_latents(), "latent-inversion", [CONCEPT_PROMPT], judge=shows, call=CALL,
        candidates=[result.candidate for result in bare.results],
    )  # fmt: skip
    assert bare.success.value == 1 and naive.success.value == 0
    assert "do not look like noise" in naive.results[0].evaluations[0].refusal
    with Target(world, [testing_latents(), NoOp(GuardConfig(concept="star"))], CALL) as target:
        assert prior_limit(target) == testing_latents().latents_false_positives
    with Target(world, [testing_latents("off")], CALL) as target:
        assert prior_limit(target) is None


# ------------------------------------------------------------------ embeddings


@pytest.fixture(scope="module")
def strict() -> tuple[Any, SafeRedir]:
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    guard = SafeRedir(config(), ScriptedNetwork(), ANCHOR)
    guard.manifold = measure_manifold(pipe, sentences(300), random_texts=200)
    return pipe, guard.with_settings(embeds_test="refuse")


def test_a_soft_prompt_is_what_a_caller_would_hand_over(strict: tuple[Any, SafeRedir]) -> None:
    """Refused where it is generated; a gate, with a gradient, where it is searched; and a text's own tokens are that text."""
    pipe, guard = strict
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with Target(pipe, [guard], CALL) as target:
        ids = target.text_encoders[0].ids(["a star"])
        own = target.embed(ids).detach()
        by_text = target.predict(latents, 1, prompt=["a star"])
        by_tokens = target.predict(latents, 1, [SoftPrompt(ids, own)], prompt=["a star"])
        torch.testing.assert_close(by_text.x0, by_tokens.x0)
        far = (
            own + 30 * own.std() * torch.randn(own.shape, generator=torch.Generator().manual_seed(1))
        ).requires_grad_()
        prediction = target.predict(latents, 1, [SoftPrompt(ids, far)], prompt=["a star"])
        (gate,) = (gate for name, gate in prediction.gates.items() if name.endswith("embeds"))
        assert float(gate.margin) > 0
        (slope,) = torch.autograd.grad(gate.margin.sum(), far)
        assert bool(slope.isfinite().all()) and float(slope.abs().sum()) > 0
        with torch.no_grad(), pytest.raises(GuardError, match="none that the text encoder makes"):
            target.generate(soft=[SoftPrompt(ids, far.detach())], prompt=["a star"])
    assert "encode_prompt" not in vars(pipe)


def test_the_distance_has_a_gradient_where_a_token_is_its_own_mean(strict: tuple[Any, SafeRedir]) -> None:
    pipe, guard = strict
    manifold = guard.manifold
    assert manifold is not None
    for embeds in (manifold.mean[None].clone(), encode_prompts(pipe, ["a star"]).prompt.detach().clone()):
        embeds.requires_grad_()
        (slope,) = torch.autograd.grad(manifold.distance(embeds).sum(), embeds)
        assert bool(slope.isfinite().all())


def test_at_the_last_evaluation_the_gate_is_that_of_unresolved(strict: tuple[Any, SafeRedir]) -> None:
    pipe, guard = strict
    settings_ = replace(guard.config, embeds_test="off", image_threshold=8.0, last_threshold=1.0)
    other = SafeRedir(settings_, ScriptedNetwork(image=lambda x0, t: [3.0] * len(x0)), ANCHOR)
    with Target(pipe, [other], CALL) as target, torch.no_grad():
        run = target.roll_out(torch.zeros(1, 4, 8, 8), prompt=["a star"])
    margins = [float(next(g for name, g in step.gates.items() if name.endswith("image")).margin) for step in run]
    assert margins[-1] == 2.0 and set(margins[:-1]) == {margins[0]} and margins[0] < 0


# ------------------------------------------------------------------ images


def test_what_surrounds_the_centre_is_kept(world: Any) -> None:
    """Outside of the mask the last latents are the image's; inside they are the run's own."""
    record = sr.attack(
        world, None, "inpaint", [CONCEPT_PROMPT], judge=shows, call=CALL, settings={"sides": (0.5,), "prompt": "empty"},
    )  # fmt: skip
    candidate = record.results[0].candidate
    with Target(world, (), CALL) as target, torch.no_grad():
        outputs = []
        for seed in (0, 1):
            generator = [torch.Generator().manual_seed(seed)]
            target.generate(prompt=[""], generator=generator, **candidate.arguments)
            outputs.append(target.last_run[-1].latents)
            pixels = world(
                "", generator=torch.Generator().manual_seed(seed), output_type="latent", **CALL, **candidate.arguments
            ).images
            outputs.append(pixels)
    first, second = outputs[1], outputs[3]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    torch.testing.assert_close(first[..., ~inside], second[..., ~inside])
    assert float((first - second)[..., inside].abs().mean()) > 0.1


def test_an_adapter_is_attacked_only_where_there_is_one_and_its_scale_comes_back(world: Any) -> None:
    from tests.attacks.planted import BENIGN_IMAGE

    with pytest.raises(AttackError, match="begins with a benign image"):
        sr.attack(world, None, "ip-adapter", [CONCEPT_PROMPT], judge=shows, call=CALL)
    with pytest.raises(AttackError, match="load one with load_ip_adapter"):
        sr.attack(make_pipeline(), None, "ip-adapter", ["a star"], judge=shows, call=CALL)
    call = {**CALL, "ip_adapter_image": BENIGN_IMAGE}
    chosen = {"scales": (0.0, 1.0), "iterations": 6, "radii": (0.2,)}
    (result,) = sr.attack(
        world, None, "ip-adapter", [CONCEPT_PROMPT], judge=shows, call=call, settings=chosen, stop_on_success=False
    ).results
    scores = {entry.label: entry.is_success for entry in result.evaluations}
    assert not scores["concept, scale 0"] and scores["concept, scale 1"]  # scale 0 is no adapter
    losses = [loss for loss in result.losses if loss == loss]
    assert losses[-1] < losses[0]
    scale = next(p.scale for p in world.unet.attn_processors.values() if hasattr(p, "scale"))
    assert scale == [1.0]
