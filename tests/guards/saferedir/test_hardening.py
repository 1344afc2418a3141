"""SafeRedir's decision rules beside the published ones: same step, evidence, the caller's embeddings; all off by default."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.guards.saferedir.test_backbones import always, pipeline, redirector
from tests.guards.saferedir.test_guard import NETWORK, ScriptedNetwork, call, config, latents
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

from saferedir import Guard, GuardConfigError, GuardError, attach
from saferedir.guards.saferedir import SafeRedir, SafeRedirConfig
from saferedir.guards.saferedir.assessment import LEAST_STEPS, image_threshold
from saferedir.guards.saferedir.hardening import at_once, by_evidence, by_streak, checks_left, renoised
from saferedir.guards.saferedir.manifold import PromptManifold, fit_manifold
from saferedir.training.saferedir.manifold import measure_manifold, random_sequences

from tests.conftest import PROMPT_WIDTH, make_pipeline  # isort: skip

ANCHOR = torch.linspace(-1, 1, 77 * PROMPT_WIDTH).view(77, PROMPT_WIDTH)
OFF = {
    "recheck": "next_step", "escalation": "streak", "answer": "redirect", "latents_test": "off", "embeds_test": "off",
}  # fmt: skip


@pytest.fixture
def pipe() -> Any:
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guard_of(image: Any = None, prompt: Any = None, **changes: Any) -> SafeRedir:
    return SafeRedir(config(**changes), ScriptedNetwork(prompt=prompt, image=image), ANCHOR)


def script(*scores: float) -> Any:
    """Image scores, one a check, the last one on and on."""
    left = list(scores)
    return lambda x0, t: [left.pop(0) if len(left) > 1 else left[0]] * len(x0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("recheck", ["next_step", "same_step"])
def test_a_few_estimates_are_held_against_the_mean_of_both_thresholds(pipe: Any, steps: int, recheck: str) -> None:
    """The trained threshold bounds the highest of many scores."""
    few, limits = steps < LEAST_STEPS, {"image_threshold": 4.0, "last_threshold": 1.0}
    _, decision = images_by_step(pipe, guard_of(script(3.0), recheck=recheck, **limits), steps)
    acts_from = steps if not few else 0 if recheck == "same_step" else 1
    assert decision.first_fired_step == (acts_from if acts_from < steps else None)
    assert decision.thresholds["image"] == (2.5 if few else 4.0) and decision.unresolved
    below, _ = images_by_step(pipe, guard_of(script(2.4), recheck=recheck, **limits), steps)
    bare, _ = images_by_step(pipe, None, steps)
    torch.testing.assert_close(below[-1], bare[-1], atol=1e-5, rtol=1e-4)


@given(st.floats(-20, 20), st.none() | st.floats(-20, 20), st.integers(1, 60))
def test_no_run_has_a_higher_threshold_than_the_trained_one(trained: float, last: float | None, steps: int) -> None:
    threshold = image_threshold(trained, last, steps)
    assert threshold <= trained and (last is None or threshold >= min(trained, last))
    assert threshold == trained or steps < LEAST_STEPS


def test_other_settings_keep_what_the_guard_brings_along() -> None:
    guard = guard_of()
    guard.name, guard.image_verifier = "mine", object()  # type: ignore[assignment]
    other = guard.with_settings(recheck="same_step")
    assert other.config == replace(guard.config, recheck="same_step") and other is not guard
    for name in ("name", "image_verifier", "network", "anchor", "anchor_pooled", "manifold", "enabled"):
        assert getattr(other, name) is getattr(guard, name), name


def test_everything_is_off_by_default_and_in_the_usual_guards() -> None:
    for name in ("star", "emblem", "pointillism"):
        guard = Guard.from_pretrained(f"pictoworld/{name}-usual")
        assert {key: getattr(guard.config, key) for key in OFF} == OFF
        assert guard.latents_test == "off" and not guard.needs_text and guard.refusal_text() is None
        assert not guard.uses("extra_embeds") and not guard.uses("on_prediction")


@pytest.mark.parametrize(
    "changes",
    [
        {"recheck": "x"},
        {"escalation": "x"},
        {"latents_test": "x"},
        {"latents_false_positives": 0},
        {"latents_fresh_share": 0},
        {"latents_fresh_share": 1.1},
        {"embeds_test": "refresh"},
        {"recheck": "same_step", "use_image": False},
        {"mode": "faithful", "recheck": "same_step"},
        {"mode": "faithful", "escalation": "evidence"},
        {"mode": "faithful", "embeds_test": "refuse"},
        {"answer": "x"},
        {"mode": "faithful", "answer": "renoise"},
        {"answer": "renoise", "use_image": False},
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(GuardError):
        config(**changes)
    with pytest.raises(GuardConfigError, match="has no setting 'nothing'"):
        guard_of().with_settings(nothing=1)


def test_the_share_of_fresh_noise_is_a_setting_that_older_guards_do_not_write_down() -> None:
    guard = guard_of(latents_test="refresh_all", latents_fresh_share=0.5)
    assert (guard.latents_test, guard.latents_fresh_share) == ("refresh_all", 0.5)
    assert guard_of().latents_fresh_share == Guard.latents_fresh_share == 1
    assert (
        "latents_fresh_share" not in guard_of().config.settings() and "latents_fresh_share" in guard.config.settings()
    )


# ------------------------------------------------------------------ same step


def images_by_step(pipe: Any, guard: SafeRedir | None, steps: int, **how: Any) -> tuple[list[Tensor], Any]:
    """Latents after each step, and the decision."""
    seen: list[Tensor] = []

    def keep(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].clone())
        return {}

    if guard is None:
        call(pipe, ["a"], steps=steps, callback_on_step_end=keep, **how)
        return seen, None
    with attach(pipe, guard) as attached:
        call(pipe, ["a"], steps=steps, callback_on_step_end=keep, **how)
    return seen, attached.decisions[0]


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_same_step_takes_the_redirected_prediction_of_the_step_that_fired(pipe: Any, at: int, guidance: float) -> None:
    """From the step that fires on, the run is that of embeddings that were redirected in that step: no step is lost."""
    steps, how = 4, {"guidance_scale": guidance}
    silent = [-5.0] * at
    bare, _ = images_by_step(pipe, None, steps, **how)
    late, late_decision = images_by_step(pipe, guard_of(script(*silent, 5.0, -5.0)), steps, **how)
    # one check before the prediction is taken again, one after it
    checks = [score for score in silent for _ in range(2)]
    now, decision = images_by_step(pipe, guard_of(script(*checks, 5.0, -5.0), recheck="same_step"), steps, **how)
    for step in range(at):
        torch.testing.assert_close(now[step], bare[step], atol=1e-5, rtol=1e-4)
    if at < steps - 1 or guidance > 1:  # the last step moves little without guidance
        assert not torch.allclose(now[at], bare[at], atol=1e-4)
    torch.testing.assert_close(late[at], bare[at], atol=1e-5, rtol=1e-4)
    assert decision.first_fired_step == at and decision.steps_redirected == steps - at
    assert late_decision.first_fired_step == (at + 1 if at + 1 < steps else None)
    assert decision.image_score == 5.0 and decision.image_scores[at] == 5.0

    # the oracle: a guard whose image verdict stands from the start of that step
    class Late(SafeRedir):
        def on_step_start(self, step: Any) -> Any:
            step.state.image_weight = torch.full((1,), float(step.index >= at))
            return super().on_step_start(step)

    oracle = Late(config(use_image=True), ScriptedNetwork(), ANCHOR)
    expected, _ = images_by_step(pipe, oracle, steps, **how)
    torch.testing.assert_close(now[-1], expected[-1], atol=1e-4, rtol=1e-3)


def rows_of(pipe: Any, guard: SafeRedir, steps: int) -> tuple[list[int], Any]:
    """Rows of each denoiser call, and the decision."""
    rows: list[int] = []
    with attach(pipe, guard) as attached:
        handle = pipe.unet.register_forward_pre_hook(
            lambda module, args: rows.append(len(args[0]))
        )  # after the guards'
        call(pipe, ["a"], steps=steps)
        handle.remove()
    return rows, attached.decisions[0]


def test_same_step_costs_one_row_an_image_until_all_are_redirected(pipe: Any) -> None:
    assert rows_of(pipe, guard_of(recheck="same_step"), 4)[0] == [3, 3, 3, 3]
    assert rows_of(pipe, guard_of(prompt=lambda e: [5.0] * len(e), recheck="same_step"), 4)[0] == [2, 2, 2, 2]
    fires_in_the_second = guard_of(script(-5.0, -5.0, 5.0), recheck="same_step")
    assert rows_of(pipe, fires_in_the_second, 4)[0] == [3, 3, 2, 2]
    assert rows_of(pipe, guard_of(), 4)[0] == [2, 2, 2, 2]


def test_same_step_leaves_neighbours_alone(pipe: Any) -> None:
    def image(x0: Tensor, t: Any) -> Tensor:
        return torch.tensor([5.0] + [-5.0] * (len(x0) - 1))

    bare = call(pipe, ["a", "b"])
    with attach(pipe, guard_of(image, recheck="same_step", image_threshold=1.0)) as attached:
        out = call(pipe, ["a", "b"])
    assert [decision.fired for decision in attached.decisions] == [True, False]
    torch.testing.assert_close(out[1], bare[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(out[0], bare[0], atol=1e-3)


def test_same_step_skips_the_evaluations_that_replace_steps_skips(pipe: Any) -> None:
    rows, decision = rows_of(pipe, guard_of(recheck="same_step", replace_steps=1), 6)
    assert rows == [3, 2, 3, 2, 3, 3] and len(decision.image_scores) == 4  # the last one always


@pytest.mark.parametrize("gate", ["soft", "straight_through"])
def test_gradients_reach_the_latents_through_the_same_step(gate: str) -> None:
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    guard = SafeRedir(config(gate=gate, recheck="same_step", gate_sharpness=1.0), None)
    guard._has_weights = True
    noise = latents(1).requires_grad_()
    embeds = pipe.encode_prompt(["a b"], "cpu", 1, False)[0].detach()
    differentiable = type(pipe).__call__.__wrapped__  # type: ignore[attr-defined]
    with attach(pipe, guard):
        out = differentiable(
            pipe, prompt_embeds=embeds, latents=noise, num_inference_steps=2, guidance_scale=1.0, output_type="latent"
        )
    out.images.square().sum().backward()
    assert noise.grad is not None and torch.isfinite(noise.grad).all() and noise.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "flux-true-cfg", "pixart-sigma", "wan"])
def test_on_every_layout_the_same_step_equals_a_redirection_from_its_start(name: str) -> None:
    """Pooled embeddings, masks, packed latents, guidance in calls of its own: an image verdict at once, or a prompt verdict."""
    network, pipe, case = redirector(name), pipeline(name), PIPELINES[name]
    bare = run(case, pipe, steps=2)
    found = []
    for changes in (
        {"prompt_threshold": 1e6, "image_threshold": -1e6, "recheck": "same_step", "use_image": True, "patience": 99},
        {},
    ):
        with attach(pipe, always(network, **changes)) as attached:
            found.append(run(case, pipe, steps=2))
        assert attached.decisions[0].steps_redirected == 2 and attached.decisions[0].first_fired_step == 0
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    assert (found[1] - bare).abs().max() > 10 * (found[1] - found[0]).abs().max()


# ------------------------------------------------------------------ evidence


def levels(scores: list[float], rule: str, patience: int = 3) -> list[int]:
    """The level after each check of an image that is redirected from the start, threshold 0."""
    level = torch.zeros(1, dtype=torch.long)
    count: Tensor = torch.zeros(1, dtype=torch.long if rule == "streak" else torch.float32)
    found, on = [], torch.ones(1, dtype=torch.bool)
    for index, score in enumerate(scores):
        margin = torch.tensor([score])
        if rule == "streak":
            count, level = by_streak(count, level, margin >= 0, on, patience)
        else:
            count, level = by_evidence(count, level, margin, on, patience, len(scores) - index - 1)
        found.append(int(level))
    return found


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.integers(1, 5))
def test_evidence_never_comes_later_than_a_streak(scores: list[float], patience: int) -> None:
    streak, evidence = levels(scores, "streak", patience), levels(scores, "evidence", patience)
    assert all(ours >= theirs for ours, theirs in zip(evidence, streak, strict=True))
    assert evidence == sorted(evidence)


@given(st.lists(st.floats(-5, 0, exclude_max=True, width=32), min_size=1, max_size=40))
def test_what_is_never_high_never_escalates(scores: list[float]) -> None:
    assert set(levels(scores, "evidence")) == {0}


def test_a_dip_resets_a_streak_and_no_evidence() -> None:
    scores = [0.1, 0.1, -1.0] * 8
    assert levels(scores, "streak")[-1] == 0
    assert levels(scores, "evidence")[:8] == [0, 0, 0, 1, 1, 1, 1, 2]


def test_a_clear_margin_escalates_at_once() -> None:
    assert levels([5.0] + [-1.0] * 20, "evidence")[0] == 1 and levels([5.0] + [-1.0] * 20, "streak")[-1] == 0


@pytest.mark.parametrize(("steps", "level"), [(30, 0), (7, 0), (6, 2), (2, 2)])
def test_the_anchor_comes_at_once_where_too_few_steps_are_left(steps: int, level: int) -> None:
    assert levels([0.1] + [-1.0] * (steps - 1), "evidence")[0] == level  # two levels of three checks, one of them done
    assert int(at_once(torch.tensor(1), 3, 3)) == 1 and int(at_once(torch.tensor(1), 3, 2)) == 2
    assert [checks_left(left, 2) for left in (0, 1, 2, 3, 4)] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("steps", [2, 4])
def test_in_few_steps_the_anchor_s_run_follows(pipe: Any, steps: int) -> None:
    with attach(pipe, guard_of(script(5.0), escalation="evidence", recheck="same_step")) as attached:
        out = call(pipe, ["a"], steps=steps)
    negative = pipe.encode_prompt([""], "cpu", 1, False)[0]
    assert attached.decisions[0].action == "escalated" and attached.decisions[0].first_fired_step == 0
    pipe.encode_prompt = lambda *args, **kwargs: (ANCHOR[None], negative)
    expected = call(pipe, ["a"], steps=steps)
    del pipe.encode_prompt
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-3)
    with attach(pipe, guard_of(script(5.0))):
        assert not torch.allclose(call(pipe, ["a"], steps=steps), expected, atol=1e-2)


# ------------------------------------------------------------------ the caller's embeddings

WORDS = ("red", "blue", "tall", "small", "star", "circle", "house", "tree", "on", "under", "the", "sand", "night", "a")


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def measured() -> tuple[Any, PromptManifold]:
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe, measure_manifold(pipe, sentences(300), random_texts=200)


def test_encoder_made_embeddings_pass_and_soft_ones_far_off_do_not(measured: tuple[Any, PromptManifold]) -> None:
    pipe, manifold = measured
    with torch.no_grad():
        embeds = pipe.encode_prompt(sentences(600, seed=9), "cpu", 1, False)[0]
        odd = pipe.encode_prompt(random_sequences(pipe.tokenizer, 300, random.Random(9)), "cpu", 1, False)[0]
    assert float((manifold.distance(embeds) > manifold.bound).double().mean()) <= 0.005 + 0.01
    assert float((manifold.distance(odd) > manifold.bound).double().mean()) <= 0.005 + 0.02
    assert float((manifold.distance(embeds.bfloat16()) > manifold.bound).double().mean()) <= 0.005 + 0.01
    generator = torch.Generator().manual_seed(0)
    size = embeds.std()
    for soft in (
        embeds + size * torch.randn(embeds.shape, generator=generator),
        size * torch.randn(embeds.shape, generator=generator),
        3 * embeds,
        torch.zeros_like(embeds),
    ):
        assert bool((manifold.distance(soft) > manifold.bound).all())
    one = embeds.clone()
    one[:, 5] += 3 * size * torch.randn(one[:, 5].shape, generator=generator)  # a single token
    assert float((manifold.distance(one) > manifold.bound).double().mean()) >= 0.99
    assert bool(manifold.distance(embeds[:2, :5]).isinf().all())
    assert bool(manifold.distance(torch.full_like(embeds[:1], torch.nan)).isinf().all())
    torch.testing.assert_close(manifold.distance(torch.cat([embeds, embeds], dim=1)), manifold.distance(embeds))


def test_the_guard_refuses_soft_embeddings_and_no_text(measured: tuple[Any, PromptManifold], tmp_path: Path) -> None:
    pipe, manifold = measured
    plain = guard_of()
    bare = call(pipe, ["a star"])
    with pytest.raises(GuardError, match="saferedir guards manifold GUARD --prompts FILE --out DIR"):
        attach(pipe, plain.with_settings(embeds_test="refuse"))
    plain.manifold = manifold
    guard = plain.with_settings(embeds_test="refuse")
    with torch.no_grad():
        text = pipe.encode_prompt(["red star"], "cpu", 1, False)[0]
    soft = text + text.std() * torch.randn(text.shape, generator=torch.Generator().manual_seed(0))
    how = {"latents": latents(1), "num_inference_steps": 2, "output_type": "latent", "guidance_scale": 1.0}
    with attach(pipe, guard):
        assert torch.equal(call(pipe, ["a star"]), bare)
        pipe(prompt_embeds=text, **how)
        with pytest.raises(GuardError, match="image 0 are none that the text encoder makes"):
            pipe(prompt_embeds=soft, **how)
        with pytest.raises(GuardError, match="image 1 are none"):
            pipe(prompt_embeds=torch.cat([text, soft]), **{**how, "latents": latents(2)})
    with attach(pipe, plain):
        pipe(prompt_embeds=soft, **how)


def test_statistics_travel_with_the_guard(measured: tuple[Any, PromptManifold], tmp_path: Path) -> None:
    manifold = measured[1]
    guard = SafeRedir(config(embeds_test="refuse"), None, ANCHOR, manifold=manifold)
    guard._has_weights = True
    again = Guard.from_pretrained(guard.save_pretrained(tmp_path / "guard"))
    assert isinstance(again, SafeRedir) and again.manifold is not None and again.refusal_text() is None
    for name, value in manifold.tensors().items():
        assert torch.equal(again.manifold.tensors()[name], value), name
    broken = {**guard.tensors(), "manifold_scale": torch.zeros(77)}
    with pytest.raises(GuardConfigError, match="make them again with `saferedir guards manifold`"):
        guard.load_tensors(broken)
    del broken["manifold_scale"]
    with pytest.raises(GuardConfigError, match="make them again"):
        guard.load_tensors(broken)


def test_the_bound_holds_on_what_it_was_made_from() -> None:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(4000, 6, 8, generator=generator) * torch.linspace(0.5, 2, 8) + torch.arange(6.0)[:, None]
    found = fit_manifold(embeds[:1000], embeds[1000:2000], 0.05, 1.0)
    rate = float((found.distance(embeds[2000:]) > found.bound).double().mean())
    assert 0.03 < rate < 0.07
    with pytest.raises(GuardConfigError, match="too few for the covariance"):
        fit_manifold(embeds[:1], embeds[1:3], 0.05, 1.0)
    assert replace(found, bound=torch.tensor(1.0)).tensors().keys() == found.tensors().keys()


@pytest.mark.parametrize(
    ("texts", "changes", "words"),
    [(["a"] * 50, {}, "1 distinct prompts; give at least 20"), (WORDS * 2, {"margin": 0.5}, "margin 0.5; expected")],
)
def test_what_cannot_be_measured_is_one_sentence(texts: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(GuardConfigError, match=words):
        measure_manifold(
            make_pipeline(), [f"{text} {i}" if len(set(texts)) > 1 else text for i, text in enumerate(texts)], **changes
        )


def test_other_text_encoders_are_refused() -> None:
    with pytest.raises(GuardConfigError, match="do not come from CLIP alone"):
        measure_manifold(PIPELINES["sd3"].build(), sentences(30))


assert NETWORK["prompt_dim"] == PROMPT_WIDTH


# ------------------------------------------------------------------ fresh noise


@pytest.mark.parametrize("frame", ["variance preserving", "flow", "last step"])
def test_fresh_noise_lies_at_the_level_of_the_step(frame: str) -> None:
    """The oracle: a deterministic step goes to p x0 + q eps, so the answer is p mean(x0) + q noise."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(3))
    alpha, p = {"variance preserving": (0.6, 0.8), "flow": (0.3, 0.45), "last step": (0.98, 1.0)}[frame]
    sigma, q = (1 - alpha, 1 - p) if frame == "flow" else ((1 - alpha**2) ** 0.5, (1 - p**2) ** 0.5)
    first, second = (torch.full((2, 1, 1, 1), value) for value in (alpha, sigma))
    out = renoised(p * x0 + q * eps, alpha * x0 + sigma * eps, x0, first, second, noise)
    mean = x0.mean(dim=(2, 3), keepdim=True)
    size = eps.flatten(1).square().mean(dim=1).sqrt().view(2, 1, 1, 1)
    torch.testing.assert_close(out, p * mean + q * size * noise, atol=1e-4, rtol=1e-4)


