"""The checksum of a pipeline: the same for the same model however it lies in memory, another for any other model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPTokenizer

from saferedir.bench.generation.checksums import _bytes, _tensors, model_digest
from saferedir.errors import BenchError


def test_the_same_model_has_the_same_checksum(pipeline_with: Callable[..., Any]) -> None:
    pipe = pipeline_with()
    digest = model_digest(pipe)
    assert len(digest) == 16 and model_digest(pipeline_with()) == digest
    pipe("a star", num_inference_steps=2, output_type="latent")  # what a call sets, does not count
    assert model_digest(pipe) == digest
    pipe.unet.to(memory_format=torch.channels_last)
    assert model_digest(pipe) == digest
    pipe.unet.config["_name_or_path"] = "elsewhere" if isinstance(pipe.unet.config, dict) else ""
    pipe.text_encoder.config._name_or_path = "elsewhere"
    assert model_digest(pipe) == digest


def _last_weight(part: torch.nn.Module) -> torch.Tensor:
    return list(part.parameters())[-1].detach().reshape(-1)[-1:]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "last value of the decoder": lambda p: _last_weight(p.vae.decoder).add_(1e-3),
    "last value of the unet": lambda p: _last_weight(p.unet).add_(1e-3),
    "last value of the text encoder": lambda p: _last_weight(p.text_encoder).add_(1e-3),
    "least bit of one value": lambda p: p.unet.conv_in.weight.data.view(torch.int32)[0, 0, 1, 1].bitwise_xor_(1),
    "an unsaved buffer": lambda p: next(p.text_encoder.buffers()).add_(1),
    "dtype": lambda p: p.vae.to(torch.bfloat16),
    "scheduler config": lambda p: p.scheduler.register_to_config(beta_start=0.001),
    "vae config": lambda p: p.vae.register_to_config(scaling_factor=0.5),
    "tokenizer length": lambda p: setattr(p.tokenizer, "model_max_length", 70),
    "pipeline's own setting": lambda p: p.register_to_config(requires_safety_checker=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_another_model(change: str, pipeline_with: Callable[..., Any]) -> None:
    pipe = pipeline_with()
    before = model_digest(pipe)
    with torch.no_grad():
        CHANGES[change](pipe)
    assert model_digest(pipe) != before


def test_other_words_scheduler_or_pipeline(pipeline_with: Callable[..., Any]) -> None:
    pipe = pipeline_with()
    seen = {model_digest(pipe), model_digest(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components))}
    vocabulary = pipe.tokenizer.get_vocab()
    swapped = {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}
    seen.add(model_digest(pipeline_with("ddpm")))
    pipe.tokenizer = CLIPTokenizer(vocab=swapped, merges=[], model_max_length=77)
    seen.add(model_digest(pipe))
    pipe.tokenizer = CLIPTokenizer(vocab={**vocabulary, "ab": 54}, merges=[], model_max_length=77)
    seen.add(model_digest(pipe))
    pipe.tokenizer = CLIPTokenizer(vocab={**vocabulary, "ab": 54}, merges=[("a", "b")], model_max_length=77)
    seen.add(model_digest(pipe))
    assert len(seen) == 6


def test_weights_that_are_not_there_are_refused(pipeline_with: Callable[..., Any]) -> None:
    pipe = pipeline_with()
    pipe.unet.to("meta")
    with pytest.raises(BenchError, match=r"'unet' are not in memory \(.*meta tensor\)"):
        model_digest(pipe)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool]
)
def test_the_bytes_are_those_in_memory(dtype: torch.dtype) -> None:
    values = torch.arange(12).reshape(3, 4).to(dtype)
    assert bytes(_bytes(values)) == bytes(values.untyped_storage())
    assert bytes(_bytes(values.t().contiguous().t())) == bytes(_bytes(values))
    assert bytes(_bytes(values[:0])) == b"" and len(_bytes(values[0, 0])) == values.element_size()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_packed_weights_count_as_packed() -> None:
    packed = torch.quantize_per_tensor(torch.arange(8.0), 0.5, 1, torch.qint8)
    codes, scale = _tensors((packed, None))
    assert codes.tolist() == [round(value / 0.5) + 1 for value in range(8)] and scale.tolist() == [0.5, 1.0]
    wide = torch.quantize_per_channel(torch.ones(2, 2), torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.qint8)
    assert [one.tolist() for one in _tensors(wide)] == [[[2, 2], [5, 5]], [0.5, 0.25], [0, 1]]


def test_layers_that_keep_their_weights_packed_are_seen(pipeline_with: Callable[..., Any]) -> None:
    class Packed(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            destination[prefix + "packed"] = (torch.full((2,), self.value), None)

    pipe = pipeline_with()
    pipe.unet.extra = Packed(1.0)
    other = copy.copy(pipe)
    first = model_digest(pipe)
    other.unet.extra = Packed(2.0)
    assert model_digest(other) != first
