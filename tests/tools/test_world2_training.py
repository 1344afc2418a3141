"""PictoWorld 2's stages at toy length: each runs on the results of those before it, and diffusers loads what they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiTPipeline, FluxPipeline, FluxTransformer2DModel
from tools.pictoworld.training.judge import round_trip
from tools.pictoworld.world2.autoencoder import (
    first_world_autoencoder,
    images_and_weights,
    random_contents,
    standardise,
    widened,
)
from tools.pictoworld.world2.flux import (
    assemble,
    build_transformer,
    encode_texts,
    flops_per_sample,
    noise_levels,
    pack,
    pool_contents,
    position_ids,
)
from tools.pictoworld.world2.latents import encoded_latents
from tools.pictoworld.world2.run import STAGES, StageRun, compact_tokenizer, unpack
from tools.pictoworld.world2.text_encoders import (
    TARGETS,
    build_clip,
    build_t5,
    corpus_batch,
    labels_of,
    tokenize,
    train_clip_tokenizer,
    train_t5_tokenizer,
)
from tools.pictoworld.world2.token_labels import LABELS, NOTHING, TokenReader, label_loss, token_labels
from transformers import AutoTokenizer

from saferedir.pictoworld.world2.characters import CHARACTERS
from saferedir.pictoworld.world2.evaluation import generate
from saferedir.pictoworld.world2.judge import Judge
from saferedir.pictoworld.world2.posters import POSTERS
from saferedir.pictoworld.world2.scene import Item, Scene
from saferedir.utils.packaged import packaged_model_path
from saferedir.utils.progress import SILENT


def test_a_compact_tokenizer_reads_as_before(tmp_path: Path) -> None:
    for make in (train_clip_tokenizer, train_t5_tokenizer):
        tokenizer = make(0, 300)
        tokenizer.save_pretrained(tmp_path)
        size = (tmp_path / "tokenizer.json").stat().st_size
        compact_tokenizer(tmp_path / "tokenizer.json")
        assert (tmp_path / "tokenizer.json").stat().st_size < size
        texts = [prompt.text for prompt in corpus_batch(500, seed=9)]
        assert AutoTokenizer.from_pretrained(tmp_path)(texts).input_ids == tokenizer(texts).input_ids


def test_the_three_packaged_models_are_small() -> None:
    folders = [packaged_model_path(f"pictoworld-{name}") for name in ("flux", "dit", "ddpm")]
    files = [file for folder in folders if folder is not None for file in folder.rglob("*") if file.is_file()]
    assert None not in folders and sum(file.stat().st_size for file in files) <= 24_000_000


@pytest.mark.slow
def test_every_stage_runs_and_loads(tmp_path: Path) -> None:
    run = StageRun(tmp_path, 2, torch.device("cpu"), batch=4, pool=16, captions=300)
    results = {name: stage.run(run) for name, stage in STAGES.items()}
    flux = FluxPipeline.from_pretrained(results["flux"])
    flux.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "pt"}
    images = flux("a star", negative_prompt="", true_cfg_scale=3.0, max_sequence_length=32, **call).images
    assert images.shape == (1, 3, 64, 64)
    dit = DiTPipeline.from_pretrained(results["dit"])
    dit.set_progress_bar_config(disable=True)
    assert dit.labels["ring"] == 6
    assert dit([6, 9], guidance_scale=1.0, num_inference_steps=1, output_type="pt").images.shape == (2, 3, 64, 64)
    assert isinstance(Judge.load(results["judge"]), Judge)
    ddpm = DDPMPipeline.from_pretrained(results["ddpm"])
    ddpm.set_progress_bar_config(disable=True)
    assert ddpm(batch_size=2, num_inference_steps=1, output_type="np").images.shape == (2, 32, 32, 3)
    start = unpack(results["flux"], tmp_path / "again", results["dit"])  # laid out, their trainings go on from them
    again = StageRun(tmp_path / "again", 2, torch.device("cpu"), batch=4, pool=16)
    more = FluxPipeline.from_pretrained(STAGES["flux"].run(again))
    before = FluxTransformer2DModel.from_pretrained(start)
    assert (more.transformer.proj_out.weight - before.proj_out.weight).abs().max() < 0.02
    more_dit = DiTPipeline.from_pretrained(STAGES["dit"].run(again))
    assert 0 < (more_dit.transformer.proj_out_2.weight - dit.transformer.proj_out_2.weight).abs().max() < 0.02
    torch.testing.assert_close(more.vae.decoder.conv_in.weight, flux.vae.decoder.conv_in.weight)
    for name, stage in STAGES.items():  # finished stages have nothing left to train
        assert stage.run(run) == results[name]


def test_a_widened_autoencoder_starts_as_the_narrow_one_and_keeps_its_images_when_standardised() -> None:
    narrow = first_world_autoencoder().eval().requires_grad_(False)
    wide = widened(narrow).eval().requires_grad_(False)
    images, weights = images_and_weights(*random_contents(16, 0, characters=0.5))
    assert weights.min() == 1 and weights.max() == 4
    latents = wide.encode(images).latent_dist.mean
    torch.testing.assert_close(latents[:, :4], narrow.encode(images).latent_dist.mean)
    before = round_trip(wide, images / 2 + 0.5, torch.Generator())
    standardise(wide, images)
    torch.testing.assert_close(round_trip(wide, images / 2 + 0.5, torch.Generator()), before, atol=1e-4, rtol=0)
    latents = wide.encode(images).latent_dist.mean
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)


def test_latents_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    vae = widened(first_world_autoencoder()).eval().requires_grad_(False)
    contents = pool_contents(4, 0)[-8:]
    path, device = tmp_path / "latents.npy", torch.device("cpu")
    whole = np.array(encoded_latents(vae, contents, path, SILENT, device))
    path.with_suffix(".count").write_text("5")
    np.lib.format.open_memmap(path, mode="r+")[5:] = 0
    assert np.array_equal(encoded_latents(vae, contents, path, SILENT, device), whole)
    with pytest.raises(ValueError, match="delete it"):
        encoded_latents(vae, contents[:3], path, SILENT, device)


def test_captions_fit_into_the_window_and_have_a_label_each() -> None:
    tokenizer = train_t5_tokenizer(captions=2000)
    prompts = corpus_batch(300, seed=9)
    ids = tokenize(tokenizer, [prompt.text for prompt in prompts])
    assert float((ids[:, -1] > 1).float().mean()) < 0.02  # neither the end nor padding: cut
    assert float((ids == tokenizer.unk_token_id).float().mean()) < 0.001
    assert tokenize(tokenizer, ["A RED star."]).tolist() == tokenize(tokenizer, ["a red star."]).tolist()
    labels = labels_of(prompts)
    assert labels.keys() == TARGETS.keys() and all(value.shape == (300,) for value in labels.values())


def test_the_pipeline_samples_what_the_training_means() -> None:
    """A transformer that knows the clean latents, and answers as trained ones should, gives exactly those back."""
    tokenizers = train_clip_tokenizer(captions=100), train_t5_tokenizer(captions=100)
    encoders = build_clip(tokenizers[0]).eval(), build_t5(tokenizers[1]).eval()
    vae = widened(first_world_autoencoder()).eval().requires_grad_(False)
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    clean = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(1))

    class Knowing(FluxTransformer2DModel):
        def forward(self, **call: Any) -> tuple[torch.Tensor]:
            assert call["encoder_hidden_states"].shape == (2, 32, 128) and call["pooled_projections"].shape == (2, 128)
            assert torch.equal(call["txt_ids"], position_ids(torch.device("cpu"))[0])
            assert torch.equal(call["img_ids"], position_ids(torch.device("cpu"))[1])
            sigma = call["timestep"].view(-1, 1, 1)  # x = (1 - sigma) clean + sigma noise, the answer is noise - clean
            return ((call["hidden_states"] - pack(clean)) / sigma,)

    transformer = Knowing.from_config(build_transformer().config)
    pipe = assemble(vae, tokenizers, encoders, transformer)
    images = generate(pipe, ["a star", "a ring"], num_inference_steps=4).images
    torch.testing.assert_close(images, (vae.decode(clean).sample / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    pooled, embeds = encode_texts(tokenizers, encoders, ["a star"], torch.device("cpu"))
    prompt_embeds, pooled_embeds, _ = pipe.encode_prompt("a star", None, max_sequence_length=32)
    torch.testing.assert_close((embeds, pooled), (prompt_embeds, pooled_embeds))


def test_the_count_of_work_and_the_noise_levels() -> None:
    assert flops_per_sample(build_transformer()) == pytest.approx(1.66e9, rel=0.01)
    levels = noise_levels(1000, torch.Generator().manual_seed(0))
    assert (levels.diff() > -1e-3).all() and 0 < levels.min() and levels.max() < 1
    assert levels.median() == pytest.approx(0.6, abs=0.01)  # a half, shifted by 1.5
    assert pack(torch.zeros(2, 8, 16, 16)).shape == (2, 64, 32)
    assert pool_contents(3, 0)[:24] == list(POSTERS.values()) and len(pool_contents(3, 0)) == 24 * 9 + 3


def test_a_token_is_labelled_with_the_thing_that_covers_it() -> None:
    ring = Item("ring", "red", "striped", cx=16, cy=32, radius=11)
    name = next(iter(CHARACTERS))
    scene = Scene("white", (ring, Item(character=name, cx=48, cy=32, radius=11)), "left of")
    labels = token_labels([scene, POSTERS[next(iter(POSTERS))]])
    assert labels.shape == (2, 64, 4)
    grid = labels[0].view(8, 8, 4)
    words = [
        [LABELS[kind][int(grid[row, column, i])] for i, kind in enumerate(LABELS)]
        for row, column in ((3, 1), (4, 6), (0, 0))
    ]
    assert words == [
        ["ring", "red", "striped", "white"],
        [name, NOTHING, NOTHING, "white"],
        [NOTHING, NOTHING, NOTHING, "white"],
    ]
    assert (labels[1, :, 0] != LABELS["kind"].index(NOTHING)).any()


def test_reading_a_transformers_tokens_leaves_its_output_as_it_was() -> None:
    transformer = build_transformer().requires_grad_(False)
    torch.nn.init.normal_(transformer.proj_out.weight)
    text_ids, image_ids = position_ids(torch.device("cpu"))
    inputs = {
        "hidden_states": torch.randn(2, 64, 32),
        "encoder_hidden_states": torch.randn(2, 32, 128),
        "pooled_projections": torch.randn(2, 128),
        "timestep": torch.rand(2),
        "img_ids": image_ids,
        "txt_ids": text_ids,
    }
    expected = transformer(**inputs, return_dict=False)[0]
    reader = TokenReader(transformer)
    velocity, logits = reader(**inputs)
    assert torch.equal(velocity, expected)
    labels = torch.zeros(2, 64, 4, dtype=torch.long)
    assert label_loss(logits, labels) > 0
    perfect = torch.full_like(logits, -30.0)
    start = 0
    for values in LABELS.values():
        perfect[..., start] = 30.0
        start += len(values)
    assert label_loss(perfect, labels) == 0
    assert not reader.released().transformer_blocks[-1]._forward_hooks
