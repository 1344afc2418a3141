"""UCE guards of tiny pipelines: what the layers are really given, what the edit does to prompts, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor

import saferedir as sr
from saferedir.pipelines.encoding import encode_prompts
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.uce.layers import TEXT_LAYERS, inputs_of, modules_of, text_layers
from saferedir.training.uce.tokens import read_tokens
from saferedir.training.uce.train import TrainConfig, make_uce, train_uce

#: one pipeline of each family with a row
NAMES = ("sd", "sdxl", "sd3", "flux", "pixart-sigma", "sana", "lumina2", "aura-flow", "wan")
PAIRS = [Pair("a star", "a ring"), Pair("big star here", "big ring here"), Pair(None, "the moon")]


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def test_every_row_of_the_table_is_tried() -> None:
    assert {PIPELINES[name].family for name in NAMES} == set(TEXT_LAYERS)


@pytest.mark.parametrize("name", NAMES)
def test_the_layers_are_given_what_the_table_says(name: str) -> None:
    """Hooks on a run of the pipeline: at every step, and whatever the noise."""
    case = PIPELINES[name]
    pipe, prompt = case.build(), "a star"
    settings = {key: case.settings[key] for key in ("max_sequence_length", "system_prompt") if key in case.settings}
    with torch.no_grad():
        embeds = encode_prompts(pipe, [prompt], settings)
    for layers in text_layers(pipe):
        expected = inputs_of(pipe, layers, embeds)
        assert expected is not None
        given: list[Tensor] = []
        handles = [
            module.register_forward_pre_hook(lambda module, args, given=given: given.append(args[0].double()))
            for module in modules_of(denoiser_of(pipe), layers).values()
        ]
        run(case, pipe, prompt, steps=2, **case.unguided)
        for handle in handles:
            handle.remove()
        assert len(given) >= 2 * len(handles)
        for rows in given:
            torch.testing.assert_close(rows.reshape(expected.shape), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_concept_is_projected_as_its_counterpart_and_the_weights_come_back(name: str, tmp_path: Path) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    denoiser = denoiser_of(pipe)
    before, plain = {k: v.clone() for k, v in denoiser.state_dict().items()}, run(case, pipe)
    guard = train_uce(pipe, PAIRS, tmp_path / "guard", concept="star", config=TrainConfig(ridge=0.05))
    loaded = sr.Guard.from_pretrained(tmp_path / "guard")
    assert all(torch.equal(loaded.tensors()[key], value) for key, value in guard.tensors().items())
    assert torch.equal(run(case, pipe), plain)
    texts = [pair.unsafe or "" for pair in PAIRS[:2]], [pair.safe for pair in PAIRS[:2]]
    layers = text_layers(pipe)[0]
    with torch.no_grad():
        embeds = [encode_prompts(pipe, side) for side in texts]
        a, b = (inputs_of(pipe, layers, side) for side in embeds)
        assert a is not None and b is not None
    read = torch.stack([read_tokens(side) for side in embeds]).all(0)
    with sr.attach(pipe, loaded) as attached, torch.no_grad():
        guarded = run(case, pipe)
        layer = next(
            module
            for name, module in denoiser.named_modules()
            if name.endswith(layers.ends) and hasattr(module, "base_layer")
        )
        edited, moved = (layer(side.float()) for side in (a, b))
        was, wanted = (layer.base_layer(side.float()) for side in (a, b))
        assert attached.decisions[0].action == "edited"
    # one vote a token: the closed form cannot be worse than leaving the weights alone
    assert (edited - wanted)[read].norm() < (was - wanted)[read].norm() > (moved - wanted)[read].norm()
    assert guarded.isfinite().all() and not torch.equal(guarded, plain)
    assert torch.equal(run(case, pipe), plain)
    after = denoiser.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def test_the_edit_is_what_the_closed_form_says() -> None:
    """Written down a second time, for one layer of a UNet, with the last token only."""
    pipe = PIPELINES["sd"].build()
    guard = make_uce(pipe, PAIRS, concept="star", config=TrainConfig(tokens="last", erase_scale=3.0, ridge=0.7))
    prompts = [pair.unsafe or pair.safe for pair in PAIRS] + [pair.safe for pair in PAIRS[:2]]
    with torch.no_grad():
        states = encode_prompts(pipe, prompts).prompt.double()
    ids = [pipe.tokenizer(text).input_ids for text in prompts]
    ends = [max(i for i in range(min(len(a), len(b))) if a[i] != b[i]) for a, b in zip(ids[:2], ids[3:], strict=True)]
    c = torch.stack([states[n, end] for n, end in enumerate(ends)])
    t = torch.stack([states[3 + n, end] for n, end in enumerate(ends)])
    name = next(name for name, _ in pipe.unet.named_modules() if name.endswith("attn2.to_k"))
    weight = pipe.unet.get_submodule(name).weight.double()
    gram = 3.0 * c.T @ c + 0.7 * torch.eye(c.shape[1]).double()
    sums = 3.0 * (weight @ t.T) @ c + 0.7 * weight
    for rows in (states[2], states[3], states[4]):  # the moon, and both counterparts: one vote each
        gram += rows.T @ rows / len(rows)
        sums += weight @ rows.T @ rows / len(rows)
    wanted = sums @ torch.linalg.inv(gram)
    torch.testing.assert_close(weight + guard.deltas()[name], wanted, atol=1e-5, rtol=1e-5)


def test_a_large_ridge_leaves_the_images(tmp_path: Path) -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    plain = run(case, pipe)
    with sr.attach(pipe, make_uce(pipe, PAIRS, concept="star", config=TrainConfig(ridge=1e12))):
        torch.testing.assert_close(run(case, pipe), plain, atol=1e-5, rtol=1e-5)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(sr.UnsupportedPipelineError, match="no closed form for lumina,"):
        make_uce(PIPELINES["lumina"].build(), PAIRS, concept="star")
    with pytest.raises(sr.UnsupportedPipelineError, match="transformer_2"):
        make_uce(PIPELINES["wan-2.2"].build(), PAIRS, concept="star")
    pipe = PIPELINES["sd"].build()
    with pytest.raises(sr.GuardConfigError, match="no prompt with the concept"):
        make_uce(pipe, PAIRS[2:], concept="star")
    guard = train_uce(pipe, PAIRS, tmp_path / "guard", concept="star")
    with pytest.raises(sr.errors.OutputError, match="pass overwrite=True"):
        train_uce(pipe, PAIRS, tmp_path / "guard", concept="star")
    with pytest.raises(sr.BackboneMismatchError):
        sr.attach(PIPELINES["sd-inpaint9"].build(), guard)
    with pytest.raises(sr.GuardError, match="has no layer"):
        sr.attach(PIPELINES["sd3"].build(), guard, force=True)
    pipe.load_lora_weights(guard.tensors())
    with pytest.raises(sr.GuardConfigError, match="has LoRAs loaded"):
        make_uce(pipe, PAIRS, concept="star")
    for changes in ({"ridge": -1.0}, {"erase_scale": 0.0}, {"tokens": "first"}):
        with pytest.raises(sr.GuardConfigError, match=next(iter(changes))):
            TrainConfig(**changes)  # type: ignore[arg-type]


def test_pairs_that_say_the_same_make_no_guard(tmp_path: Path) -> None:
    with pytest.raises(sr.GuardError, match="changes nothing"):
        train_uce(PIPELINES["sd"].build(), [Pair("a star", "a star")], tmp_path / "guard", concept="star")
    assert not (tmp_path / "guard" / "guard_config.json").exists()


def test_the_last_token_alone_needs_known_tokens() -> None:
    with pytest.raises(sr.GuardError, match="tokens='last' needs a text encoder"):
        make_uce(PIPELINES["sana"].build(), PAIRS, concept="star", config=TrainConfig(tokens="last"))
