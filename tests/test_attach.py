"""The seam on a live pipeline: idle guards change no bit, active ones only their rows; it fails closed."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.conftest import LATENT_SHAPE, SCHEDULERS, generate, make_pipeline, make_scheduler, make_unet
from torch import Tensor

import saferedir as sr
from saferedir.attach import detach
from saferedir.guard import Conditioning, Guard, GuardConfig, Run, Step
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.schedules import to_x0

CONFIG = GuardConfig(concept="star")


@dataclass
class Log:
    """State of the scripted guards: what they saw, one list per point of intervention."""

    steps: list[Step] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)


class Watcher(Guard[GuardConfig]):
    """Uses every point of intervention and touches nothing."""

    method = "watcher"

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.runs: list[tuple[Run, Log]] = []

    def start(self, run: Run) -> Log:
        self.runs.append((run, Log()))
        return self.runs[-1][1]

    def on_prompt(self, step: Step) -> Tensor:
        return step.prompt_embeds

    def on_step_start(self, step: Step) -> Tensor:
        step.state.steps.append(step)
        return step.prompt_embeds

    def on_prediction(self, step: Step) -> Tensor:
        return step.pred

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        step.state.x0.append(x0)
        step.state.steps[-1] = step
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        return latents


class Redirect(Guard[GuardConfig]):
    """Moves the prompt embeddings of chosen rows towards zero, at every step."""

    method = "redirect"

    def __init__(self, rows: list[bool], uncond: bool = False) -> None:
        super().__init__(CONFIG)
        self.rows, self.uncond = torch.tensor(rows), uncond

    def on_step_start(self, step: Step) -> Tensor | Conditioning:
        rows = self.rows[:, None, None]
        prompt = torch.where(rows, 0.1 * step.prompt_embeds, step.prompt_embeds)
        if not self.uncond or step.negative_prompt_embeds is None:
            return prompt
        negative = torch.where(rows, 0.1 * step.negative_prompt_embeds, step.negative_prompt_embeds)
        return step.conditioning.with_cond(prompt=prompt).with_uncond(prompt=negative)


class Failing(Guard[GuardConfig]):
    """Raises, or returns NaN, at one step of its first run."""

    method = "failing"

    def __init__(self, at: int, how: str = "raise") -> None:
        super().__init__(CONFIG)
        self.at, self.how, self.armed = at, how, True

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        if self.armed and step.index == self.at:
            self.armed = False
            if self.how == "raise":
                raise ZeroDivisionError("scripted")
            return x0 * float("nan")
        return x0


def is_clean(pipe: Any) -> bool:
    """Whether nothing of ours is left on the pipeline."""
    scheduler, unet = pipe.scheduler, pipe.unet
    left = [unet._forward_hooks, unet._forward_pre_hooks, unet._forward_hooks_with_kwargs]
    return not {"step", "set_timesteps"} & set(scheduler.__dict__) and not any(left)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_watching_guard_changes_no_bit_under_any_scheduler(name: str) -> None:
    pipe, settings = make_pipeline(name), {"eta": 0.5} if name == "ddim-eta" else {}
    bare = generate(pipe, **settings)
    watcher = Watcher()
    with sr.attach(pipe, watcher) as attached:
        assert torch.equal(generate(pipe, **settings), bare)
        assert attached.runs == 1 and len(attached.decisions) == 1
    assert torch.equal(generate(pipe, **settings), bare) and is_clean(pipe)
    run, log = watcher.runs[0]
    assert len(log.x0) == run.num_evaluations and log.steps[-1].index == run.num_steps - 1
    for step, x0 in zip(log.steps, log.x0, strict=True):
        assert torch.isfinite(x0).all() and x0.dtype == step.t.dtype == torch.float32
        assert step.prompt_mask.all() and step.prompt_mask.shape == step.prompt_embeds.shape[:2]
        norm = (step.alpha**2 + step.sigma**2).sqrt()
        if float(norm.flatten()[0]) > 1.001:  # variance exploding: the model's input is scaled
            torch.testing.assert_close(step.x_t, step.model_input * norm, rtol=1e-5, atol=1e-5)
    assert log.steps[0].x0_previous is None and torch.equal(log.steps[-1].x0_previous, log.x0[-2])


@pytest.mark.parametrize("settings", [
    {"guidance_scale": 1.0},
    {"guidance_rescale": 0.7},
    {"num_images_per_prompt": 2},
    {"prompt": ["a star", "b", "c"]},
    {"prompt": ["a star", "b"], "num_images_per_prompt": 2, "negative_prompt": ["bad", "b"]},
    {"prompt_embeds": torch.ones(2, 77, 32), "negative_prompt_embeds": torch.zeros(2, 77, 32)},
    {"output_type": "np"},
])  # fmt: skip
def test_a_watching_guard_changes_no_bit_however_the_pipeline_is_called(settings: dict[str, Any], pipe: Any) -> None:
    bare, watcher = generate(pipe, **settings), Watcher()
    with sr.attach(pipe, watcher) as attached:
        guarded = generate(pipe, **settings)
    assert torch.equal(torch.as_tensor(guarded), torch.as_tensor(bare))
    run, log = watcher.runs[0]
    assert run.batch_size == len(bare) == len(attached.decisions)
    assert run.guided == (settings.get("guidance_scale") != 1.0) == (log.steps[0].pred_uncond is not None)
    assert [decision.image for decision in attached.decisions] == list(range(len(bare)))


def test_bfloat16_pipelines_are_served_in_their_own_dtype() -> None:
    pipe = make_pipeline(dtype=torch.bfloat16)
    bare = generate(pipe)
    with sr.attach(pipe, Watcher()):
        assert torch.equal(generate(pipe), bare)
    with sr.attach(pipe, Redirect([True])):
        changed = generate(pipe)
    assert changed.dtype == torch.bfloat16 and not torch.equal(changed, bare)


def test_redirecting_one_row_leaves_the_others_exactly_as_they_were(pipe: Any) -> None:
    prompts = ["a star", "b moon"]
    bare = generate(pipe, prompts)
    with sr.attach(pipe, Redirect([True, False])):
        mixed = generate(pipe, prompts)
    assert torch.equal(mixed[1], bare[1]) and not torch.equal(mixed[0], bare[0])
    with sr.attach(pipe, Redirect([True])):
        alone = generate(pipe, "a star")
    torch.testing.assert_close(mixed[:1], alone, rtol=1e-5, atol=1e-5)


def test_both_halves_of_guidance_can_be_redirected(pipe: Any) -> None:
    seen: list[Tensor] = []
    pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    bare = generate(pipe)
    given = seen[0]
    outputs = []
    for uncond in (False, True):
        seen.clear()
        with sr.attach(pipe, Redirect([True], uncond=uncond)):
            pipe.unet._forward_pre_hooks.move_to_end(next(iter(pipe.unet._forward_pre_hooks)))
            outputs.append(generate(pipe))
        assert torch.equal(seen[0][1], 0.1 * given[1])
        assert torch.equal(seen[0][0], (0.1 if uncond else 1.0) * given[0])
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], bare)


def test_on_prompt_holds_for_the_whole_run_and_protects_step_0(pipe: Any) -> None:
    class Once(Guard[GuardConfig]):
        calls = 0

        def on_prompt(self, step: Step) -> Tensor:
            self.calls += 1
            return 0.1 * step.prompt_embeds

    once = Once(CONFIG)
    with sr.attach(pipe, once):
        from_prompt = generate(pipe)
    with sr.attach(pipe, Redirect([True])):
        assert torch.equal(generate(pipe), from_prompt)
    assert once.calls == 1


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "heun", "unipc-flow"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_edited_x0_is_what_the_scheduler_then_sees(name: str, kind: str) -> None:
    class Zero(Guard[GuardConfig]):
        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            return torch.where(torch.tensor([True, False])[:, None, None, None], torch.zeros_like(x0), x0)

    scheduler = make_scheduler(name) if "flow" in name else make_scheduler(name, prediction_type=kind)
    pipe, watcher = make_pipeline(scheduler), Watcher()
    bare = generate(pipe, ["a", "b"])
    with sr.attach(pipe, [Zero(CONFIG), watcher]):
        edited = generate(pipe, ["a", "b"])
    assert torch.equal(edited[1], bare[1])
    last = watcher.runs[0][1].steps[-1]
    meant = to_x0(last.run.prediction_type, last.pred, last.x_t, last.alpha, last.sigma)
    assert meant[0].abs().max() < 1e-4 and last.x0[0].abs().max() == 0


def test_extra_prompts_ride_along_and_arrive_at_their_guard(pipe: Any) -> None:
    class Extra(Watcher):
        def extra_prompts(self, run: Run) -> list[str]:
            return ["a star", "b moon"]

    extra = Extra()
    bare = generate(pipe, ["a star", "c"])
    with sr.attach(pipe, [Watcher(), extra]):
        torch.testing.assert_close(generate(pipe, ["a star", "c"]), bare, rtol=1e-4, atol=1e-4)
    step = extra.runs[0][1].steps[0]
    assert len(step.pred_extra) == 2 and step.pred_extra[0].shape == step.pred_cond.shape
    torch.testing.assert_close(step.pred_extra[0][0], step.pred_cond[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(step.pred_extra[1][0], step.pred_cond[0])


def test_a_disabled_guard_is_not_called(pipe: Any) -> None:
    guard = Failing(0)
    guard.enabled = False
    bare = generate(pipe)
    with sr.attach(pipe, guard) as attached:
        assert torch.equal(generate(pipe), bare) and attached.decisions == []


@pytest.mark.parametrize("how", ["raise", "nan"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_failing_guard_fails_closed_and_the_next_run_works(how: str, at: int, pipe: Any) -> None:
    bare, guard = generate(pipe, ["a", "b"]), Failing(at, how)
    with sr.attach(pipe, guard) as attached:
        with pytest.raises(sr.GuardError) as caught:
            generate(pipe)
        assert (how == "raise") == isinstance(caught.value.__cause__, ZeroDivisionError)
        assert attached.decisions == [] and attached.runs == 0
        assert torch.equal(generate(pipe, ["a", "b"]), bare)  # and another batch size at that
        assert attached.runs == 1


@pytest.mark.parametrize("answer", [None, torch.zeros(1, 3, 32), "text"])
def test_a_misfit_answer_of_a_guard_is_an_error(answer: Any, pipe: Any) -> None:
    class Misfit(Guard[GuardConfig]):
        def on_step_start(self, step: Step) -> Any:
            return answer

    with sr.attach(pipe, Misfit(CONFIG)), pytest.raises(sr.GuardError, match="on_step_start"):
        generate(pipe)


def test_nan_predictions_are_refused_even_if_no_guard_looks(pipe: Any) -> None:
    with torch.no_grad():
        next(pipe.unet.parameters()).fill_(float("nan"))
    with sr.attach(pipe, Redirect([False])), pytest.raises(sr.GuardError, match="NaN"):
        generate(pipe)


def test_a_swapped_scheduler_is_guarded_and_the_old_one_left_clean(pipe: Any) -> None:
    with sr.attach(pipe, Redirect([True])) as attached:
        old, pipe.scheduler = pipe.scheduler, make_scheduler("euler")
        guarded = generate(pipe)
        assert attached.runs == 1 and "step" not in old.__dict__
    assert is_clean(pipe) and not torch.equal(generate(pipe), guarded)


def test_a_replaced_unet_cannot_run_unguarded(pipe: Any) -> None:
    with sr.attach(pipe, Watcher()):
        pipe.unet = make_unet()
        with pytest.raises(sr.GuardError, match="replaced"):
            generate(pipe)


def test_attachments_nest_and_detach_in_any_order(pipe: Any) -> None:
    bare = generate(pipe)
    handles = [sr.attach(pipe, Watcher()), sr.attach(pipe, Redirect([True])), sr.attach(pipe, Watcher())]
    redirected = generate(pipe)
    assert not torch.equal(redirected, bare) and [handle.runs for handle in handles] == [1, 1, 1]
    handles[0].detach()
    assert torch.equal(generate(pipe), redirected)
    handles[1].detach()
    handles[1].detach()
    assert torch.equal(generate(pipe), bare) and handles[2].runs == 3
    handles[2].detach()
    assert is_clean(pipe) and not handles[2].is_attached


def test_the_same_guard_is_refused_twice(pipe: Any) -> None:
    guard = Watcher()
    with sr.attach(pipe, guard), pytest.raises(sr.AlreadyAttachedError):
        sr.attach(pipe, guard)
    with pytest.raises(sr.AlreadyAttachedError):
        sr.attach(pipe, [guard, guard])
    assert is_clean(pipe)


def test_unsupported_pipelines_and_schedulers_are_left_untouched(pipe: Any) -> None:
    with pytest.raises(sr.UnsupportedPipelineError, match="object is not supported"):
        sr.attach(object(), Watcher())
    pipe.scheduler = type("OddScheduler", (), {"config": {}})()
    with pytest.raises(sr.UnsupportedPipelineError, match="OddScheduler"):
        sr.attach(pipe, Watcher())
    assert is_clean(pipe)


def test_the_users_callback_still_runs(pipe: Any) -> None:
    seen: list[int] = []

    def callback(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return {"latents": values["latents"] * 0.5}

    bare = generate(pipe, callback_on_step_end=callback)
    with sr.attach(pipe, Watcher()):
        assert torch.equal(generate(pipe, callback_on_step_end=callback), bare)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_deep_copy_of_a_guarded_pipeline_refuses_until_it_gets_guards_of_its_own(pipe: Any) -> None:
    bare = generate(pipe)
    with sr.attach(pipe, Watcher()):
        other = copy.deepcopy(pipe)
        with pytest.raises(sr.GuardError, match="copy"):
            generate(other)
        with sr.attach(other, Watcher()) as attached:
            assert torch.equal(generate(other), bare) and attached.runs == 1
        assert torch.equal(generate(pipe), bare)
        third = copy.deepcopy(pipe)
    detach(third)
    assert is_clean(other) and is_clean(third) and torch.equal(generate(third), bare)


def test_gradients_flow_through_the_guarded_loop(pipe: Any) -> None:
    embeds = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with sr.attach(pipe, [Redirect([True]), Watcher()]):
        images = type(pipe).__call__.__wrapped__(  # type: ignore[attr-defined]
            pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros(1, 77, 32), latents=latents,
            num_inference_steps=2, output_type="latent",
        ).images  # fmt: skip
        images.square().sum().backward()
    for leaf in (embeds, latents):
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0


def test_the_denoiser_cannot_be_used_on_its_own_while_guarded(pipe: Any) -> None:
    call = (torch.zeros(1, *LATENT_SHAPE), 1, torch.zeros(1, 77, 32))
    with sr.attach(pipe, Watcher()):
        generate(pipe)
        with pytest.raises(sr.GuardError, match="outside"):
            pipe.unet(*call)
    pipe.unet(*call)


def test_two_threads_on_one_pipeline_never_get_a_mixed_image(pipe: Any) -> None:
    errors: list[BaseException] = []

    def intrude() -> None:
        try:
            generate(pipe)
        except BaseException as error:
            errors.append(error)

    class Inviting(Watcher):
        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            if threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=intrude)
                thread.start()
                thread.join(timeout=30)
            return x0

    with sr.attach(pipe, Inviting()), pytest.raises(sr.GuardError):
        generate(pipe)


def test_a_guard_of_another_architecture_is_refused_and_edited_weights_only_warn(pipe: Any) -> None:
    guard = Watcher()
    guard.config = GuardConfig(concept="star", backbone=backbone_fingerprint(pipe))
    with sr.attach(pipe, guard):
        pass
    with pytest.raises(sr.BackboneMismatchError, match="shapes"):
        sr.attach(make_pipeline(width=16), guard)
    with sr.attach(make_pipeline(width=16), guard, force=True):
        pass
    assert backbone_fingerprint(make_pipeline())["weights"] == guard.config.backbone["weights"]
    with torch.no_grad():
        pipe.unet.mid_block.attentions[0].proj_in.weight.mul_(1.5)
    with pytest.warns(UserWarning, match="other weights"), sr.attach(pipe, guard):
        pass


def test_copies_of_float16_weights_share_a_fingerprint() -> None:
    half = make_pipeline().to(torch.float16)
    prints = [backbone_fingerprint(half)]
    prints.append(backbone_fingerprint(half.to(torch.float32)))
    prints.append(backbone_fingerprint(half.to(torch.bfloat16)))
    assert prints[0] == prints[1] == prints[2]


@pytest.mark.parametrize("count", [1, 2])
def test_detaching_in_the_middle_of_a_run_fails_it(pipe: Any, count: int) -> None:
    """From a callback; whether it was the last attachment or not, no unguarded image comes out, and nothing is left."""
    attachments = [sr.attach(pipe, Watcher()) for _ in range(count)]

    def callback(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        attachments[0].detach()
        return {}

    with pytest.raises(sr.GuardError):
        generate(pipe, callback_on_step_end=callback)
    for attached in attachments:
        attached.detach()
    assert not pipe.unet._forward_pre_hooks and not pipe.unet._forward_hooks
    assert "step" not in pipe.scheduler.__dict__ and "set_timesteps" not in pipe.scheduler.__dict__
    generate(pipe)


def test_an_exception_inside_the_block_leaves_no_tripwire(pipe: Any) -> None:
    def callback(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), sr.attach(pipe, Watcher()):
        generate(pipe, callback_on_step_end=callback)
    assert not pipe.unet._forward_pre_hooks and "step" not in pipe.scheduler.__dict__
