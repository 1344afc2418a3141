"""A user's own LoRA is seen by a guard that was made without it: loaded, scaled, fused, before attaching and after."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tests.conftest import make_pipeline
from tests.training.saferedir.test_assessment import NETWORK

import saferedir as sr
from saferedir.guards.saferedir import Redirector, RedirectorConfig, SafeRedir, SafeRedirConfig
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.own_adapters import ADAPTERS, own_adapters


def load(pipe: Any, name: str = "style", seed: int = 0) -> None:
    """A LoRA of random values on the UNet."""
    torch.manual_seed(seed)
    donor = make_pipeline().unet
    donor.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = {f"unet.{key}": value for key, value in get_peft_model_state_dict(donor).items()}
    pipe.load_lora_weights(weights, adapter_name=name)


def guard_of(pipe: Any) -> SafeRedir:
    torch.manual_seed(0)
    config = SafeRedirConfig(
        concept="x", network=NETWORK, prompt_threshold=1e6, image_threshold=1e6, backbone=backbone_fingerprint(pipe)
    )
    return SafeRedir(config, Redirector(RedirectorConfig.from_dict(NETWORK)))


def said(act: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        act()
    return [str(one.message) for one in seen if one.category is UserWarning and "guard 'saferedir'" in str(one.message)]


def run(pipe: Any) -> Any:
    return pipe(["a"], num_inference_steps=1, output_type="latent")


def test_without_one_there_is_no_key_and_no_word() -> None:
    pipe = make_pipeline()
    assert ADAPTERS not in backbone_fingerprint(pipe)
    guard = guard_of(pipe)
    assert said(lambda: sr.attach(pipe, guard)) == [] and said(lambda: run(pipe)) == []


def test_loaded_before_attaching_it_is_named_with_its_scale() -> None:
    pipe = make_pipeline()
    guard = guard_of(pipe)
    load(pipe)
    pipe.set_adapters(["style"], [0.7])
    (text,) = said(lambda: sr.attach(pipe, guard))
    assert "LoRA 'style' at scale 0.7 on unet" in text and "guards calibrate --lora" in text
    assert said(lambda: run(pipe)) == []  # said once


def test_loaded_scaled_and_fused_after_attaching_it_is_said_before_the_next_run() -> None:
    pipe = make_pipeline()
    guard = guard_of(pipe)
    sr.attach(pipe, guard)
    load(pipe)
    (text,) = said(lambda: run(pipe))
    assert "LoRA 'style' at scale 1 on unet" in text
    pipe.set_adapters(["style"], [0.4])
    (text,) = said(lambda: run(pipe))
    assert "at scale 0.4" in text and said(lambda: run(pipe)) == []
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    (text,) = said(lambda: run(pipe))
    assert "LoRA 'style' fused into the weights" in text


def test_switched_off_or_scaled_to_nothing_it_does_not_act() -> None:
    pipe = make_pipeline()
    guard = guard_of(pipe)
    load(pipe)
    pipe.set_adapters(["style"], [0.0])
    assert said(lambda: sr.attach(pipe, guard)) == []
    pipe.set_adapters(["style"], [1.0])
    pipe.disable_lora()
    assert said(lambda: run(pipe)) == []


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_fused_before_attaching_it_is_named_beside_the_weights(keep_loaded: bool) -> None:
    pipe = make_pipeline()
    guard = guard_of(pipe)
    load(pipe)
    pipe.fuse_lora()
    if not keep_loaded:
        pipe.unload_lora_weights()
    texts = said(lambda: sr.attach(pipe, guard))
    assert any("other weights" in text and "fused LoRA 'style'" in text for text in texts)


def test_a_guard_that_was_calibrated_with_it_is_quiet_and_speaks_when_it_is_gone() -> None:
    pipe = make_pipeline()
    load(pipe)
    pipe.set_adapters(["style"], [0.7])
    guard = guard_of(pipe)
    record = json.loads(json.dumps(guard.config.backbone))
    assert record[ADAPTERS]["unet"][0]["name"] == "style" and record[ADAPTERS]["unet"][0]["scale"] == 0.7
    assert said(lambda: sr.attach(pipe, guard)) == [] and said(lambda: run(pipe)) == []
    pipe.set_adapters(["style"], [0.9])
    (text,) = said(lambda: run(pipe))
    assert "LoRA 'style' at scale 0.9 on unet; no LoRA 'style' at scale 0.7 on unet" in text
    pipe.unload_lora_weights()
    (text,) = said(lambda: run(pipe))
    assert "no LoRA 'style' at scale 0.7 on unet" in text
    load(pipe, name="other-name")
    pipe.set_adapters(["other-name"], [0.7])
    assert said(lambda: run(pipe)) == []  # the same values


def test_a_guards_own_adapter_is_not_the_users() -> None:
    pipe = sr.load_pipeline("pictoworld")
    guard = sr.Guard.from_pretrained("pictoworld/star")
    assert said(lambda: sr.attach(pipe, [sr.Guard.from_pretrained("pictoworld/star-duo"), guard])) == []
    assert ADAPTERS not in backbone_fingerprint(pipe)


def test_a_lora_that_is_not_in_memory_is_known_by_its_name() -> None:
    """Sequential offload leaves weights without values behind."""
    pipe = make_pipeline()
    bare = guard_of(pipe)
    load(pipe)
    made = guard_of(pipe)
    cpu_offload(pipe.unet, torch.device("cpu"))
    assert [one["weights"] for one in own_adapters(pipe)["unet"]] == [None]
    with sr.attach(pipe, made) as attached:
        assert said(lambda: run(pipe)) == [] and attached.runs == 1
    assert any("LoRA 'style' at scale 1 on unet" in text for text in said(lambda: sr.attach(pipe, bare)))
