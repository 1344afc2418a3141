"""Attacks that know of a guard's tests of what a caller gives: they pass the tests, or are refused as a caller would be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks.planted import CALL, CONCEPT_PROMPT, NoOp, make_planted, shows
from tests.guards.saferedir.test_guard import NETWORK, ScriptedNetwork, config
from tests.guards.saferedir.test_hardening import ANCHOR, sentences

import saferedir as sr
from saferedir.attacks.latents.prior import fresh_share, prior_limit, with_fresh_noise, within_prior
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


def testing_latents(test: str = "refuse", share: float = 0.5) -> NoOp:
    guard = NoOp(GuardConfig(concept="star"))
    guard.latents_test, guard.latents_fresh_share = test, share
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


@pytest.mark.parametrize(("share", "succeeds"), [(0.02, True), (1.0, False)])
def test_an_attack_looks_through_the_noise_that_a_guard_puts_in(world: Any, share: float, succeeds: bool) -> None:
    """Little of it is overcome in expectation; where nothing of the latents is kept, nothing can be searched."""
    guard = testing_latents("refresh_all", share)
    record = sr.attack(world, guard, "latent-gradient", [CONCEPT_PROMPT], judge=shows, call=CALL)
    assert all(entry.refusal == "" for entry in record.results[0].evaluations)
    assert record.success.value == float(succeeds)


def test_the_largest_share_of_enabled_guards_is_looked_through(world: Any) -> None:
    guards = [testing_latents("refresh_all", share) for share in (0.2, 0.6, 0.9)]
    guards[2].enabled = False
    with Target(world, [*guards, testing_latents("refuse", 1.0)], CALL) as target:
        assert fresh_share(target) == 0.6
    with Target(world, [testing_latents("refuse")], CALL) as target:
        assert fresh_share(target) == 0
    latents = torch.ones(1, 4, 8, 8)
    assert with_fresh_noise(latents, 0.0, torch.Generator()) is latents
    mixed = with_fresh_noise(latents, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(mixed, torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)))


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
        (gate,) = (gate for name, gate in prediction.gates.items() if name.endswith(".embeds"))
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


@pytest.mark.parametrize(
    ("name", "options", "found_in", "steps"),
    [
        ("DDIMScheduler", {}, 5, 5),
        ("HeunDiscreteScheduler", {}, 5, 5),
        ("PNDMScheduler", {"skip_prk_steps": False}, 5, 5),
        ("PNDMScheduler", {"skip_prk_steps": True}, 5, 5),
        ("DPMSolverMultistepScheduler", {}, 5, 5),
        ("DDIMScheduler", {}, 30, 4),
    ],
)
def test_what_surrounds_the_centre_is_kept_at_the_level_of_the_sampler(
    world: Any, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], found_in: int, steps: int
) -> None:
    """Before every evaluation but the first it is what diffusers' `add_noise` makes of the image; at the end the image."""
    scheduler = getattr(diffusers, name).from_config(world.scheduler.config, **options)
    monkeypatch.setattr(world, "scheduler", scheduler)
    chosen = {"sides": (0.5,), "prompt": "empty"}
    (result,) = sr.attack(
        world, None, "inpaint", [CONCEPT_PROMPT], judge=shows, call={**CALL, "num_inference_steps": found_in},
        settings=chosen,
    ).results  # fmt: skip
    inpainting = result.candidate.inpainting
    assert inpainting is not None
    inside, finals = torch.zeros(8, 8, dtype=torch.bool), []
    inside[2:6, 2:6] = True
    decode = world.vae.decode
    monkeypatch.setattr(world.vae, "decode", lambda z, *args, **more: finals.append(z) or decode(z, *args, **more))
    with Target(world, (), {**CALL, "num_inference_steps": steps}) as target, torch.no_grad():
        for seed in (0, 1):
            generator = [torch.Generator().manual_seed(seed)]
            target.generate(inpainting=inpainting, prompt=[""], generator=generator)
            assert len(target.last_run) == len(target.moments) >= steps
            for timestep, step in list(zip(scheduler.timesteps, target.last_run, strict=True))[1:]:
                expected = scheduler.add_noise(inpainting.image, inpainting.noise, timestep[None])
                torch.testing.assert_close(step.x_t[..., ~inside], expected[..., ~inside], atol=1e-4, rtol=1e-4)
    first, second = (final * world.vae.config.scaling_factor for final in finals)
    for final in (first, second):
        torch.testing.assert_close(final[..., ~inside], inpainting.image[..., ~inside])
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
    (none,) = sr.attack(
        world, None, "ip-adapter", [CONCEPT_PROMPT], judge=shows, call=call, settings={"scales": (0.0,), "radii": ()}
    ).results
    (again,) = sr.attack(
        world, None, "ip-adapter", [CONCEPT_PROMPT], judge=shows, call=call, candidates=[none.candidate]
    ).results
    assert not none.is_success and not again.is_success  # the scale goes with the candidate
    assert {tuple(p.scale) for p in world.unet.attn_processors.values() if hasattr(p, "scale")} == {(1.0,)}


def test_every_layer_of_an_adapter_gets_its_own_scale_back(world: Any) -> None:
    from tests.attacks.planted import BENIGN_IMAGE

    layers = [layer for layer in world.unet.attn_processors.values() if hasattr(layer, "scale")]
    usual = [list(layer.scale) for layer in layers]
    try:
        for number, layer in enumerate(layers):
            layer.scale = [0.1 * number]
        call = {**CALL, "ip_adapter_image": BENIGN_IMAGE}
        sr.attack(world, None, "ip-adapter", [CONCEPT_PROMPT], judge=shows, call=call, settings={"radii": ()})
        assert [layer.scale for layer in layers] == [[0.1 * number] for number in range(len(layers))]
    finally:
        for layer, scale in zip(layers, usual, strict=True):
            layer.scale = scale
