"""What a guard needs of a pipeline is asked at attach; what reaches a denoiser past the guards is refused."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers.callbacks as official
import pytest
import torch
from tests.conftest import generate
from tests.contract.guards import GUARDS, Redirect, Watcher
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor, equal

import saferedir as sr
from saferedir.guards.dual_latent.config import DualLatentConfig
from saferedir.guards.dual_latent.r1 import DualLatentR1
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.sld import SLD, SLDConfig
from saferedir.pipelines.families import family_of
from saferedir.pipelines.packing import grid_of_ids, pack_2x2, unpack_2x2
from saferedir.seam.requirements import missing_text_encoders
from saferedir.seam.run_state import check_all_is_read

# ------------------------------------------------------------------ text encoders


@pytest.mark.parametrize("method", ["sld", "negative_prompt", "dual_latent_r1", "dual_latent_r2", "safree"])
def test_a_dropped_text_encoder_is_refused_at_attach_by_guards_with_words(method: str, pipe: Any) -> None:
    guard = GUARDS[method].make(pipe, PIPELINES["sd"])
    pipe.text_encoder = pipe.tokenizer = None
    with pytest.raises(sr.GuardError, match="no text_encoder"):
        sr.attach(pipe, guard)
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))


def test_an_encoder_dropped_after_attach_is_refused_in_the_run(pipe: Any) -> None:
    prompt, negative = pipe.encode_prompt("a star", "cpu", 1, True)
    with sr.attach(pipe, SLD(SLDConfig(concept="star"))):
        pipe.text_encoder = pipe.tokenizer = None
        with pytest.raises(sr.GuardError, match="no text_encoder"):
            generate(pipe, None, prompt_embeds=prompt, negative_prompt_embeds=negative)


def test_guards_without_words_need_no_encoder(pipe: Any) -> None:
    pipe.text_encoder = pipe.tokenizer = None
    learned = DualLatentR1(DualLatentConfig(concept="star", provider="learned"))
    for guard in (Watcher(), NegativePrompt(NegativePromptConfig(concept="star", phrases=("",))), learned):
        sr.attach(pipe, guard).detach()


@pytest.mark.parametrize(
    ("name", "dropped", "missing"),
    [
        ("sdxl", "text_encoder", ["text_encoder"]),
        ("sdxl", "text_encoder_2", ["text_encoder_2"]),
        ("sdxl-refiner", "", []),
        ("sd3", "text_encoder_3", []),
        ("sd3", "text_encoder_2", ["text_encoder_2"]),
        ("flux", "text_encoder", ["text_encoder"]),
        ("flux", "text_encoder_2", ["text_encoder_2"]),
        ("flux", "tokenizer_2", ["tokenizer_2"]),
        ("sana", "text_encoder", ["text_encoder"]),
    ],
)
def test_which_encoders_a_family_cannot_go_without(name: str, dropped: str, missing: list[str]) -> None:
    pipe = PIPELINES[name].build()
    if dropped:
        setattr(pipe, dropped, None)
    assert missing_text_encoders(pipe, family_of(pipe)) == missing


# ------------------------------------------------------------------ copies


def test_a_copy_of_an_attached_guard_warns_and_acts(pipe: Any) -> None:
    one, two = Redirect(), Redirect()
    with sr.attach(pipe, one), pytest.warns(UserWarning, match="attached to this pipeline already"):
        sr.attach(pipe, two)
    sr.detach(pipe)
    other = Redirect()
    other.config = sr.guard.GuardConfig(concept="moon")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sr.attach(pipe, [one, other])
    sr.detach(pipe)


# ------------------------------------------------------------------ weights


def test_edited_weights_are_refused_where_a_second_denoiser_takes_over() -> None:
    case = PIPELINES["wan-2.2"]
    pipe = case.build()
    duo = GUARDS["duo"].make(pipe, case)
    with pytest.raises(sr.UnsupportedPipelineError, match="transformer_2"):
        sr.attach(pipe, duo)
    second, pipe.transformer_2 = pipe.transformer_2, None
    with sr.attach(pipe, duo):
        pipe.transformer_2 = second
        with pytest.raises(sr.GuardError):
            run(case, pipe)


def test_a_lora_guard_is_made_in_the_dtype_of_the_arithmetic() -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    plain = run(case, pipe)
    with sr.attach(pipe, GUARDS["duo"].make(pipe, case)):
        guarded = run(case, pipe)
    assert guarded.isfinite().all() and not equal(guarded, plain)
    assert equal(run(case, pipe), plain)


# ------------------------------------------------------------------ conditioning that no guard reads


def test_phrases_of_gligen_are_refused(pipe: Any) -> None:
    phrases = {"boxes": torch.zeros(1, 1, 4), "positive_embeddings": torch.zeros(1, 1, 8), "masks": torch.ones(1, 1)}
    with sr.attach(pipe, Watcher()), pytest.raises(sr.GuardError, match=r"cross_attention_kwargs\['gligen'\]"):
        generate(pipe, cross_attention_kwargs={"gligen": phrases})


@pytest.mark.parametrize("container", ["cross_attention_kwargs", "joint_attention_kwargs", "added_cond_kwargs"])
def test_numbers_and_what_diffusers_puts_there_pass(container: str) -> None:
    given = {"scale": 0.5, "flag": True, "nothing": None, "text_embeds": torch.ones(1), "image_embeds": [torch.ones(1)]}
    check_all_is_read({container: given, "encoder_hidden_states": torch.ones(1)})
    for value in (torch.ones(1), "a star", {"deep": torch.ones(1)}):
        with pytest.raises(sr.GuardError, match="other"):
            check_all_is_read({container: {"other": value}})


def test_packed_latents_are_the_first_tokens_and_fewer_are_refused_with_a_sentence() -> None:
    tokens = torch.randn(2, 8, 16)
    assert unpack_2x2(tokens, (2, 3)).shape == (2, 4, 4, 6)
    assert torch.equal(pack_2x2(unpack_2x2(tokens, (2, 3))), tokens[:, :6])
    with pytest.raises(sr.GuardError, match="5 image tokens"):
        unpack_2x2(tokens[:, :5], (2, 3))


def test_the_grid_is_that_of_the_first_image_wherever_its_rows_begin() -> None:
    own = torch.cartesian_prod(torch.tensor([1.0]), torch.arange(2.0) + 512, torch.arange(3.0) + 256)
    other = torch.cartesian_prod(torch.tensor([2.0]), torch.arange(4.0), torch.arange(4.0))
    assert grid_of_ids(torch.cat([own, other])) == grid_of_ids(own) == (2, 3)
    for wrong in (
        torch.cat([own[:5], other]),
        torch.cat([own[:3], other, own[3:]]),
        own.flip(0),
        own[[0, 1, 2, 3, 5, 4]],
    ):
        with pytest.raises(sr.GuardError, match="do not begin with a grid"):
            grid_of_ids(wrong)


# ------------------------------------------------------------------ guidance that ends in the middle of a run

CUTOFFS = {
    "sd": official.SDCFGCutoffCallback,
    "sdxl": official.SDXLCFGCutoffCallback,
    "sd3": official.SD3CFGCutoffCallback,
    "sdxl-controlnet": official.SDXLControlnetCFGCutoffCallback,
}


@pytest.mark.parametrize("name", CUTOFFS)
def test_official_cutoffs_change_nothing_under_a_guard_that_watches(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    settings = {"steps": 4, "callback_on_step_end": CUTOFFS[name](cutoff_step_ratio=0.4)}
    plain, watcher = run(case, pipe, **settings), Watcher()
    with sr.attach(pipe, watcher) as attached:
        assert equal(run(case, pipe, **settings), plain) and attached.runs == 1
    assert [step.run.guided for step in watcher.steps] == [True, True, False, False]
    assert [step.pred_uncond is None for step in watcher.steps] == [False, False, True, True]


@pytest.mark.parametrize("method", [name for name, row in GUARDS.items() if row.is_method and row.kind != "weights"])
def test_every_method_goes_on_after_a_cutoff(method: str, pipe: Any) -> None:
    case = PIPELINES["sd"]
    pipe = case.build()
    guard = GUARDS[method].make(pipe, case)
    settings: dict[str, Any] = {"steps": 4, "callback_on_step_end": CUTOFFS["sd"](cutoff_step_ratio=0.4)}
    plain = run(case, pipe, **settings)
    with sr.attach(pipe, guard) as attached:
        images = run(case, pipe, **settings)
    assert images.isfinite().all() and not equal(images, plain) and attached.decisions[0].fired


def test_guidance_that_ends_for_every_image_of_a_batch_is_followed(pipe: Any) -> None:
    def ends(pipe: Any, index: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if index == 0:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    settings = {"callback_on_step_end": ends, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    plain = generate(pipe, ["a star", "the moon"], **settings)
    with sr.attach(pipe, Redirect(0)):
        images = generate(pipe, ["a star", "the moon"], **settings)
    assert equal(images[1], plain[1]) and not equal(images[0], plain[0])


def test_a_cutoff_that_keeps_one_row_of_several_is_refused_with_a_sentence(pipe: Any) -> None:
    with sr.attach(pipe, Watcher()), pytest.raises(sr.GuardError, match="callback"):
        generate(pipe, ["a star", "the moon"], callback_on_step_end=CUTOFFS["sd"](cutoff_step_ratio=0.4))


def test_a_protected_pipeline_names_the_callback_that_writes(pipe: Any) -> None:
    with sr.protect(pipe, Watcher()) as call, pytest.raises(sr.GuardError, match="SDCFGCutoffCallback"):
        generate(call, callback_on_step_end=CUTOFFS["sd"](cutoff_step_ratio=0.4))
