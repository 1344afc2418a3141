"""DUO as a guard on live pipelines: its LoRA comes and goes, and nothing else changes; it fails closed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

import saferedir as sr
from saferedir.attach import attach, detach
from saferedir.guards.duo import DUO, DUOConfig
from saferedir.guards.duo.config import TARGETS
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.lora import guard_adapters

SD = PIPELINES["sd"]


def make_guard(
    pipe: Any, *, concept: str = "star", seed: int = 0, rank: int = 2, gain: float = 0.3, **config: Any
) -> DUO:
    """A DUO guard with random weights that fits the pipeline."""
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    generator = torch.Generator().manual_seed(seed)
    lora: dict[str, Tensor] = {}
    for name, layer in getattr(pipe, component).named_modules():
        if name.endswith(TARGETS[component]):
            wide, narrow = layer.weight.shape[1], layer.weight.shape[0]
            lora[f"{name}.lora_A.weight"] = gain * torch.randn(rank, wide, generator=generator)
            lora[f"{name}.lora_B.weight"] = gain * torch.randn(narrow, rank, generator=generator)
    settings = {"component": component, "rank": rank, "backbone": backbone_fingerprint(pipe), **config}
    return DUO(DUOConfig(concept=concept, targets=TARGETS[component], **settings), lora)


def weights_of(pipe: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pipe.unet.state_dict().items()}


def user_lora(pipe: Any, seed: int = 9) -> dict[str, Tensor]:
    return make_guard(pipe, seed=seed).tensors()


@pytest.mark.parametrize("name", ["sd", "sd-img2img", "sd3", "sd3-img2img"])
def test_attach_and_detach(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    guard, plain = make_guard(pipe), run(case, pipe)
    denoiser = getattr(pipe, guard.config.component)
    before, attributes = {k: v.clone() for k, v in denoiser.state_dict().items()}, set(vars(denoiser))
    fingerprint = backbone_fingerprint(pipe)
    with attach(pipe, guard) as attached:
        guarded = run(case, pipe)
        assert backbone_fingerprint(pipe) == fingerprint
        (decision,) = attached.decisions
    assert (decision.fired, decision.action, decision.image) == (True, "edited", 0) and "star" in decision.message
    assert not torch.equal(guarded, plain) and torch.equal(run(case, pipe), plain)
    after = denoiser.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert set(vars(denoiser)) == attributes


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_saved_guard_is_an_ordinary_lora_file(name: str, tmp_path: Path) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    folder = make_guard(pipe).save_pretrained(tmp_path / "guard")
    with attach(pipe, sr.Guard.from_pretrained(folder)):
        guarded = run(case, pipe)
    pipe.load_lora_weights(str(folder), weight_name="model.safetensors")
    assert torch.allclose(run(case, pipe), guarded, atol=1e-5)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.allclose(run(case, pipe), guarded, atol=1e-4)


def test_d16_weights_scale_and_add_up() -> None:
    pipe = SD.build()
    plain, first, second = run(SD, pipe), make_guard(pipe), make_guard(pipe, concept="circle", seed=1)
    with attach(pipe, first.with_weight(0.0)) as attached:
        assert torch.equal(run(SD, pipe), plain) and not attached.decisions[0].fired
    with attach(pipe, [first.with_weight(0.5), second.with_weight(2.0)]) as attached:
        both = run(SD, pipe)
        assert [decision.concept for decision in attached.decisions] == ["star", "circle"]
    for guard, weight in ((first, 0.5), (second, 2.0)):
        for name, layer in pipe.unet.named_modules():
            if f"{name}.lora_A.weight" in guard.lora:
                delta = guard.lora[f"{name}.lora_B.weight"] @ guard.lora[f"{name}.lora_A.weight"]
                layer.weight.data += weight * delta
    assert torch.allclose(run(SD, pipe), both, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_detaching_in_any_order(order: tuple[int, ...]) -> None:
    pipe = SD.build()
    plain = run(SD, pipe)
    attachments = [attach(pipe, make_guard(pipe, seed=seed)) for seed in range(3)]
    for count, number in enumerate(order, start=1):
        attachments[number].detach()
        assert len(guard_adapters(pipe.unet)) == 3 - count
    assert torch.equal(run(SD, pipe), plain) and not hasattr(pipe.unet, "peft_config")


def test_user_loras_stay_as_they_were() -> None:
    pipe = SD.build()
    pipe.load_lora_weights(user_lora(pipe), adapter_name="mine")
    pipe.load_lora_weights(user_lora(pipe, seed=8), adapter_name="idle")
    pipe.set_adapters(["mine"], [0.7])
    own, guard = run(SD, pipe), make_guard(pipe)
    trainable = {name: value.requires_grad for name, value in pipe.unet.named_parameters()}
    attached = attach(pipe, guard)
    guarded = run(SD, pipe)
    assert not torch.equal(guarded, own)
    pipe.set_adapters(["mine"], [0.7])  # leaves the guard's out: the next run puts it back
    assert torch.equal(run(SD, pipe), guarded)
    attached.detach()
    assert torch.equal(run(SD, pipe), own) and pipe.get_active_adapters() == ["mine"]
    assert pipe.get_list_adapters() == {"unet": ["mine", "idle"]}
    assert {name: value.requires_grad for name, value in pipe.unet.named_parameters()} == trainable


def test_what_the_user_takes_away_comes_back_before_the_next_run() -> None:
    pipe = SD.build()
    with attach(pipe, make_guard(pipe)):
        guarded = run(SD, pipe)
        pipe.unload_lora_weights()
        assert torch.equal(run(SD, pipe), guarded)
        pipe.delete_adapters(guard_adapters(pipe.unet))
        assert torch.equal(run(SD, pipe), guarded)


def test_switching_loras_off_or_down_is_refused() -> None:
    pipe = SD.build()
    with attach(pipe, make_guard(pipe)):
        for scale in (0.0, 0.5):
            with pytest.raises(sr.GuardError, match="switched off or rescaled"):
                run(SD, pipe, cross_attention_kwargs={"scale": scale})
        pipe.disable_lora()
        with pytest.raises(sr.GuardError, match="call enable_lora"):
            run(SD, pipe)
        pipe.enable_lora()
        pipe.fuse_lora()
        with pytest.raises(sr.GuardError, match="unfuse_lora"):
            run(SD, pipe)
        pipe.unfuse_lora()
        run(SD, pipe)


def test_a_disabled_guard_changes_no_bit_and_may_come_back() -> None:
    pipe = SD.build()
    guard, plain = make_guard(pipe), run(SD, pipe)
    guard.enabled = False
    with attach(pipe, guard) as attached:
        assert torch.equal(run(SD, pipe), plain) and attached.decisions == []
        guard.enabled = True
        assert not torch.equal(run(SD, pipe), plain)
        guard.enabled = False
        assert torch.equal(run(SD, pipe), plain)


def test_a_failed_attach_leaves_the_pipeline_alone() -> None:
    pipe = SD.build()
    good, plain = make_guard(pipe), run(SD, pipe)
    stray = {
        "mid_block.nowhere.to_q.lora_A.weight": torch.ones(2, 16),
        "mid_block.nowhere.to_q.lora_B.weight": torch.ones(16, 2),
    }
    wide = {name: torch.ones(value.shape[0] + (part == "B"), value.shape[1] + (part == "A"))
            for name, value in good.lora.items() for part in [name[-8]]}  # fmt: skip
    for lora in (stray, {**good.lora, **stray}, wide):
        bad = DUO(good.config, lora)
        with pytest.raises(sr.GuardError):
            attach(pipe, [good, bad])
        assert not hasattr(pipe.unet, "peft_config") and torch.equal(run(SD, pipe), plain)
    with pytest.raises(sr.GuardError, match="has no weights yet"):
        attach(pipe, DUO(good.config))


def test_deep_copies() -> None:
    pipe = SD.build()
    guard, plain = make_guard(pipe), run(SD, pipe)
    attached = attach(pipe, guard)
    guarded, twin = run(SD, pipe), copy.deepcopy(pipe)
    with pytest.raises(sr.GuardError, match="copy of a guarded one"):
        run(SD, twin)
    detach(twin)
    assert torch.equal(run(SD, twin), plain) and torch.equal(run(SD, pipe), guarded)
    with attach(twin, copy.deepcopy(guard)):
        assert torch.equal(run(SD, twin), guarded)
    attached.detach()
    assert torch.equal(run(SD, pipe), plain)


def test_pipelines_that_share_a_denoiser() -> None:
    pipe, case = SD.build(), PIPELINES["sd-img2img"]
    other = type(case.build())(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    plain, guard = run(case, other), make_guard(pipe)
    attached = attach(pipe, guard)
    with pytest.raises(sr.GuardError):
        run(case, other)
    with pytest.raises(sr.GuardError):
        attach(other, make_guard(pipe, seed=1))
    attached.detach()
    assert torch.equal(run(case, other), plain)


def test_the_global_random_state_is_left_alone() -> None:
    pipe = SD.build()
    guard, state = make_guard(pipe), torch.get_rng_state()
    attach(pipe, guard).detach()
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_flow_through_the_guarded_pipeline() -> None:
    pipe = SD.build()
    embeds = pipe.encode_prompt("a star", "cpu", 1, False)[0].detach().requires_grad_()
    with attach(pipe, make_guard(pipe)):
        loop = type(pipe).__call__.__wrapped__  # type: ignore[attr-defined]
        output = loop(
            pipe, prompt_embeds=embeds, guidance_scale=1.0, num_inference_steps=2, output_type="latent", **SD.settings
        )
        output.images.sum().backward()
    assert embeds.grad is not None and embeds.grad.abs().sum() > 0
    assert all(value.grad is None for name, value in pipe.unet.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"component": "vae"}, "component"),
        ({"weight": float("nan")}, "weight"),
        ({"targets": ()}, "targets"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(sr.GuardConfigError, match=message):
        DUOConfig(concept="star", **change)


def test_bad_weights_are_one_sentence() -> None:
    pipe = SD.build()
    guard = make_guard(pipe)
    name, value = next(iter(guard.tensors().items()))
    for tensors in (
        {},
        {"text_encoder.x.lora_A.weight": value},
        {name: value},
        {**guard.tensors(), name: value[:1]},
        {**guard.tensors(), name: value * torch.nan},
    ):
        with pytest.raises(sr.GuardConfigError, match=r"train .* again"):
            guard.load_tensors(tensors)
