"""The cheap part of the rehearsal: only depth is cut, whole checkpoints on the meta device, and the page it writes.

The roads themselves take minutes and gigabytes: `make rehearsal`.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from benchmarks import flops
from tests.rehearsal import models, newer_models, table
from tests.rehearsal.parts import WideProducts, chat_tokenizer, make
from torch import nn

from saferedir.pipelines.families import TEXT_FAMILIES
from saferedir.pipelines.fingerprint import _shapes_hash, _weights_hashes

ROOT = Path(__file__).parents[2]


def test_every_family_is_rehearsed_or_has_a_reason_why_not() -> None:
    assert {model.family for model in models.MODELS.values()} == set(TEXT_FAMILIES) - set(models.NOT_REHEARSED)
    assert set(models.NOT_REHEARSED) <= set(TEXT_FAMILIES) and set(models.MODELS) >= models.NOT_WALKED


def shapes(part: flops.Part) -> set[tuple[int, ...]]:
    return {tuple(value.shape) for value in flops.build(part).parameters()}


CUTS = {
    "Stable Diffusion 1.5": {"layers_per_block": 1},
    "SDXL base 1.0": {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)},
    "FLUX.1-dev": {"num_layers": 1, "num_single_layers": 1},
    "Wan 2.1 T2V 1.3B": {"num_layers": 1},
    "Z-Image-Turbo": {"n_layers": 1, "n_refiner_layers": 1},
    "Qwen-Image": {"num_layers": 1},
    "FLUX.2-klein-4B": {"num_layers": 1, "num_single_layers": 1},
}


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_network_has_no_shape_that_the_published_one_has_not(name: str) -> None:
    """And of a transformer, where blocks are alike, every shape of the published one."""
    part = models.PUBLISHED[name].denoiser
    cut = shapes(flops.Part(part.kind, {**part.config, **CUTS[name]}, 0, {}))
    whole = shapes(part)
    assert cut <= whole
    if "UNet" not in part.kind:
        assert cut == whole


def test_a_whole_checkpoint_on_the_meta_device_has_an_architecture_and_no_weights() -> None:
    """FLUX.1-dev, 11.9 billion parameters."""
    network = flops.build(models.PUBLISHED["FLUX.1-dev"].denoiser)
    assert _shapes_hash(network) is not None and _weights_hashes([network]) == [None]


def test_half_precision_products_are_rounded_once() -> None:
    layer = nn.Conv2d(8, 8, 3, dtype=torch.bfloat16)
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    with WideProducts():
        found = layer(x)
    exact = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double())  # type: ignore[union-attr]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


def test_weights_are_random_and_no_two_rows_alike() -> None:
    part = flops.Part(
        "T5EncoderModel", {"vocab_size": 1000, "d_model": 64, "d_ff": 96, "num_layers": 1, "num_heads": 2}, 0, {}
    )
    model = make(part, dtype=torch.float32)
    table_ = model.shared.weight
    assert torch.isfinite(table_).all() and table_.std() > 0.5 and len(torch.unique(table_[:, 0])) == 1000


def _empty(name: str) -> Any:
    """A pipeline without parts, for what it writes around a prompt."""
    kind = getattr(diffusers, name)
    arguments = inspect.signature(kind.__init__).parameters.values()
    return kind(**{each.name: None for each in list(arguments)[1:] if each.default is each.empty})


@pytest.mark.parametrize("name", ["QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"])
def test_instructions_of_qwen_image_are_as_many_tokens_as_it_drops(name: str) -> None:
    """So the tokenizer of the rehearsal cuts them where the published one does."""
    pipe = _empty(name)
    before = pipe.prompt_template_encode.split("<|vision_start|>")[0].split("{}")[0]
    assert len(chat_tokenizer(before)(before)["input_ids"]) == pipe.prompt_template_encode_start_idx


def test_instructions_of_krea_are_as_many_tokens_as_it_drops() -> None:
    pipe = _empty("Krea2Pipeline")
    before, after = pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix
    tokenizer = chat_tokenizer(before, after)
    assert len(tokenizer(before)["input_ids"]) == pipe.prompt_template_encode_start_idx
    assert len(tokenizer(after)["input_ids"]) == pipe.prompt_template_encode_num_suffix_tokens


def test_a_conversation_has_the_marks_of_the_published_one_and_words_of_its_own_are_spelt() -> None:
    tokenizer = chat_tokenizer("Describe the image")
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|image_pad|>"]) == [
        151643,
        151644,
        151655,
    ]
    assert len(tokenizer("Describe the image")["input_ids"]) == 3 and len(tokenizer("a star")["input_ids"]) == 6


def test_an_empty_text_of_cogview4_has_tokens() -> None:
    tokenizer = chat_tokenizer(size=151329, special=newer_models.GLM_SPECIAL, begin=("[gMASK]", "<sop>"))
    assert tokenizer("")["input_ids"] == [151331, 151333]


def test_the_page_is_that_of_the_results() -> None:
    results = json.loads((ROOT / "docs" / "rehearsal.json").read_text())
    assert (ROOT / "docs" / "rehearsal.md").read_text() == table.page(results)
    assert set(results) == set(table.NAMES) - models.NOT_WALKED
    assert [name for name, result in results.items() if not result.get("passed")] == []