def test_fresh_noise_comes_where_the_level_rises_and_a_high_last_estimate_becomes_flat(pipe: Any) -> None:
    settings = {"answer": "renoise", "escalation": "evidence", "patience": 2}
    bare = call(pipe, ["a"], steps=8)
    silent, decision = images_by_step(pipe, guard_of(**settings), 8)
    assert torch.equal(silent[-1], bare) and "Fresh noise" not in decision.message
    high, decision = images_by_step(pipe, guard_of(script(5.0), **settings), 8)
    assert "Fresh noise" in decision.message and decision.unresolved
    assert float(high[-1].flatten(2).std(dim=2).max()) < 0.02  # one value a channel, but for the last level's noise
    once, decision = images_by_step(pipe, guard_of(script(5.0, 5.0, -5.0), **settings), 8)
    assert "after 1 of the steps" in decision.message and not torch.allclose(once[1], high[0], atol=1e-3)
    assert float(once[-1].flatten(2).std(dim=2).min()) > 0.1


def test_fresh_noise_of_a_batch_is_that_of_single_runs(pipe: Any) -> None:
    def image(x0: Tensor, t: Any) -> list[float]:
        return [5.0 if float(row[0, 0, 0]) > 0 else -5.0 for row in x0]

    def outputs(prompts: list[str], noise: Tensor) -> Tensor:
        with attach(pipe, guard_of(image, answer="renoise", escalation="evidence")):
            return call(pipe, prompts, latents=noise)

    noise = latents(3)
    whole = outputs(["a", "b", "c"], noise)
    parts = torch.cat([outputs([name], noise[i : i + 1]) for i, name in enumerate("abc")])
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_fresh_noise_on_other_layouts(name: str) -> None:
    network, pipe, case = redirector(name), pipeline(name), PIPELINES[name]
    changes = {"prompt_threshold": 1e6, "image_threshold": -1e6, "use_image": True, "answer": "renoise"}
    with attach(pipe, always(network, escalation="evidence", **changes)) as attached:
        out = run(case, pipe, steps=2)
    assert bool(torch.isfinite(out).all()) and "Fresh noise" in attached.decisions[0].message


def test_settings_are_what_a_guard_is_made_of() -> None:
    plain = SafeRedirConfig(concept="star")
    assert {name: getattr(plain, name) for name in SafeRedirConfig.options} == dict(SafeRedirConfig.options)  # all off
    assert not set(SafeRedirConfig.options) & set(plain.settings())
    for changes in ({"latents_test": "refuse"}, {"image_threshold": 0.5}, {"measured": {"image_recall": 0.5}}):
        assert plain.settings() != replace(plain, **changes).settings()


@pytest.mark.parametrize(
    ("name", "settings"), [("PNDMScheduler", {"skip_prk_steps": True}), ("HeunDiscreteScheduler", {})]
)
def test_a_short_run_is_counted_in_steps_whatever_its_denoiser_calls(
    pipe: Any, name: str, settings: dict[str, Any]
) -> None:
    """PNDM and Heun call the denoiser more often than they take steps; the last verdict is weak by steps, too."""
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **settings)
    for steps, limit in ((3, 2.5), (4, 4.0)):
        _, decision = images_by_step(pipe, guard_of(script(-5.0), image_threshold=4.0, last_threshold=1.0), steps)
        assert decision.thresholds["image"] == limit, steps
