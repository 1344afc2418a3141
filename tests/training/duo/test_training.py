"""Training DUO: what moves and what does not, resuming, learning on a toy task, and the files it leaves. D6, D9, D14-D16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

import saferedir as sr
from saferedir.guards.duo.config import TARGETS
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
from saferedir.training.denoiser_calls import CALLS
from saferedir.training.duo.loop import Loop
from saferedir.training.duo.noise import sample_step, schedule_of
from saferedir.training.duo.pair_files import PairLatents, encode_image_pairs, load_pair, read_image_pairs
from saferedir.training.duo.train import ADAPTER, add_lora, train_duo
from saferedir.training.duo.train_config import TrainConfig

SIZE = (32, 48)
QUICK: dict[str, Any] = {
    "batch": 2,
    "rank": 2,
    "learning_rate": 1e-2,
    "prior_weight": 1.0,
    "size": SIZE,
    "checkpoint_every": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pairs of striped against plain pictures."""
    for index in range(6):
        colour = (40 * index, 255 - 40 * index, 128)
        plain = Image.new("RGB", SIZE[::-1], colour)
        striped = plain.copy()
        for x in range(0, SIZE[1], 8):
            striped.paste((255, 255, 255), (x, 0, x + 4, SIZE[0]))
        for side, picture in (("unsafe", striped), ("safe", plain)):
            (tmp_path / "pairs" / side).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "pairs" / side / f"{index}.png")
    return tmp_path / "pairs"


def make_loop(pipe: Any, latents: PairLatents, tmp_path: Path, **changes: Any) -> Loop:
    """A loop on the pipeline's own denoiser, with a fresh LoRA."""
    is_unet = hasattr(pipe, "unet")
    denoiser = pipe.unet if is_unet else pipe.transformer
    denoiser.requires_grad_(False)
    torch.manual_seed(0)
    add_lora(denoiser, 2, TARGETS["unet" if is_unet else "transformer"])
    width = 32 if is_unet else None
    empty = PromptEmbeds(torch.zeros(1, 77, width)) if is_unet else sr.encoding.encode_prompts(pipe, [""])  # type: ignore[attr-defined]
    call = CALLS[family_of(pipe).name]
    config = TrainConfig(**{**QUICK, **changes})
    return Loop(denoiser, call, latents, empty.map(Tensor.detach), None, schedule_of(pipe.scheduler), config, tmp_path)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_d1_d6_the_first_step(name: str, folder: Path, tmp_path: Path) -> None:
    pipe = PIPELINES[name].build()
    latents = encode_image_pairs(pipe, read_image_pairs(folder), *SIZE)
    loop = make_loop(pipe, latents, tmp_path)
    draws = sample_step(loop.schedule, tuple(latents.mean.shape[2:]), 6, 2, 0, seed=0)
    terms = loop.terms(draws)
    assert torch.equal(terms.margin, torch.zeros(2)) and torch.equal(terms.prior, torch.zeros(2))
    assert terms.dpo.tolist() == pytest.approx([0.693147] * 2, abs=1e-6)
    terms.prior.mean().backward(retain_graph=True)
    assert all(value.grad is None or not value.grad.any() for value in loop.parameters)
    terms.dpo.mean().backward()
    trained = {name: value for name, value in loop.denoiser.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(not value.grad.any() for name, value in trained.items() if "lora_A" in name)
    assert any(value.grad.any() for name, value in trained.items() if "lora_B" in name)


def test_the_preserving_term_listens_to_the_prompts_when_told(folder: Path, tmp_path: Path) -> None:
    """Only its own rows see other prompts: the preference stays what it was, the preserving term does not."""
    pipe = PIPELINES["sd"].build()
    latents = encode_image_pairs(pipe, read_image_pairs(folder), *SIZE)
    asked = PromptEmbeds(torch.randn(6, 77, 32, generator=torch.Generator().manual_seed(1)))
    found = {}
    loop = make_loop(pipe, latents, tmp_path, conditioning="prompt")
    for name, value in loop.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(value, 0.1)
    draws = sample_step(loop.schedule, tuple(latents.mean.shape[2:]), 6, 2, 0, seed=0)
    for kept in ("null", "prompt"):
        config = TrainConfig(**{**QUICK, "conditioning": "prompt", "prior_conditioning": kept})
        loop.asked, loop.config = asked, config
        found[kept] = loop.terms(draws)
    torch.testing.assert_close(found["null"].margin, found["prompt"].margin)
    assert (found["null"].prior - found["prompt"].prior).abs().min() > 0
    with pytest.raises(sr.GuardConfigError, match='together with conditioning="prompt"'):
        TrainConfig(prior_conditioning="prompt")


@pytest.mark.parametrize(
    ("name", "variant"),
    [("sd", "as-paper"), ("sd", "as-coded"), ("sd3", "as-paper"), ("sd3", "as-coded"), ("flux", "as-paper")],
)
def test_d9_only_the_lora_moves_and_the_pipeline_comes_back(
    name: str, variant: str, folder: Path, tmp_path: Path
) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    before, plain = {k: v.clone() for k, v in denoiser.state_dict().items()}, run(case, pipe)
    state = torch.get_rng_state()
    config = TrainConfig.of_variant(variant, is_flow=name == "sd3", **{**QUICK, "steps": 3})
    log: list[dict[str, Any]] = []
    guard = train_duo(pipe, folder, tmp_path / "guard", concept="stripes", config=config, log=log.append)
    after = denoiser.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert all(value.requires_grad for value in denoiser.parameters())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(run(case, pipe), plain)
    assert log[0]["margin"] == 0 and log[0]["prior"] == 0 and [line["step"] for line in log] == [1, 2, 3]
    assert [json.loads(line) for line in (tmp_path / "guard" / "training.jsonl").read_text().splitlines()] == log
    loaded = sr.Guard.from_pretrained(tmp_path / "guard")
    assert all(torch.equal(loaded.tensors()[k], v) for k, v in guard.tensors().items())
    with sr.attach(pipe, loaded):
        assert not torch.equal(run(case, pipe), plain)
    assert not (tmp_path / "guard.work").exists()


def test_d14_trainable_counts_on_the_real_architectures() -> None:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        sd3 = diffusers.SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            sample_size=128,
        )
        for denoiser, component, layers, count in ((unet, "unet", 64, 3_194_880), (sd3, "transformer", 96, 9_437_184)):
            denoiser.requires_grad_(False)
            add_lora(denoiser, 32, TARGETS[component])
            trained = {name: value.numel() for name, value in denoiser.named_parameters() if value.requires_grad}
            assert all(ADAPTER in name for name in trained)
            assert (len(trained), sum(trained.values())) == (2 * layers, count)


