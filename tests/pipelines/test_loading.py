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


def test_loras_are_loaded_each_with_its_scale(pipe: Any, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    files = []
    for number in range(2):
        donor = sr.load_pipeline("pictoworld")
        donor.unet.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=["to_q"], init_lora_weights=False))
        StableDiffusionPipeline.save_lora_weights(tmp_path / str(number), get_peft_model_state_dict(donor.unet))
        files.append(tmp_path / str(number) / "pytorch_lora_weights.safetensors")
    found = sr.load_pipeline("pictoworld", loras=[(str(files[0]), 0.5), (str(files[1].parent), 2.0)])
    assert found.get_active_adapters() == ["lora-1", "lora-2"]
    layer = next(module for module in found.unet.modules() if hasattr(module, "lora_A"))
    assert layer.scaling == {"lora-1": 0.5, "lora-2": 2.0}
    with pytest.raises(sr.GuardNotFoundError, match="no LoRA is at"):
        sr.load_pipeline("pictoworld", loras=[("./missing.safetensors", 1.0)])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("v1", "StableDiffusionPipeline"), ("xl_base", "StableDiffusionXLPipeline"), ("flux-dev", "FluxPipeline")],
)
def test_a_checkpoint_in_one_file_is_loaded_as_what_it_is(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers
    from diffusers.loaders import single_file_utils
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(single_file_utils, "infer_diffusers_model_type", lambda checkpoint: kind)
    monkeypatch.setattr(
        getattr(diffusers, name),
        "from_single_file",
        classmethod(lambda cls, path, **more: asked.update(path=path, **more) or cls),
    )
    assert sr.load_pipeline(file, dtype="float16", config=tmp_path) is getattr(diffusers, name)
    assert asked == {"path": str(file), "torch_dtype": torch.float16, "config": str(tmp_path)}


@pytest.mark.parametrize(
    ("file", "error", "sentence"),
    [
        ("missing.safetensors", sr.GuardNotFoundError, "no checkpoint is at"),
        ("model.ckpt", sr.GuardConfigError, "can run code"),
        ("broken.safetensors", sr.GuardNotFoundError, "could not read the checkpoint"),
    ],
)
def test_a_wrong_checkpoint_is_one_sentence(file: str, error: type[Exception], sentence: str, tmp_path: Path) -> None:
    for name in ("model.ckpt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(error, match=sentence):
        sr.load_pipeline(tmp_path / file)
    with pytest.raises(sr.GuardConfigError, match="config is for a checkpoint in one"):
        sr.load_pipeline("pictoworld", config=tmp_path)


def test_a_config_folder_with_pickles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.loaders import single_file_utils
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config" / "text_encoder").mkdir(parents=True)
    (tmp_path / "config" / "text_encoder" / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setattr(single_file_utils, "infer_diffusers_model_type", lambda checkpoint: "v1")
    with pytest.raises(sr.GuardConfigError, match=r"pytorch_model\.bin, which can run code"):
        sr.load_pipeline(tmp_path / "model.safetensors", config=tmp_path / "config")
    with pytest.raises(sr.GuardConfigError, match="variant is for a folder"):
        sr.load_pipeline(tmp_path / "model.safetensors", variant="fp16")


def test_another_scheduler_keeps_the_settings_of_the_models_own() -> None:
    own = sr.load_pipeline("pictoworld").scheduler.config
    for name in ("LCMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        scheduler = sr.load_pipeline("pictoworld", scheduler=name).scheduler
        assert type(scheduler).__name__ == name
        for setting in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
            assert scheduler.config[setting] == own[setting], setting


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("LCMSchedular", "did you mean 'LCMScheduler'"),
        ("UNet2DModel", "there is no scheduler"),
        ("VQDiffusionScheduler", "there is no scheduler"),
        ("CosineDPMSolverMultistepScheduler", "there is no scheduler"),
        ("FlowMatchEulerDiscreteScheduler", "samples by flow matching, and the model was made for noise prediction"),
        ("EDMEulerScheduler", "samples by EDM's noise levels"),
        ("SCMScheduler", "TrigFlow"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_one_sentence(name: str, why: str) -> None:
    with pytest.raises(sr.GuardConfigError, match=why):
        sr.load_pipeline("pictoworld", scheduler=name)
