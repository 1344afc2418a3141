"""The seam on other families than Stable Diffusion 1: what it must refuse, and what it must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.test_attach import CONFIG, Redirect, Watcher
from tests.tiny_pipelines import PIPELINES, run

import saferedir as sr
from saferedir.guard import Conditioning, Guard, GuardConfig, Step
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.seam.session import negative_weight


class Erase(Guard[GuardConfig]):
    """Zeroes every conditional embedding: whatever is drawn then does not come from the prompt."""

    method = "erase"

    def on_step_start(self, step: Step) -> Conditioning:
        return step.conditioning.with_cond(prompt=torch.zeros_like(step.prompt_embeds))


@pytest.mark.parametrize("name", ["pixart-sigma", "sana", "lumina2"])
def test_a_mask_that_hides_every_token_is_refused(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    watcher = Watcher()
    with sr.attach(pipe, watcher):
        run(case, pipe)
    step = watcher.runs[0][1].steps[0]
    embeds = {"prompt_embeds": step.prompt_embeds, "prompt_attention_mask": torch.zeros_like(step.prompt_mask).long()}
    with sr.attach(pipe, Redirect([True])), pytest.raises(sr.GuardError, match="leaves no token"):
        run(case, pipe, None, **case.unguided, **embeds)


@pytest.mark.parametrize("scale", [0.0, -5.0])
def test_guidance_that_lets_the_negative_prompt_draw_is_refused(scale: float) -> None:
    case = PIPELINES["wan-2.2"]
    settings = {"negative_prompt": "a star", "guidance_scale": 1.0001, "guidance_scale_2": scale}
    pipe = case.build()
    with sr.attach(pipe, Erase(CONFIG)), pytest.raises(sr.GuardError, match="negative prompt shape"):
        run(case, pipe, "", **settings)
    with sr.attach(pipe, Erase(CONFIG)):
        run(case, pipe, "", **{**settings, "guidance_scale_2": 3.0})


@pytest.mark.parametrize("scale", [-3.0, 0.0, 0.5, 1.0, 1.5, 7.5])
def test_the_negative_weight_is_that_of_classifier_free_guidance(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 2, 4, 8, 8, generator=generator)
    pred = uncond + scale * (cond - uncond)
    expected = (1 - scale) / (abs(1 - scale) + abs(scale))
    torch.testing.assert_close(negative_weight(pred, cond, uncond), torch.full((2,), expected, dtype=torch.float64))
    torch.testing.assert_close(negative_weight(0.3 * pred, cond, uncond), negative_weight(pred, cond, uncond))
    assert (negative_weight(pred, cond, cond) == 0).all()


def test_two_unguided_images_from_equal_noise_are_two_images() -> None:
    case = PIPELINES["pixart-sigma"]
    pipe = case.build()
    settings = {**case.unguided, "seeds": [0, 0]}
    bare = run(case, pipe, ["a", "b"], **settings)
    with sr.attach(pipe, Watcher()) as attached:
        assert torch.equal(run(case, pipe, ["a", "b"], **settings), bare) and len(attached.decisions) == 2


def test_a_missing_transformer_is_named() -> None:
    pipe = PIPELINES["wan-2.2"].build()
    pipe.transformer = None
    with pytest.raises(sr.UnsupportedPipelineError, match="has no transformer"):
        sr.attach(pipe, Watcher())


def test_a_shared_controlnet_is_refused() -> None:
    first, second = (PIPELINES["sd-controlnet"].build() for _ in range(2))
    second.controlnet = first.controlnet
    with sr.attach(first, Watcher()), pytest.raises(sr.AlreadyAttachedError, match="controlnet"):
        sr.attach(second, Watcher())
    with sr.attach(second, Watcher()):
        pass


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart-sigma"])
def test_fused_projections_are_the_same_backbone(name: str) -> None:
    pipe = PIPELINES[name].build()
    before = backbone_fingerprint(pipe)
    getattr(pipe, "unet", getattr(pipe, "transformer", None)).fuse_qkv_projections()
    assert backbone_fingerprint(pipe) == before


def test_packed_weights_are_not_compared() -> None:
    pipe = PIPELINES["flux"].build()
    before = backbone_fingerprint(pipe)
    packed = torch.nn.Parameter(torch.zeros(7, 1, dtype=torch.uint8), requires_grad=False)
    pipe.transformer.x_embedder.weight = packed
    after = backbone_fingerprint(pipe)
    assert before["architecture"]["shapes"] is not None and after["architecture"]["shapes"] is None
    assert after["weights"]["transformer"] is None


def test_detach_frees_a_pipeline_whose_handle_is_lost(pipe: Any) -> None:
    sr.protect(pipe, Watcher())
    sr.detach(pipe)
    protected = sr.protect(pipe, Watcher())
    for wrong in (lambda: sr.attach(protected, Watcher()), lambda: sr.protect(protected, Watcher())):
        with pytest.raises(sr.GuardError, match="protected already"):
            wrong()
    sr.detach(protected)
    assert not pipe.unet._forward_pre_hooks


def test_a_replaced_module_is_no_longer_attached(pipe: Any) -> None:
    from tests.conftest import make_unet

    with sr.attach(pipe, Watcher()) as attached:
        assert attached.is_attached
        pipe.unet = make_unet()
        assert not attached.is_attached


def test_a_function_with_a_self_of_its_own_is_not_the_pipeline(pipe: Any) -> None:
    def own_loop(self: Any) -> None:
        self.scheduler.set_timesteps(2)
        self.unet(torch.zeros(1, 4, 8, 8), 999, encoder_hidden_states=torch.zeros(1, 77, 32))

    with sr.attach(pipe, Redirect([True])):
        with pytest.raises(sr.GuardError, match="outside a call"):
            own_loop(pipe)


def test_pooled_embeddings_changed_by_a_callback_are_seen_at_once() -> None:
    case = PIPELINES["sdxl"]
    pipe, seen = case.build(), []

    class Look(Guard[GuardConfig]):
        def on_step_start(self, step: Step) -> torch.Tensor:
            seen.append(step.pooled.detach().clone())
            return step.prompt_embeds

    def callback(pipe: Any, index: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"add_text_embeds": values["add_text_embeds"] + 1} if index == 0 else {}

    with sr.attach(pipe, Look(CONFIG)):
        run(case, pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["add_text_embeds"])
    torch.testing.assert_close(seen[1], seen[0] + 1)
    assert torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("name", PIPELINES)
def test_on_prompt_is_asked_once_a_run(name: str) -> None:
    case, calls = PIPELINES[name], []

    class Count(Guard[GuardConfig]):
        def on_prompt(self, step: Step) -> torch.Tensor:
            calls.append(step.index)
            return step.prompt_embeds

    pipe = case.build()
    with sr.attach(pipe, Count(CONFIG)):
        run(case, pipe)
    assert calls == [0]
