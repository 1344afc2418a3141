"""load_pipeline: words for dtypes, variants of the weight files, and why a folder could not be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import saferedir as sr


@pytest.fixture(scope="module")
def pipe() -> Any:
    return sr.load_pipeline("pictoworld")


@pytest.mark.parametrize("word", ["float16", "bfloat16", "torch.float16"])
def test_a_dtype_may_be_a_word(word: str) -> None:
    pipe = sr.load_pipeline("pictoworld", dtype=word)
    assert pipe.unet.dtype is pipe.text_encoder.dtype is getattr(torch, word.removeprefix("torch."))


@pytest.mark.parametrize("dtype", ["fp16", "half", "float", "", "int8", torch.int8])
def test_an_unknown_dtype_is_one_sentence_and_nothing_is_loaded(dtype: Any) -> None:
    with pytest.raises(sr.GuardConfigError, match=r"dtype is .*; expected float32, float16, bfloat16"):
        sr.load_pipeline("pictoworld", dtype=dtype)


def test_a_folder_of_one_variant_is_loaded_by_its_name_and_says_so_otherwise(pipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "fp16"
    pipe.save_pretrained(folder, variant="fp16")
    with pytest.raises(sr.GuardNotFoundError, match=r"weights of the variant fp16 .* give variant='fp16'"):
        sr.load_pipeline(folder, dtype="float16")
    loaded = sr.load_pipeline(folder, dtype="float16", variant="fp16")
    name, weight = next(iter(loaded.unet.named_parameters()))
    assert torch.equal(weight, dict(pipe.unet.named_parameters())[name].half())
    with pytest.raises(sr.GuardNotFoundError, match=r"no weights of the variant 'bf16'; its variants are fp16"):
        sr.load_pipeline(folder, variant="bf16")
    # one part alone in plain weights does not hide it
    pipe.unet.save_pretrained(folder / "unet")
    next((folder / "unet").glob("*.fp16.safetensors")).unlink()
    with pytest.raises(sr.GuardNotFoundError, match="variant fp16"):
        sr.load_pipeline(folder)


def test_weights_that_could_run_code_are_named(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "bin", safe_serialization=False)
    with pytest.raises(sr.GuardNotFoundError, match=r"\.bin files, and saferedir loads safetensors only"):
        sr.load_pipeline(tmp_path / "bin")
