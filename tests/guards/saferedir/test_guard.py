"""SafeRedir as a guard: what follows from docs/methods/saferedir.md (1) to (8) and (15), on a tiny pipeline.

Scripted networks stand in for trained ones, so that every expectation is a count or an identity.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.conftest import LATENT_SHAPE, PROMPT_WIDTH, make_pipeline
from torch import Tensor

from saferedir import Guard, GuardError, attach
from saferedir.guards.saferedir import Redirector, RedirectorConfig, SafeRedir, SafeRedirConfig
from saferedir.guards.saferedir.network import Redirection
from saferedir.guards.saferedir.reference import RedirectorOutput

STEPS = 50
NETWORK = {
    "prompt_dim": PROMPT_WIDTH,
    "latent_channels": 4,
    "concepts": ["thing"],
    "width": 32,
    "heads": 2,
    "hidden": 32,
}


class ScriptedReference(torch.nn.Module):
    """A reference redirector that says what a list says, one verdict per check."""

    def __init__(self, verdicts: list[bool] | None = None) -> None:
        super().__init__()
        self.verdicts, self.seen_times, self.seen_embeds = verdicts, [], []  # type: ignore[var-annotated]

    def forward(self, latent: Tensor, embeds: Tensor, t: Tensor) -> RedirectorOutput:
        check = len(self.seen_times)
        self.seen_times.append(float(t[0]))
        self.seen_embeds.append(embeds.clone())
        unsafe = self.verdicts is None or (check < len(self.verdicts) and self.verdicts[check])
        logits = torch.tensor([[0.0, 1.0 if unsafe else -1.0]]).expand(len(embeds), 2)
        return RedirectorOutput(
            logits, torch.ones_like(embeds), torch.ones(embeds.shape[:2]), torch.full((*embeds.shape[:2], 1), 0.5)
        )


class ScriptedNetwork(Redirector):
    """A default redirector with chosen scores: `prompt(embeds)` and `image(x0, t)` give (B,) logits."""

    def __init__(self, prompt: Any = None, image: Any = None) -> None:
        torch.manual_seed(0)
        super().__init__(RedirectorConfig.from_dict(NETWORK))
        self._prompt, self._image = prompt, image

    def prompt_logits(self, prompt_embeds: Tensor, prompt_mask: Any = None, pooled: Any = None) -> Tensor:
        if self._prompt is None:
            return torch.full((len(prompt_embeds), 1), -5.0)
        return torch.as_tensor(self._prompt(prompt_embeds), dtype=torch.float32).reshape(-1, 1)

    def image_logits(self, latent: Tensor, timestep: Any) -> Tensor:
        if self._image is None:
            return torch.full((len(latent), 1), -5.0)
        return torch.as_tensor(self._image(latent, timestep), dtype=torch.float32).reshape(-1, 1)


def config(**changes: Any) -> SafeRedirConfig:
    return SafeRedirConfig(concept="thing", network=NETWORK, **changes)


def faithful(network: ScriptedReference, **changes: Any) -> SafeRedir:
    return SafeRedir(SafeRedirConfig(concept="thing", mode="faithful", scale=1.25, **changes), network)


def latents(count: int) -> Tensor:
    return torch.randn(count, *LATENT_SHAPE, generator=torch.Generator().manual_seed(3))


def call(pipe: Any, prompts: list[str], steps: int = 4, **kwargs: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "latents": latents(len(prompts)), "num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "latent",
    }  # fmt: skip
    out: Tensor = pipe(prompts, **{**arguments, **kwargs}).images
    return out


@pytest.fixture
def pipe() -> Any:
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("replace_steps", [2, 1, 0])
def test_p9_faithful_checks_at_the_released_steps(pipe: Any, replace_steps: int) -> None:
    network, checks = ScriptedReference(), range(0, STEPS, replace_steps + 1)
    with attach(pipe, faithful(network, replace_steps=replace_steps)):
        call(pipe, ["a"], steps=STEPS)
    times = pipe.scheduler.timesteps.tolist()
    assert network.seen_times == [times[i] for i in checks]


def test_p9_carried_countdown_makes_results_depend_on_order_and_ours_does_not(pipe: Any) -> None:
    for carry, counts in ((True, [17, 17, 16]), (False, [17, 17, 17])):
        network = ScriptedReference()
        with attach(pipe, faithful(network, replace_steps=2, carry_countdown=carry)):
            seen = []
            for _ in range(3):
                before = len(network.seen_times)
                call(pipe, ["a"], steps=STEPS)
                seen.append(len(network.seen_times) - before)
        assert seen == counts


def test_p10_faithful_keeps_a_redirection_after_a_safe_verdict(pipe: Any) -> None:
    network = ScriptedReference([True, False, False, False])
    with attach(pipe, faithful(network, replace_steps=0)) as attached:
        call(pipe, ["a"], steps=4)
    assert attached.decisions[0].steps_redirected == 3  # acts from step 1 on, never undone
    assert not torch.equal(network.seen_embeds[1], network.seen_embeds[0])  # reads the redirected embedding
    assert torch.equal(network.seen_embeds[2], network.seen_embeds[1])


@pytest.mark.parametrize(("verdicts", "acted"), [([True], 0), ([False, True], 0), ([True, True], 1)])
def test_faithful_claims_no_redirection_that_came_too_late(verdicts: list[bool], acted: int, pipe: Any) -> None:
    """What the last check finds, no call is left to redirect: the image is the unguarded one, and is called unresolved."""
    plain = call(pipe, ["a"], steps=len(verdicts))
    with attach(pipe, faithful(ScriptedReference(verdicts), replace_steps=0)) as attached:
        image = call(pipe, ["a"], steps=len(verdicts))
    decision = attached.decisions[0]
    assert decision.steps_redirected == acted and decision.fired == bool(acted) and decision.unresolved != bool(acted)
    assert torch.equal(image, plain) != bool(acted)
    assert ("no call was left" in decision.message) != bool(acted)
    assert (decision.action, decision.first_fired_step) == (("redirected", 0) if acted else ("none", None))


def test_p8_faithful_shift_has_the_length_of_the_paper(pipe: Any) -> None:
    network = ScriptedReference()
    with attach(pipe, faithful(network, replace_steps=0)):
        call(pipe, ["a"], steps=2)
    e0, e = network.seen_embeds[0], network.seen_embeds[1]
    torch.testing.assert_close((e - e0).norm(dim=-1), 1.25 * 0.5 * e0.norm(dim=-1), rtol=1e-5, atol=1e-6)


def test_p10_never_unsafe_changes_no_bit(pipe: Any) -> None:
    plain = call(pipe, ["a", "b"])
    for guard in (SafeRedir(config(), ScriptedNetwork()), faithful(ScriptedReference([]))):
        with attach(pipe, guard) as attached:
            assert torch.equal(call(pipe, ["a", "b"]), plain)
        assert [d.action for d in attached.decisions] == ["none", "none"]


def test_p10_default_gives_up_a_prompt_verdict_after_patience(pipe: Any) -> None:
    """The prompt embeddings turn harmless at step 2 (a user callback); three checks later the redirection ends."""
    network = ScriptedNetwork(prompt=lambda e: 5.0 if float(e.abs().sum()) > 0 else -5.0)

    def callback(pipe: Any, step: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": torch.zeros_like(values["prompt_embeds"])} if step == 1 else {}

    with attach(pipe, SafeRedir(config(patience=3, use_image=False), network)) as attached:
        call(pipe, ["a"], steps=8, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    decision = attached.decisions[0]
    assert decision.prompt_scores == (5.0, 5.0, *[-5.0] * 6)
    assert decision.steps_redirected == 4  # steps 0, 1 unsafe, 2 and 3 within patience, given up at the third check


def test_p10_image_verdicts_are_sticky_and_act_from_the_next_step(pipe: Any) -> None:
    network = ScriptedNetwork(image=lambda x0, t: [5.0 if float(t[0]) > 900 else -5.0] * len(x0))
    with attach(pipe, SafeRedir(config(), network)) as attached:
        call(pipe, ["a"], steps=10)
    assert attached.decisions[0].first_fired_step == 1
    assert attached.decisions[0].steps_redirected == 9


@pytest.mark.parametrize("steps", [7, 8, 9, 10, 11, 12])
def test_an_image_verdict_that_stays_high_escalates_to_the_anchor_and_stays_unresolved(pipe: Any, steps: int) -> None:
    network = ScriptedNetwork(image=lambda x0, t: [5.0] * len(x0))
    anchor = torch.full((77, PROMPT_WIDTH), 0.25)
    seen: list[Tensor] = []
    with attach(pipe, SafeRedir(config(patience=2), network, anchor=anchor)) as attached:
        pipe.unet.register_forward_pre_hook(lambda m, a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True)
        call(pipe, ["a"], steps=steps)
    assert torch.equal(seen[-1][-1], anchor)
    assert attached.decisions[0].action == "escalated"
    assert attached.decisions[0].unresolved and "block this image" in attached.decisions[0].message


def test_an_image_verdict_of_the_last_step_is_told_although_nothing_was_redirected(pipe: Any) -> None:
    network = ScriptedNetwork(image=lambda x0, t: [5.0 if float(t[0]) < 100 else -5.0] * len(x0))
    with attach(pipe, SafeRedir(config(), network)) as attached:
        call(pipe, ["a"], steps=10)
    decision = attached.decisions[0]
    assert not decision.fired and decision.unresolved and "block this image" in decision.message


@pytest.mark.parametrize("replace_steps", [1, 2, 3, 9])
@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_the_last_estimate_is_scored_whatever_is_skipped(pipe: Any, steps: int, replace_steps: int) -> None:
    scores: list[float] = []

    def score(x0: Tensor, t: Tensor) -> list[float]:
        scores.append(float(t[0]))
        return [5.0 if float(t[0]) == last else -5.0] * len(x0)

    pipe.scheduler.set_timesteps(steps)
    last = float(pipe.scheduler.timesteps[-1])
    for threshold, unresolved in ((None, True), (4.0, True), (6.0, False)):
        scores.clear()
        guard = SafeRedir(config(replace_steps=replace_steps, last_threshold=threshold), ScriptedNetwork(image=score))
        with attach(pipe, guard) as attached:
            call(pipe, ["a"], steps=steps)
        assert scores[-1] == last and len(scores) <= 2 + (steps - 1) // (replace_steps + 1)
        assert attached.decisions[0].unresolved == unresolved


def test_embeddings_written_in_place_are_scored_again(pipe: Any) -> None:
    network = ScriptedNetwork(prompt=lambda e: 5.0 if float(e.abs().sum()) == 0 else -5.0)

    def callback(pipe: Any, step: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 1:
            values["prompt_embeds"].zero_()
        return {}

    with attach(pipe, SafeRedir(config(use_image=False), network)) as attached:
        call(pipe, ["a"], steps=4, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert attached.decisions[0].prompt_scores == (-5.0, -5.0, 5.0, 5.0)
    assert attached.decisions[0].first_fired_step == 2


def test_a_guard_without_weights_refuses_to_run(pipe: Any) -> None:
    with attach(pipe, SafeRedir(config())), pytest.raises(GuardError, match="no weights"):
        call(pipe, ["a"])


def test_a_network_of_several_concepts_is_refused() -> None:
    network = Redirector(RedirectorConfig.from_dict({**NETWORK, "concepts": ["a", "b"]}))
    with pytest.raises(GuardError, match="one concept"):
        SafeRedir(config(), network)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1.0", True])
def test_thresholds_must_be_finite_numbers(value: Any) -> None:
    with pytest.raises(GuardError, match="finite number"):
        config(prompt_threshold=value)


def test_p11_the_unconditional_half_is_never_touched(pipe: Any) -> None:
    seen: list[Tensor] = []
    with attach(pipe, SafeRedir(config(), ScriptedNetwork(prompt=lambda e: [5.0] * len(e)))):
        handle = pipe.unet.register_forward_pre_hook(
            lambda m, a, k: seen.append(k["encoder_hidden_states"].clone()), with_kwargs=True
        )
        call(pipe, ["a", "b"], steps=2)
        handle.remove()
    negative = pipe.encode_prompt("", "cpu", 2, False)[0]
    assert torch.equal(seen[0][:2], negative)
    raw = pipe.encode_prompt(["a", "b"], "cpu", 1, False)[0]
    assert not torch.equal(seen[0][2:], raw)  # P16: redirected at the very first call
    assert torch.equal(seen[0][2:, 0], raw[:, 0])  # the start token is exempt


def test_p16_faithful_leaves_the_first_call_raw(pipe: Any) -> None:
    seen: list[Tensor] = []
    with attach(pipe, faithful(ScriptedReference())):
        pipe.unet.register_forward_pre_hook(
            lambda m, a, k: seen.append(k["encoder_hidden_states"].clone()), with_kwargs=True
        )
        call(pipe, ["a"], steps=2)
    raw = pipe.encode_prompt(["a"], "cpu", 1, False)[0]
    assert torch.equal(seen[0][1:], raw)
    assert not torch.equal(seen[1][1:], raw)


def by_first_letter(pipe: Any, letter: str) -> Any:
    """A prompt score that is high for prompts starting with `letter`."""
    wanted = pipe.encode_prompt([letter], "cpu", 1, False)[0][0, 1]
    return lambda e: torch.where((e[:, 1] - wanted).norm(dim=-1) < 1e-4, 5.0, -5.0)


def test_p12_a_row_does_not_depend_on_its_neighbours(pipe: Any) -> None:
    network = ScriptedNetwork(prompt=by_first_letter(pipe, "x"))
    guard = SafeRedir(config(), network)
    prompts, noise = ["x one", "b two", "x three", "d"], latents(4)
    plain = call(pipe, prompts, latents=noise)
    with attach(pipe, guard) as attached:
        mixed = call(pipe, prompts, latents=noise)
        assert [d.fired for d in attached.decisions] == [True, False, True, False]
        order = [2, 0, 3, 1]
        permuted = call(pipe, [prompts[i] for i in order], latents=noise[order])
        singles = torch.cat([call(pipe, [p], latents=noise[i : i + 1]) for i, p in enumerate(prompts)])
    assert torch.equal(mixed[1], plain[1]) and torch.equal(mixed[3], plain[3])
    torch.testing.assert_close(mixed[order], permuted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixed, singles, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "how",
    [{"num_images_per_prompt": 2, "latents": None}, {"guidance_scale": 1.0}, {"negative_prompt": ["c", "d"]}],
    ids=["images per prompt", "no guidance", "negative prompt"],
)
def test_every_way_of_calling_is_guarded(pipe: Any, how: dict[str, Any]) -> None:
    guard = SafeRedir(config(), ScriptedNetwork(prompt=by_first_letter(pipe, "x")))
    with attach(pipe, guard) as attached:
        images = call(pipe, ["x", "b"], **how)
    expected = [True, True, False, False] if "num_images_per_prompt" in how else [True, False]
    assert [d.fired for d in attached.decisions] == expected
    assert len(images) == len(expected)


@pytest.mark.parametrize("gate", ["soft", "straight_through"])
def test_p15_gradients_reach_embeddings_and_latents_through_the_guard(gate: str) -> None:
    """Non-zero gradients of a whole guarded run; the float64 gradcheck of the redirection is in test_network.py."""
    torch.manual_seed(0)
    network = Redirector(RedirectorConfig.from_dict(NETWORK)).eval()
    guard = SafeRedir(config(gate=gate, gate_sharpness=1.0), network)
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    embeds = pipe.encode_prompt(["a b"], "cpu", 1, False)[0].detach().requires_grad_()
    noise = latents(1).requires_grad_()
    with attach(pipe, guard):
        run = type(pipe).__call__.__wrapped__  # type: ignore[attr-defined]
        out = run(
            pipe, prompt_embeds=embeds, latents=noise, num_inference_steps=2, guidance_scale=1.0, output_type="latent"
        )
    out.images.square().sum().backward()
    for value in (embeds.grad, noise.grad):
        assert value is not None and torch.isfinite(value).all() and value.abs().sum() > 0


@pytest.mark.parametrize("closed", [True, False])
def test_p18_a_direction_that_is_not_finite_never_reaches_an_image(
    pipe: Any, closed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(ScriptedNetwork):
        def redirection(self, *args: Any, **kwargs: Any) -> Redirection:
            good = super().redirection(*args, **kwargs)
            return replace(good, delta=good.delta * torch.nan)

    guard = SafeRedir(config(fail_closed=closed), Broken(prompt=lambda e: [5.0] * len(e)))
    plain = call(pipe, ["a"])
    with attach(pipe, guard):
        if closed:
            with pytest.raises(GuardError, match="not finite"):
                call(pipe, ["a"])
        else:
            with caplog.at_level(logging.WARNING):
                assert torch.equal(call(pipe, ["a"]), plain)
            assert "not finite" in caplog.text


def test_p18_a_score_that_is_not_finite_stops_the_run(pipe: Any) -> None:
    guard = SafeRedir(config(), ScriptedNetwork(prompt=lambda e: [torch.nan] * len(e)))
    with attach(pipe, guard), pytest.raises(GuardError, match="prompt score"):
        call(pipe, ["a"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_p18_half_precision_pipelines_run(dtype: torch.dtype) -> None:
    pipe = make_pipeline().to(dtype)
    pipe.set_progress_bar_config(disable=True)
    with attach(pipe, SafeRedir(config(), ScriptedNetwork(prompt=lambda e: [5.0] * len(e)))) as attached:
        images = call(pipe, ["a"], latents=latents(1).to(dtype))
    assert images.dtype == dtype and torch.isfinite(images.float()).all()
    assert attached.decisions[0].fired


def test_saving_and_loading_keeps_the_guard(tmp_path: Any, pipe: Any) -> None:
    torch.manual_seed(1)
    guard = SafeRedir(
        config(prompt_threshold=-100.0, scale=0.7), Redirector(RedirectorConfig.from_dict(NETWORK)), torch.ones(77, 32)
    )
    guard.save_pretrained(tmp_path / "guard")
    again = Guard.from_pretrained(tmp_path / "guard")
    assert isinstance(again, SafeRedir)
    assert again.config.scale == 0.7 and torch.equal(again.anchor, guard.anchor)
    images = []
    for one in (guard, again):
        with attach(pipe, one):
            images.append(call(pipe, ["a"]))
    torch.testing.assert_close(images[0], images[1], atol=2e-3, rtol=1e-2)  # weights travel in float16


def test_foreign_weights_are_refused_with_their_names(tmp_path: Any) -> None:
    guard = SafeRedir(config(), Redirector(RedirectorConfig.from_dict(NETWORK)))
    with pytest.raises(GuardError, match="extra"):
        guard.load_tensors({**guard.tensors(), "extra": torch.zeros(1)})


@pytest.mark.parametrize(
    "change", [{"scale": -1}, {"mode": "x"}, {"patience": 0}, {"use_prompt": False, "use_image": False}]
)
def test_bad_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(GuardError):
        config(**change)
