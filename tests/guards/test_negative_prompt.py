"""The negative prompt guard: what diffusers' own negative prompt does, the three-row form, and what both refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import LATENT_SHAPE, generate, make_pipeline, make_scheduler
from tests.guards.guidance_probe import RowCounter, by_case, close
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.guards.dual_latent import DualLatentConfig, DualLatentR1
from saferedir.guards.guidance import guidance_weight
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.sld import SLD, SLDConfig

PROMPTS = ["a star over b c d e", "c"]  # longer than the phrases: Lumina cuts its negative prompt there
GUIDED = [case for case in PIPELINES.values() if case.guidance]


def negative(**settings: Any) -> NegativePrompt:
    return NegativePrompt(NegativePromptConfig(**{"concept": "a moon", **settings}))


@pytest.mark.parametrize("case", GUIDED, ids=lambda case: case.name)
def test_standard_is_the_pipelines_own_negative_prompt(case: PipelineCase) -> None:
    pipe = case.build()
    changes = {"negative_prompt": "a moon, b"}
    if case.family in ("sana", "lumina-2"):  # they encode negative prompts without the instruction of prompts
        changes |= {"complex_human_instruction": None} if case.family == "sana" else {"system_prompt": ""}
    own = run(case, pipe, PROMPTS, **changes)
    changes["negative_prompt"] = case.guidance.get("negative_prompt", "z")
    with sr.attach(pipe, negative(phrases=("a moon", "b"))) as attached:
        guarded = run(case, pipe, PROMPTS, **changes)
    if case.family == "lumina-2":  # an empty system prompt still leaves its mark before prompts
        assert guarded.isfinite().all() and not torch.equal(guarded, own)
    else:
        assert close(guarded, own), case.name
    assert [d.action for d in attached.decisions] == ["redirected"] * 2
    assert attached.decisions[0].first_fired_step == 0 and "in place" in attached.decisions[0].message


@by_case
def test_every_pipeline_works_or_refuses_with_one_sentence(case: PipelineCase) -> None:
    pipe = case.build()
    bare = run(case, pipe, steps=2)
    for variant in ("standard", "subtract"):
        guard = negative(variant=variant)
        with sr.attach(pipe, guard) as attached:
            if case.guidance:
                result = run(case, pipe, steps=2)
                assert result.isfinite().all() and not torch.equal(result, bare)
                assert attached.decisions[0].fired and attached.decisions[0].steps_redirected >= 1
            else:
                with pytest.raises(
                    sr.GuardError, match=r"works through classifier-free guidance and this call has none"
                ):
                    run(case, pipe, steps=2)
    with sr.attach(pipe, negative(without_guidance="ignore")) as attached:
        unguided = run(case, pipe, **case.unguided)
    assert torch.equal(unguided, run(case, pipe, **case.unguided))
    assert not attached.decisions[0].fired and "no classifier-free guidance" in attached.decisions[0].message


@pytest.mark.parametrize("variant", ["standard", "subtract"])
def test_no_phrases_change_no_bit(variant: str, pipe: Any) -> None:
    bare = generate(pipe, ["a", "b"])
    with sr.attach(pipe, negative(phrases=("",), variant=variant)) as attached, RowCounter(pipe.unet) as rows:
        assert torch.equal(generate(pipe, ["a", "b"]), bare)
    assert rows.counts == [4, 4, 4] and not attached.decisions[0].fired and not attached.decisions[0].message


def test_row_accounting(pipe: Any) -> None:
    for variant, expected in (("standard", 4), ("subtract", 6)):
        with sr.attach(pipe, negative(variant=variant)), RowCounter(pipe.unet) as rows:
            generate(pipe, ["a", "b"])
        assert rows.counts == [expected] * 3


def test_a_prompt_that_is_the_phrases(pipe: Any) -> None:
    """standard gives m_n (the concept, unguided), subtract gives m_0 (the unconditional picture)."""
    concept = generate(pipe, "a moon", guidance_scale=1.0)
    empty = generate(pipe, "", guidance_scale=1.0)
    for variant, expected in (("standard", concept), ("subtract", empty)):
        with sr.attach(pipe, negative(variant=variant)):
            assert close(generate(pipe, "a moon"), expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
def test_subtract_is_its_formula_in_every_prediction_type(kind: str, scheduler: str) -> None:
    pipe = make_pipeline(make_scheduler(scheduler, prediction_type=kind))

    class Check(Guard[GuardConfig]):
        seen = 0

        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            assert step.pred is not None and step.pred_uncond is not None and step.pred_cond is not None
            expected = step.pred_uncond + 5.0 * (step.pred_cond - rows.outputs[-1][4:6])
            assert close(step.pred, expected, 1e-5)
            self.seen += 1
            return x0

    check = Check(GuardConfig(concept="check"))
    with RowCounter(pipe.unet) as rows, sr.attach(pipe, [negative(variant="subtract"), check]):
        generate(pipe, ["a", "b"])
    assert check.seen == 3


@pytest.mark.parametrize("variant", ["standard", "subtract"])
def test_batches_equal_single_runs_and_gradients_flow(variant: str, pipe: Any) -> None:
    with sr.attach(pipe, negative(variant=variant)):
        batch = generate(pipe, ["a star", "b"])
        singles = [generate(pipe, prompt, seeds=[seed]) for seed, prompt in enumerate(["a star", "b"])]
        assert close(batch, torch.cat(singles))
        embeds = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1))
        images = type(pipe).__call__.__wrapped__(  # type: ignore[attr-defined]
            pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros(1, 77, 32), latents=latents,
            num_inference_steps=2, output_type="latent",
        ).images  # fmt: skip
        images.square().sum().backward()
    assert embeds.grad is not None and embeds.grad.isfinite().all() and embeds.grad.abs().sum() > 0


def test_a_list_longer_than_the_encoders_window_warns(pipe: Any) -> None:
    with sr.attach(pipe, negative(phrases=("abcdefgh",) * 9)), pytest.warns(UserWarning, match="77 tokens"):
        generate(pipe)


def test_files_and_configs(tmp_path: Path) -> None:
    guard = negative(phrases=("a", "b"), variant="subtract")
    loaded = Guard.from_pretrained(guard.save_pretrained(tmp_path / "guard"))
    assert isinstance(loaded, NegativePrompt) and loaded.config == guard.config and loaded.config.text == "a, b"
    for wrong in ({"variant": "x"}, {"without_guidance": "x"}, {"phrases": "a, b"}, {"concept": ""}):
        with pytest.raises(sr.GuardConfigError, match=f"{next(iter(wrong))} is"):
            negative(**wrong)


GUIDING = {
    "negative_prompt": lambda: negative(),
    "sld": lambda: SLD(SLDConfig(concept="a moon")),
    "dual_latent_r1": lambda: DualLatentR1(DualLatentConfig(concept="a moon")),
}


@pytest.mark.parametrize("first", GUIDING)
@pytest.mark.parametrize("second", GUIDING)
def test_two_guards_that_replace_guidance_are_refused_on_one_pipeline(first: str, second: str, pipe: Any) -> None:
    class Other(Guard[GuardConfig]):
        pass

    one, two = GUIDING[first](), GUIDING[second]()
    with pytest.raises(sr.GuardError, match=f"'{first}' and '{second}' both replace"):
        sr.attach(pipe, [one, two])
    with sr.attach(pipe, [Other(GuardConfig(concept="x")), one]):
        with pytest.raises(sr.GuardError, match=f"'{first}' and '{second}' both replace"):
            sr.attach(pipe, two)
    with sr.attach(pipe, two):
        pass


@pytest.mark.parametrize("settings", [{}, {"guidance_rescale": 0.7}])
def test_the_weight_of_guidance_is_declared_or_measured(settings: dict[str, Any], pipe: Any) -> None:
    weights: list[Tensor] = []

    class Measure(Guard[GuardConfig]):
        def on_prediction(self, step: Step) -> Tensor:
            weights.append(guidance_weight(step))
            assert step.pred is not None and step.pred_cond is not None and step.pred_uncond is not None
            plain = step.pred_uncond + 5.0 * (step.pred_cond - step.pred_uncond)
            factor = (step.pred * plain).flatten(1).sum(1) / plain.square().flatten(1).sum(1)
            torch.testing.assert_close(weights[-1].flatten(), 5.0 * factor, rtol=1e-3, atol=1e-3)
            return step.pred

    with sr.attach(pipe, Measure(GuardConfig(concept="x"))):
        generate(pipe, ["a", "b"], **settings)
    is_exact = all(bool((weight == 5.0).all()) for weight in weights)
    assert len(weights) == 3 and weights[0].shape == (2, 1, 1, 1) and is_exact != bool(settings)


def test_the_weight_of_hidden_guidance_is_measured_and_refused_where_it_cannot_be() -> None:
    case = PIPELINES["pixart-sigma"]
    pipe, weights = case.build(), []

    class Measure(Guard[GuardConfig]):
        def on_prediction(self, step: Step) -> Tensor:
            assert step.pred is not None and step.guidance_scale == 5.0
            weights.append(guidance_weight(replace(step, guidance_scale=None)))
            return step.pred

    with sr.attach(pipe, Measure(GuardConfig(concept="x"))):
        run(case, pipe, ["a star", "b"])
        torch.testing.assert_close(torch.cat(weights).flatten(), torch.full((6,), 5.0), rtol=1e-3, atol=1e-3)
        with pytest.raises(sr.GuardError, match="cannot be computed"):
            run(case, pipe, "a star", negative_prompt="a star")