def test_d15_it_learns_stripes_against_plain(tmp_path: Path) -> None:
    plain = 0.5 * torch.randn(8, 4, 1, 1, generator=torch.Generator().manual_seed(0)).expand(8, 4, 8, 12)
    pairs = torch.stack([plain + torch.tensor([1.5, -1.5]).repeat(6), plain], dim=1)

    def last(prior_weight: float) -> dict[str, float]:
        loop = make_loop(
            PIPELINES["sd"].build(), PairLatents(pairs, torch.zeros_like(pairs)), tmp_path,
            batch=4, beta=100.0, prior_weight=prior_weight,
        )  # fmt: skip
        lines = [loop.step(number) for number in range(60)][-10:]
        return {key: sum(line[key] for line in lines) / 10 for key in ("margin", "accuracy", "prior")}

    held, free = last(1e3), last(0.0)
    assert max(held["margin"], free["margin"]) < 0 and min(held["accuracy"], free["accuracy"]) > 0.9
    assert held["prior"] < 0.1 * free["prior"]


class Killed(Exception):
    """Stands for a kill in the middle of training."""


@pytest.mark.parametrize("stop", [2, 3])
def test_d16_a_killed_run_goes_on_to_the_same_weights(stop: int, folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**QUICK, "steps": 6})
    whole = train_duo(PIPELINES["sd"].build(), folder, tmp_path / "whole", concept="stripes", config=config)

    def kill(line: dict[str, Any]) -> None:
        if line["step"] == stop + 1:
            raise Killed

    out = tmp_path / "killed"
    pipe = PIPELINES["sd"].build()
    with pytest.raises(Killed):
        train_duo(pipe, folder, out, concept="stripes", config=config, log=kill)
    assert not out.exists() and not hasattr(pipe.unet, "peft_config")
    resumed = train_duo(pipe, folder, out, concept="stripes", config=config)
    for name, value in whole.lora.items():
        assert torch.allclose(resumed.lora[name], value, atol=1e-6), name
    lines = [json.loads(line)["step"] for line in (out / "training.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]


def test_another_plan_does_not_mix_in(folder: Path, tmp_path: Path) -> None:
    def kill(line: dict[str, Any]) -> None:
        raise Killed

    pipe, out = PIPELINES["sd"].build(), tmp_path / "guard"
    with pytest.raises(Killed):
        train_duo(pipe, folder, out, concept="stripes", config=TrainConfig(**{**QUICK, "steps": 3}), log=kill)
    with pytest.raises(sr.GuardConfigError, match="unfinished training"):
        train_duo(pipe, folder, out, concept="stripes", config=TrainConfig(**{**QUICK, "steps": 4}))


def test_training_ends_when_the_preference_is_saturated(folder: Path, tmp_path: Path) -> None:
    config = TrainConfig(**{**QUICK, "steps": 200, "stop_after": 3, "batch": 1})
    guard = train_duo(PIPELINES["sd"].build(), folder, tmp_path / "guard", concept="stripes", config=config)
    lines = [json.loads(line) for line in (tmp_path / "guard" / "training.jsonl").read_text().splitlines()]
    assert guard.config.training["steps_done"] == len(lines) < 200
    assert [line["accuracy"] for line in lines[-3:]] == [1.0] * 3


def test_v_models_train_too(folder: Path, tmp_path: Path) -> None:
    pipe = PIPELINES["sd"].build()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    guard = train_duo(pipe, folder, tmp_path / "g", concept="stripes", config=TrainConfig(**{**QUICK, "steps": 2}))
    assert guard.config.backbone is not None
    assert guard.config.backbone["architecture"]["prediction_type"] == "v_prediction"


def test_refusals(folder: Path, tmp_path: Path) -> None:
    pipe, out = PIPELINES["sd"].build(), tmp_path / "guard"
    with pytest.raises(sr.GuardConfigError, match="come without prompts"):
        train_duo(pipe, folder, out, concept="x", config=TrainConfig(**{**QUICK, "conditioning": "prompt"}))
    with pytest.raises(sr.GuardConfigError, match="no layers called nowhere"):
        train_duo(pipe, folder, tmp_path / "b", concept="x", config=TrainConfig(**{**QUICK, "targets": ("nowhere",)}))
    with pytest.raises(sr.GuardConfigError, match="1 valid pairs are too few"):
        train_duo(pipe, read_image_pairs(folder)[:1], out, concept="x", config=TrainConfig(**QUICK))
    with pytest.raises(sr.UnsupportedPipelineError, match="DUO cannot be trained on lumina"):
        train_duo(PIPELINES["lumina2"].build(), folder, out, concept="x")
    with pytest.raises(sr.UnsupportedPipelineError, match="takes 9 channels and the VAE makes 4"):
        train_duo(PIPELINES["sd-inpaint9"].build(), folder, out, concept="x")
    guard = train_duo(pipe, folder, tmp_path / "c", concept="x", config=TrainConfig(**{**QUICK, "steps": 1}))
    pipe.load_lora_weights(guard.tensors())
    with pytest.raises(sr.GuardConfigError, match="has LoRAs loaded"):
        train_duo(pipe, folder, tmp_path / "d", concept="x", config=TrainConfig(**QUICK))


def test_d18_one_crop_for_both_members(tmp_path: Path) -> None:
    for side in ("unsafe", "safe"):
        (tmp_path / side).mkdir()
        for index in range(2):
            Image.linear_gradient("L").resize((96, 40)).rotate(90 * index).convert("RGB").save(
                tmp_path / side / f"{index}.png"
            )
    for pair in read_image_pairs(tmp_path):
        unsafe, safe = load_pair(pair, 32, 32)
        assert unsafe.shape == (32, 32, 3) and (unsafe == safe).all()
