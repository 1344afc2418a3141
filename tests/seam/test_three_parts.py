"""Guidance of three parts: perturbed attention (uncond, cond, perturbed) and InstructPix2Pix (cond, image, blank)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.contract.guards import GUARDS, PROMPT, Watcher, shared_pipeline
from tests.tiny_pipelines import run
from tests.tiny_variants import VARIANTS
from torch import Tensor

import saferedir as sr
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.denoiser_call import Layout
from saferedir.pipelines.schedules import to_x0


def watched(name: str, **changes: Any) -> tuple[Watcher, list[Tensor]]:
    """(what a watching guard was given, output of each denoiser call) of one run."""
    case, pipe, watcher, outputs = VARIANTS[name], shared_pipeline(name), Watcher(), []
    stop = pipe.unet.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    with sr.attach(pipe, watcher):
        run(case, pipe, PROMPT, **changes)
    stop.remove()
    return watcher, outputs


@pytest.mark.parametrize("name", ["sd-pag", "sd-pix2pix"])
def test_guards_are_given_the_rows_and_the_guided_prediction(name: str) -> None:
    watcher, outputs = watched(name)
    assert len(watcher.steps) == len(outputs) == 3
    for step, output in zip(watcher.steps, outputs, strict=True):
        first, second, third = output.chunk(3)
        if name == "sd-pag":
            cond, uncond, expected = second, first, first + 5.0 * (second - first) + 2.0 * (second - third)
        else:
            cond, uncond, expected = first, second, third + 5.0 * (first - second) + 1.5 * (second - third)
        assert step.pred_cond is not None and step.pred_uncond is not None and step.pred is not None
        assert torch.equal(step.pred_cond, cond) and torch.equal(step.pred_uncond, uncond)
        torch.testing.assert_close(step.pred, expected)
        for x0, pred in ((step.x0, step.pred), (step.x0_uncond, uncond)):
            assert x0 is not None
            torch.testing.assert_close(x0, to_x0("epsilon", pred, step.x_t, step.alpha, step.sigma))


def test_perturbed_rows_alone_are_no_guidance() -> None:
    watcher, outputs = watched("sd-pag", guidance_scale=1.0)
    assert len(outputs[0]) == 2 and not watcher.runs[0].guided
    assert torch.equal(watcher.steps[0].pred_cond, outputs[0][:1]) and watcher.steps[0].pred_uncond is None


def test_a_layout_writes_each_half_in_every_block_that_has_it() -> None:
    layout = Layout(2, ("uncond", "cond", "perturbed"))
    rows = torch.arange(6.0)[:, None, None]
    given = layout.read(PromptEmbeds(rows))
    assert given.uncond is not None
    assert given.cond.prompt.flatten().tolist() == [2.0, 3.0] and given.uncond.prompt.flatten().tolist() == [0.0, 1.0]
    used = Conditioning(PromptEmbeds(-given.cond.prompt), given.uncond)
    assert torch.cat([half.prompt for half in layout.halves(used)]).flatten().tolist() == [0, 1, -2, -3, -2, -3]
    assert layout.with_cond(rows, 9 + 0 * rows[:2]).flatten().tolist() == [0, 1, 9, 9, 4, 5]
    blank = Layout(1, ("cond", "uncond", "blank"))
    halves = blank.halves(Conditioning(PromptEmbeds(rows[:1]), PromptEmbeds(rows[1:2])))
    assert torch.cat([half.prompt for half in halves]).flatten().tolist() == [0, 1, 1]


@pytest.mark.parametrize("method", ["sld", "dual_latent_r1", "negative_prompt"])
def test_methods_with_rows_act_on_instruct_pix2pix(method: str) -> None:
    case, pipe = VARIANTS["sd-pix2pix"], shared_pipeline("sd-pix2pix")
    plain = run(case, pipe, PROMPT)
    with sr.attach(pipe, GUARDS[method].make(pipe, case)) as attached:
        images = run(case, pipe, PROMPT)
    assert images.isfinite().all() and not torch.equal(images, plain) and attached.decisions[0].fired


def test_a_negative_prompt_that_would_shape_the_image_is_refused() -> None:
    case, pipe = VARIANTS["sd-pix2pix"], shared_pipeline("sd-pix2pix")
    with (
        sr.attach(pipe, Watcher()),
        pytest.raises(sr.GuardError, match="image_guidance_scale=9 above guidance_scale=5"),
    ):
        run(case, pipe, PROMPT, image_guidance_scale=9.0)
