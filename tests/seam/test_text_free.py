"""Pipelines that read no text: class-conditional and unconditional sampling under guards that work on the image.

The claims are those of the contract: read-only guards change nothing, an edit reaches every image it was meant for and no
other, every step is guarded, and a guard that works on the prompt is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny.text_free import make_dit, make_unconditional
from torch import Tensor
from typer.testing import CliRunner

from saferedir import GuardError, UnsupportedPipelineError, attach, detach, protect
from saferedir.cli import app
from saferedir.errors import BackboneMismatchError
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.guards.negation import NegationSet
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.spell import SPELL
from saferedir.pipelines.fingerprint import backbone_fingerprint

STEPS, IMAGES = 4, 3


def dit(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    return make_dit(scheduler), {"class_labels": [7, 207, 850], "guidance_scale": 4.0}


def dit_unguided(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    return make_dit(scheduler), {"class_labels": [7, 207, 850], "guidance_scale": 1.0}


def ddpm(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    return make_unconditional(diffusers.DDPMPipeline, scheduler), {"batch_size": IMAGES}


def ddim(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    return make_unconditional(diffusers.DDIMPipeline, scheduler), {"batch_size": IMAGES, "eta": 0.5}


KINDS = pytest.mark.parametrize("make", [dit, dit_unguided, ddpm, ddim])
Make = Callable[..., tuple[Any, dict[str, Any]]]


class ReadOnly(Guard[GuardConfig]):
    """Counts steps, checks shapes, changes nothing."""

    method = "read-only"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="x"))
        self.steps: list[Step] = []

    def on_prediction(self, step: Step) -> Tensor:
        self.steps.append(step)
        assert step.pred is not None
        return step.pred

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        return latents


class Damp(Guard[GuardConfig]):
    """Pulls x0 of the chosen images to zero, as (B, ...) says."""

    method = "damp"

    def __init__(self, *rows: int) -> None:
        super().__init__(GuardConfig(concept="x"))
        self.rows = rows

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return torch.stack([0.1 * one if row in self.rows else one for row, one in enumerate(x0)])


def generated(pipe: Any, call: dict[str, Any], **changes: Any) -> np.ndarray[Any, Any]:
    torch.manual_seed(4)  # a DiTPipeline hands its generator to no scheduler
    made = pipe(
        **{
            **call,
            "num_inference_steps": STEPS,
            "generator": torch.Generator().manual_seed(3),
            "output_type": "np",
            **changes,
        }
    )
    images: np.ndarray[Any, Any] = made.images
    return images


SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(),
    "ddpm": lambda: diffusers.DDPMScheduler(),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(),
}


@KINDS
def test_a_read_only_guard_changes_nothing_and_is_asked_at_every_step(make: Make) -> None:
    pipe, call = make()
    bare, guard = generated(pipe, call), ReadOnly()
    with attach(pipe, guard) as attached:
        assert np.array_equal(generated(pipe, call), bare)
        assert [d.image for d in attached.decisions] == list(range(IMAGES))
    channels = 4 if make in (dit, dit_unguided) else 3
    assert [step.evaluation for step in guard.steps] == list(range(STEPS))
    for step in guard.steps:
        assert step.x_t is not None and step.pred is not None and step.pred_cond is not None
        assert step.x_t.shape[:2] == step.pred.shape[:2] == step.pred_cond.shape[:2] == (IMAGES, channels)
        assert (step.pred_uncond is not None) == (make is dit)
        assert step.prompt_embeds.shape[:2] == (IMAGES, 0)
        if step.pred_uncond is not None:  # guidance is what the pipeline says it is
            blend = step.pred_uncond + 4.0 * (step.pred_cond - step.pred_uncond)
            torch.testing.assert_close(blend, step.pred)
    assert np.array_equal(generated(pipe, call), bare)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("make", [dit, dit_unguided, ddpm])
def test_an_edit_reaches_its_own_image_and_no_other(make: Make, scheduler: str) -> None:
    pipe, call = make(SCHEDULERS[scheduler]())
    bare = generated(pipe, call)
    with attach(pipe, Damp(1)):
        images = generated(pipe, call)
    assert np.array_equal(images[[0, 2]], bare[[0, 2]])
    assert np.abs(images[1] - bare[1]).max() > 1e-3
    with attach(pipe, Damp(0, 1, 2)):
        every = generated(pipe, call)
    assert np.array_equal(every[1], images[1])


@KINDS
def test_a_guard_that_works_on_the_prompt_is_refused(make: Make) -> None:
    pipe, _ = make()
    with pytest.raises(UnsupportedPipelineError, match=f"works on the prompt, and a {type(pipe).__name__} reads none"):
        attach(pipe, NegativePrompt(NegativePromptConfig(concept="x")))


@KINDS
@pytest.mark.parametrize("method", [SafeDenoiser, SPELL])
def test_negation_guards_push_images_away_from_the_set(make: Make, method: Any) -> None:
    """The set is one image that the pipeline makes: the guarded one is farther from it, in the sampler's own frame."""
    pipe, call = make()
    watch = ReadOnly()
    with attach(pipe, watch):
        generated(pipe, call)
    last = watch.steps[-1]
    assert last.x_t is not None
    reference = last.x_t[:1].clone()
    negation = NegationSet.from_latents(reference)
    more = {"window": (0.0, 1.0)} if method is SafeDenoiser else {"radius": 1e3}
    settings = {"gate": "always", "beta_max": None, "trust": 0.2} if method is SafeDenoiser else {}
    guard = method.from_set(negation, concept="x", backbone=None, **more, **settings)
    bare = generated(pipe, call)
    with attach(pipe, guard) as attached:
        images = generated(pipe, call)
    assert attached.decisions[0].fired  # the image that the set holds
    assert np.isfinite(images).all() and np.abs(images - bare).max() > 1e-3


