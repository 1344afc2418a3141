"""Kandinsky 5: channels last, prompts of unlike lengths without a mask, an output that calls its images `image`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.guards import CONFIG, GUARDS, OTHER_PROMPT, PROMPT, Watcher, shared_pipeline
from tests.newer_pipelines import NEWER, PICTURE
from tests.pipelines.test_coverage import Zero
from tests.seam.test_given_latents import Checker
from tests.tiny import newer
from tests.tiny_pipelines import run

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.pipelines import packing
from saferedir.pipelines.fingerprint import vae_fingerprint
from saferedir.pipelines.latent_refresh import digest_noise, replace_share
from saferedir.pipelines.latents import decode_latents, encode_images, vae_of
from saferedir.pipelines.text_lengths import cut_prompts
from saferedir.target import Target

IMAGE, VIDEO, EDIT = (NEWER[name] for name in ("kandinsky-5", "kandinsky-5-video", "kandinsky-5-edit"))
FROM_IMAGE = NEWER["kandinsky-5-image-video"]
LONG = "a star over the sky and the moon"


class Block(Guard[GuardConfig]):
    """Takes every image for one that must not be shown."""

    method = "block"

    def verdict(self, run: Any, state: Any) -> list[sr.Decision]:
        return [
            sr.Decision(guard=self.method, concept="star", image=i, unresolved=True, fired=True)
            for i in range(run.batch_size)
        ]


@cache
def exact_pipeline() -> Any:
    """Prompts are as long as their words, as Qwen2.5-VL's processor makes them."""
    pipe = newer.make_kandinsky5(multiple=1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", [packing.KANDINSKY_IMAGE_PACKING, packing.KANDINSKY_VIDEO_PACKING])
def test_packing_has_an_inverse_and_leaves_further_channels(kind: packing.Packing) -> None:
    frames = 1 if kind is packing.KANDINSKY_IMAGE_PACKING else 3
    given = torch.randn(2, frames, 4, 6, 9)
    grid = kind.grid({"hidden_states": given})
    unpacked = kind.unpack(given, grid)
    assert grid == (4, 6) and unpacked.shape == ((2, 9, 4, 6) if frames == 1 else (2, 9, 3, 4, 6))
    assert torch.equal(kind.pack(unpacked), given)
    edited = kind.into(given, -unpacked[:, :4])
    assert torch.equal(edited[..., :4], -given[..., :4]) and torch.equal(edited[..., 4:], given[..., 4:])


def test_videos_do_not_pass_for_images() -> None:
    with pytest.raises(sr.GuardError, match="2 frames of latents where images have one"):
        packing.KANDINSKY_IMAGE_PACKING.unpack(torch.zeros(1, 2, 4, 6, 4), (4, 6))


@pytest.mark.parametrize("case", [IMAGE, VIDEO, EDIT], ids=lambda case: case.name)
def test_guards_are_given_latents_with_their_channels_second_and_none_of_a_mask_or_image(case: Any) -> None:
    watcher = Watcher()
    with sr.attach(shared_pipeline(case.name), watcher):
        latents = run(case, shared_pipeline(case.name))
    shape = (1, 4, 2, 8, 12) if case is VIDEO else (1, 4, 4, 6)
    for step in watcher.steps:
        assert step.x_t.shape == step.x0.shape == step.pred_cond.shape == shape
        assert step.model_input.shape == shape and step.pooled is not None
    assert latents.shape[-1] == 4 and not torch.equal(watcher.steps[0].x_t, watcher.steps[1].x_t)


def test_prompts_of_unlike_lengths_are_guarded_and_an_idle_guard_changes_no_bit() -> None:
    pipe, prompts = exact_pipeline(), [PROMPT, LONG]
    plain = run(IMAGE, pipe, prompts, negative_prompt="b")
    with sr.attach(pipe, Watcher()):
        assert torch.equal(run(IMAGE, pipe, prompts, negative_prompt="b"), plain)
    with sr.attach(pipe, Zero(1)):
        zeroed = run(IMAGE, pipe, prompts, negative_prompt="b")
    assert torch.equal(zeroed[0], plain[0]) and not torch.allclose(zeroed[1], plain[1], atol=1e-2)


@pytest.mark.parametrize("method", ["sld", "negative_prompt"])
def test_guards_with_words_act_beside_prompts_of_any_greater_length(method: str) -> None:
    """The negative prompt's call has positions of its own, and is given longer embeddings than the pipeline's."""
    pipe = exact_pipeline()
    for prompt in (LONG, [LONG, OTHER_PROMPT]):
        plain = run(IMAGE, pipe, prompt, negative_prompt="b")
        with sr.attach(pipe, GUARDS[method].make(pipe, IMAGE)) as attached:
            guarded = run(IMAGE, pipe, prompt, negative_prompt="b")
        assert guarded.isfinite().all() and not torch.equal(guarded, plain) and attached.decisions[0].fired


def test_a_longer_negative_prompt_of_a_guard_is_that_of_a_caller() -> None:
    class Other(Guard[GuardConfig]):
        method = "other"

        def on_prompt(self, step: Step) -> Any:
            return step.conditioning._replace(uncond=step.run.encode([LONG]))

    pipe = exact_pipeline()
    expected = run(IMAGE, pipe, LONG, negative_prompt=LONG)
    pooled = run(IMAGE, pipe, LONG, negative_prompt=PROMPT)  # whose pooled embedding stays
    with sr.attach(pipe, Other(CONFIG)):
        changed = run(IMAGE, pipe, LONG, negative_prompt=PROMPT)
    assert (changed - expected).norm() < (pooled - expected).norm()


def test_protect_knows_the_images_and_blanks_blocked_ones() -> None:
    pipe = shared_pipeline("kandinsky-5")
    call = {**IMAGE.settings, "num_inference_steps": 2, "output_type": "np"}
    plain = pipe("a star", **call, generator=torch.Generator().manual_seed(0)).image
    for guard, is_blocked in ((Watcher(), False), (Block(CONFIG), True)):
        with sr.protect(pipe, guard, on_unsafe="block") as protected:
            output = protected("a star", **call, generator=torch.Generator().manual_seed(0))
        assert output.blocked == [is_blocked]
        assert np.array_equal(output.image, np.zeros_like(plain) if is_blocked else plain)
        assert output.by_image()[0].blocked is is_blocked


@pytest.mark.parametrize("case", [IMAGE, VIDEO], ids=lambda case: case.name)
def test_latents_of_a_caller_are_tested_without_the_channels_of_a_mask(case: Any) -> None:
    pipe = shared_pipeline(case.name)
    noise = torch.randn(1, 2, 8, 12, 4) if case is VIDEO else torch.randn(1, 1, 4, 6, 4)
    rest = torch.zeros(1, 2, 8, 12, 5) if case is VIDEO else noise[..., :0]
    with sr.attach(pipe, Checker("refuse")):
        assert run(case, pipe, latents=torch.cat([noise, rest], dim=-1)).isfinite().all()
        with pytest.raises(sr.GuardError, match="do not look like noise"):
            run(case, pipe, latents=torch.cat([2 * noise, rest], dim=-1))
    mixed = run(case, pipe, latents=torch.cat([replace_share(noise, digest_noise(noise), 0.5), rest], dim=-1))
    with sr.attach(pipe, Checker("refresh_all")):
        assert torch.equal(run(case, pipe, latents=torch.cat([noise, rest], dim=-1)), mixed)


@pytest.mark.parametrize("kind", ["refuse", "refresh", "refresh_all"])
def test_an_image_beside_the_noise_of_given_latents_is_refused(kind: str) -> None:
    """Those channels stand beside the noise in every step: what they show would come in past every test of the noise."""
    pipe = shared_pipeline(VIDEO.name)
    noise, picture = torch.randn(1, 2, 8, 12, 4), torch.full((1, 2, 8, 12, 4), 2.5)
    nothing, whole = torch.zeros(1, 2, 8, 12, 1), torch.ones(1, 2, 8, 12, 1)
    with sr.attach(pipe, Checker(kind)):
        for beside in ((picture, whole), (picture, nothing), (0 * picture, whole), (picture * torch.nan, nothing)):
            with pytest.raises(sr.GuardError, match="an image or a mask beside their noise"):
                run(VIDEO, pipe, latents=torch.cat([noise, *beside], dim=-1))
        assert run(VIDEO, pipe, latents=torch.cat([noise, 0 * picture, nothing], dim=-1)).isfinite().all()


@pytest.mark.parametrize("case", [IMAGE, VIDEO], ids=lambda case: case.name)
def test_a_run_entered_in_its_middle_goes_on_as_the_whole_does(case: Any) -> None:
    pipe = shared_pipeline(case.name)
    call = {**case.settings, "guidance_scale": 1.0, "num_inference_steps": 3}
    with Target(pipe, [GUARDS["saferedir"].make(pipe, case)], call) as target, torch.no_grad():
        whole = target.roll_out(None, prompt=[PROMPT], generator=torch.Generator().manual_seed(0))
        rest = target.roll_out(whole[1].x_t, 1, prompt=[PROMPT], generator=torch.Generator().manual_seed(0))
        assert torch.equal(rest[-1].latents, whole[-1].latents)


def test_images_are_encoded_and_decoded_without_the_shift_as_the_pipeline_does() -> None:
    pipe = shared_pipeline("kandinsky-5")
    latents = encode_images(vae_of(pipe), [np.array(PICTURE["image"])])
    pixels = torch.from_numpy(np.array(PICTURE["image"])).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        torch.testing.assert_close(latents, expected)
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        torch.testing.assert_close(decode_latents(pipe, latents), (image / 2 + 0.5).clamp(0, 1))
    assert vae_fingerprint(vae_of(pipe)) != vae_fingerprint(pipe.vae)


def test_prompts_that_are_cut_are_counted_by_the_processors_tokenizer() -> None:
    pipe = shared_pipeline("kandinsky-5")
    (short,), (long,) = (cut_prompts(pipe, ["a star " * n], {"max_sequence_length": 40}) for n in (1, 30))
    assert not short and {cut.text_encoder.split()[0] for cut in long} == {"text_encoder", "text_encoder_2"}


def test_a_video_from_an_image_has_no_latents_in_its_first_frame() -> None:
    case, pipe, watcher = FROM_IMAGE, shared_pipeline(FROM_IMAGE.name), Watcher()
    with sr.attach(pipe, watcher):
        guarded = run(case, pipe)
    assert torch.equal(guarded, run(case, pipe)) and guarded.shape == (1, 3, 8, 12, 4)
    assert all(step.x_t.shape == step.pred_cond.shape == (1, 4, 2, 8, 12) for step in watcher.steps)
    with sr.attach(pipe, watcher), pytest.raises(sr.GuardError, match="has no latents to guard; ask for more frames"):
        run(case, pipe, num_frames=1)