@KINDS
def test_protect_verifies_and_blocks(make: Make) -> None:
    pipe, call = make()
    torch.manual_seed(4)
    protected = protect(
        pipe, Damp(), on_unsafe="verify", retries=1, verify=lambda images: [True] + [False] * (len(images) - 1)
    )
    output = protected(**call, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="np")
    assert output.blocked == [True, False, False] and not output.images[0].any()
    protected.detach()
    bare = generated(pipe, call)
    assert np.array_equal(output.images[1:], bare[1:])


@KINDS
def test_a_guard_that_fails_leaves_no_image(make: Make) -> None:
    class Broken(Damp):
        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            return x0 * float("nan")

    pipe, call = make()
    with attach(pipe, Broken()), pytest.raises(GuardError, match="NaN"):
        generated(pipe, call)
    detach(pipe)
    assert np.isfinite(generated(pipe, call)).all()


@KINDS
def test_a_call_without_a_step_is_refused(make: Make) -> None:
    pipe, call = make()
    with attach(pipe, Damp()), pytest.raises((GuardError, ValueError, ZeroDivisionError)):
        generated(pipe, call, num_inference_steps=0)


def test_the_fingerprint_names_the_family_and_tells_weights_apart() -> None:
    pipe, other = make_unconditional(), make_unconditional(diffusers.DDIMPipeline)
    found = backbone_fingerprint(pipe)
    assert found["architecture"]["family"] == "unconditional" and found == backbone_fingerprint(other)
    with torch.no_grad():
        next(other.unet.parameters()).add_(1.0)
    assert found["weights"] != backbone_fingerprint(other)["weights"]
    assert backbone_fingerprint(make_dit())["architecture"]["family"] == "dit"


@pytest.mark.parametrize("make", [ddpm, dit])
def test_a_negation_set_is_built_of_image_files_for_them(make: Make, tmp_path: Path) -> None:
    pipe, call = make()
    pipe.save_pretrained(tmp_path / "model")
    folder, out = tmp_path / "images", tmp_path / "set.safetensors"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    given = ["negation", "build", "--model", str(tmp_path / "model"), "--out", str(out)]
    assert CliRunner().invoke(app, [*given, "--images", str(folder)]).exit_code == 0
    negation = NegationSet.open(out)
    assert len(negation) == 3 and tuple(negation.shape) == ((3, 16, 16) if make is ddpm else (4, 8, 8))
    guard = SafeDenoiser.from_set(negation, concept="x", window=(0.0, 1.0), gate="always", beta_max=None)
    with attach(pipe, guard) as attached:
        generated(pipe, call)
    assert all(decision.fired for decision in attached.decisions)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star\n")
    refused = CliRunner().invoke(app, [*given[:-1], str(tmp_path / "other.safetensors"), "--prompts", str(prompts)])
    assert refused.exit_code == 2 and "reads no prompts" in " ".join(refused.output.split())


def test_a_set_of_latents_does_not_guard_pixels() -> None:
    pipe, _ = ddpm()
    negation = NegationSet.from_latents(torch.randn(2, 3, 16, 16), facts={"vae": "0123456789abcdef"})
    with pytest.raises(BackboneMismatchError, match="another VAE"):
        attach(pipe, SafeDenoiser.from_set(negation, concept="x"))
