"""Dual latent R2: what follows from docs/methods/dual_latent.md (7) to (11), on tiny pipelines, and the provider "context_text".

The merge operators are tested in test_dual_latent_merging.py, what the seam does for a second latent in test_second_latent.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PROMPT_WIDTH, SCHEDULERS, generate, make_pipeline, make_scheduler
from tests.guards.guidance_probe import RowCounter, by_case, close
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.guards.dual_latent import DualLatentConfig, DualLatentR1, DualLatentR2, DualLatentR2Config
from saferedir.guards.dual_latent.merging import Stream, merge
from saferedir.pictoworld.methods import METHODS, ORDER
from saferedir.pictoworld.tasks import TASKS
from saferedir.pipelines.schedules import to_x0

PROMPT = "a star"
REFUSED = ("pndm", "pndm-prk", "heun", "kdpm2", "kdpm2-ancestral", "dpm-singlestep")
FOLLOWED = [name for name in SCHEDULERS if name not in REFUSED]


def dual(**settings: Any) -> DualLatentR2:
    given = {"concept": "a star", "provider": "phrase", "safe_phrase": "b moon", "tau": 0.0, **settings}
    return DualLatentR2(DualLatentR2Config(**given))


def guarded(pipe: Any, guard: Guard[Any], prompt: Any = PROMPT, **call: Any) -> Tensor:
    with sr.attach(pipe, guard):
        return generate(pipe, prompt, **{"num_inference_steps": 5, **call})


def bare(pipe: Any, prompt: Any = PROMPT, **call: Any) -> Tensor:
    return generate(pipe, prompt, **{"num_inference_steps": 5, **call})


# --- 1, 2, 3: identities


@pytest.mark.parametrize("name", FOLLOWED)
def test_level_0_and_tau_1_change_no_bit_and_need_no_row(name: str) -> None:
    pipe = make_pipeline(name)
    plain = bare(pipe)
    for settings in ({"w": 0.0}, {"w": 1.0, "tau": 1.0}, {"w": 1.0, "tau": 1.0, "tau_mode": "noise"}):
        with RowCounter(pipe.unet) as rows, sr.attach(pipe, dual(**settings)) as attached:
            assert torch.equal(bare(pipe), plain)
        assert set(rows.counts) == {2} and not attached.decisions[0].fired


@pytest.mark.parametrize("merging", ["renorm", "linear"])
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_safe_prompt_that_is_the_users_changes_nothing(name: str, merging: str) -> None:
    pipe = make_pipeline(name)
    plain = bare(pipe)
    for settings in ({"w": 0.3}, {"w": 0.6, "tau": 0.2, "dual_fraction": 0.4, "after": "blend"}):
        found = guarded(pipe, dual(safe_phrase=PROMPT, merge=merging, **settings))
        assert close(found, plain, 1e-5 if name != "sa-solver" else 1e-4)


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("name", FOLLOWED)
def test_level_1_from_the_first_step_is_the_pipeline_under_the_safe_prompt(name: str, scale: float) -> None:
    """The histories go over entirely, too: else multistep solvers would stray at the merge."""
    pipe = make_pipeline(name)
    safe, plain = (bare(pipe, text, guidance_scale=scale) for text in ("b moon", PROMPT))
    for merging in ("renorm", "linear", "slerp"):
        found = guarded(pipe, dual(w=1.0, merge=merging, dual_fraction=0.4), guidance_scale=scale)
        assert close(found, safe, 1e-4) and (found - safe).abs().max() <= 1e-2 * (plain - safe).abs().max()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_prediction_types(kind: str) -> None:
    pipe = make_pipeline(make_scheduler("ddim", prediction_type=kind))
    assert torch.equal(guarded(pipe, dual(w=0.0)), bare(pipe))
    assert close(guarded(pipe, dual(w=0.4, safe_phrase=PROMPT, dual_fraction=0.6)), bare(pipe), 1e-5)
    assert not close(guarded(pipe, dual(w=0.4)), bare(pipe), 1e-3)


# --- the method itself, against two pipelines and a merge by hand


class Trace(Guard[GuardConfig]):
    """Keeps the latents after every step, the denoised estimates, and can put others in their place once."""

    def __init__(self, at: int = -1, latents: Tensor | None = None) -> None:
        super().__init__(GuardConfig(concept="x"))
        self.at, self.given = at, latents
        self.latents: list[Tensor] = []
        self.x0: list[Tensor] = []
        self.steps: list[Step] = []

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        self.steps.append(step)
        self.x0.append(x0)
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        self.latents.append(latents)
        return self.given if self.given is not None and step.index == self.at else latents


@pytest.mark.parametrize("after", ["user", "safe"])
@pytest.mark.parametrize("name", ["ddim", "euler", "ddim-eta", "euler-ancestral", "ddpm"])
def test_it_is_two_pipelines_merged_by_hand(name: str, after: str) -> None:
    """Split from pure noise, two steps each, one merge, two steps: for schedulers without a history."""
    call: dict[str, Any] = {"num_inference_steps": 4} | ({"eta": 1.0} if name == "ddim-eta" else {})
    pipe, w = make_pipeline(name), 0.4
    traces = [Trace(), Trace()]
    for trace, prompt in zip(traces, (PROMPT, "b moon"), strict=True):
        with sr.attach(pipe, trace):
            bare(pipe, prompt, **call)
    level = traces[0].steps[2]
    streams = [Stream(trace.latents[1], trace.x0[1]) for trace in traces]
    merged = merge("renorm", *streams, torch.tensor([w]), level.alpha, level.sigma)  # type: ignore[call-arg]
    with sr.attach(pipe, Trace(1, merged)):
        expected = bare(pipe, PROMPT if after == "user" else "b moon", **call)
    found = guarded(pipe, dual(w=w, dual_fraction=0.5, after=after), **call)
    assert close(found, expected, 1e-5)
    assert not close(found, bare(pipe, **call), 1e-2)


@pytest.mark.parametrize("name", ["dpm++", "deis", "lms", "unipc", "sde-dpm++"])
def test_merged_histories_are_those_of_blended_predictions(name: str) -> None:
    """Latents and history both blended ("linear", after="user"): for a linear model the end is affine in w."""
    pipe = make_pipeline(name)

    def forward(sample: Tensor, t: Any, encoder_hidden_states: Tensor, return_dict: bool = True, **_: Any) -> Any:
        return (0.3 * sample + encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1, 1),)

    pipe.unet.forward = forward
    call = {"prompt_embeds": constant(1.0), "negative_prompt_embeds": constant(0.0)}
    settings = {"merge": "linear", "after": "user", "dual_fraction": 0.6, "provider": "learned"}
    ends = [guarded(pipe, learned(-1.0, w=w, **settings), None, **call) for w in (0.0, 0.35, 1.0)]
    assert close(ends[1], 0.65 * ends[0] + 0.35 * ends[2], 1e-4) and not close(ends[0], ends[2], 1e-2)


def constant(value: float) -> Tensor:
    return torch.full((1, 77, PROMPT_WIDTH), value)


def learned(value: float, **settings: Any) -> DualLatentR2:
    return DualLatentR2(
        DualLatentR2Config(**{"concept": "x", "provider": "learned", "tau": 0.0, **settings}), constant(value)[0]
    )


# --- 9, 12: isolation of the streams, noise, rows


@pytest.mark.parametrize("name", ["euler-ancestral", "sde-dpm++", "ddpm", "lcm", "sa-solver"])
def test_the_generator_ends_where_the_bare_pipelines_does(name: str) -> None:
    pipe, states = make_pipeline(name), []
    for guards in ([], [dual(dual_fraction=0.6)]):
        generator = torch.Generator().manual_seed(0)
        with sr.attach(pipe, [Trace(), *guards]):
            bare(pipe, generator=generator)
        states.append((generator.get_state(), torch.get_rng_state()))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_the_users_latent_is_untouched_until_the_merge() -> None:
    for name in ("ddim", "dpm++", "euler-ancestral"):
        pipe = make_pipeline(name)
        plain, watched = Trace(), Trace()
        with sr.attach(pipe, plain):
            bare(pipe)
        with sr.attach(pipe, [watched, dual(w=0.7, dual_fraction=0.6)]):
            bare(pipe)
        for step in range(3):
            assert close(watched.latents[step], plain.latents[step], 1e-5)  # larger batches round otherwise
        assert not close(watched.latents[3], plain.latents[3], 1e-2)


@pytest.mark.parametrize("after, last", [("safe", 2), ("user", 2), ("blend", 3)])
def test_row_accounting(after: str, last: int, pipe: Any) -> None:
    with RowCounter(pipe.unet) as rows:
        guarded(pipe, dual(tau=0.2, dual_fraction=0.3, after=after), num_inference_steps=10)
    assert rows.counts == [2, 2, 3, 4, 4, *[last] * 5]
    with RowCounter(pipe.unet) as rows:
        guarded(pipe, dual(tau=0.2, dual_fraction=0.3, after=after), num_inference_steps=10, guidance_scale=1.0)
    assert rows.counts == [1, 1, 2, 2, 2, *[last - 1] * 5]


def test_a_learned_safe_prompt_takes_the_users_place_too(pipe: Any) -> None:
    with RowCounter(pipe.unet) as rows:
        guarded(pipe, learned(0.5, dual_fraction=0.4))
    assert rows.counts == [3, 4, 2, 2, 2]


def test_where_prompts_have_masks_the_safe_prompt_rides_after_the_merge() -> None:
    case = PIPELINES["pixart-sigma"]
    pipe = case.build()
    with RowCounter(pipe.transformer) as rows, sr.attach(pipe, dual(dual_fraction=0.5)):
        run(case, pipe, steps=4)
    assert rows.counts == [3, 4, 3, 3]


def test_sequential_guidance_takes_two_rows_in_each_call() -> None:
    case = PIPELINES["flux-true-cfg"]
    pipe = case.build()
    with RowCounter(pipe.transformer) as rows, sr.attach(pipe, dual(dual_fraction=0.5)):
        run(case, pipe, steps=4)
    assert rows.counts == [2, 1, 2, 2, 1, 1, 1, 1]


def test_the_split_is_that_of_the_noise_or_steps_and_the_merge_comes_before_the_last_step(pipe: Any) -> None:
    def dual_steps(count: int = 5, **settings: Any) -> list[int]:
        with RowCounter(pipe.unet) as rows:
            guarded(pipe, dual(after="user", **settings), num_inference_steps=count)
        return [index for index, number in enumerate(rows.counts) if number > 2]

    assert dual_steps(dual_fraction=0.9) == [0, 1, 2, 3]
    assert dual_steps(tau=0.6, dual_fraction=0.4) == [3]
    assert dual_steps(tau=0.8) == []
    assert dual_steps(2, dual_fraction=0.1) == [0]
    watch = Trace()
    with sr.attach(pipe, watch):
        bare(pipe)
    u = [float((step.sigma / (step.alpha + step.sigma)).flatten()[0]) for step in watch.steps]
    first = next(index for index, value in enumerate(u) if value <= 0.7)
    assert dual_steps(tau=0.3, tau_mode="noise")[:1] == [first] and first > 0


# --- 10, 11: similarity, batches, levels per image, retries


def test_similarity_limits_the_level_at_the_merge(pipe: Any) -> None:
    settings = {"w": 1.0, "after": "user", "dual_fraction": 0.4}
    with sr.attach(pipe, dual(tau=1.0, tau_mode="similarity", **settings)) as attached:
        held = bare(pipe)
    assert close(held, bare(pipe), 1e-4) and "Levels used" in attached.decisions[0].message
    assert not close(guarded(pipe, dual(tau=0.01, tau_mode="similarity", **settings)), held, 1e-3)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "euler-ancestral"])
@pytest.mark.parametrize("after", ["safe", "blend"])
def test_each_image_has_its_own_level(name: str, after: str) -> None:
    pipe, prompts, levels = make_pipeline(name), ["a star", "c", "d e"], (0.0, 0.5, 1.0)
    settings = {"tau": 0.2, "dual_fraction": 0.4, "after": after}
    with sr.attach(pipe, dual(w=levels, **settings)) as attached:
        batch = bare(pipe, prompts)
    assert [decision.fired for decision in attached.decisions] == [False, True, True]
    for row, (prompt, w) in enumerate(zip(prompts, levels, strict=True)):
        assert close(batch[row : row + 1], guarded(pipe, dual(w=w, **settings), prompt, seeds=[row]), 1e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "sde-dpm++"])
def test_a_retry_splits_that_image_alone_at_the_first_step(name: str) -> None:
    """The two images then split at steps 0 and 1, have both two latents in step 1, and merge at 2 and 3."""
    pipe, settings = make_pipeline(name), {"w": 0.5, "dual_fraction": 0.4}
    prompts = ["a star", "c"]
    with sr.attach(pipe, dual(tau=0.2, **settings)) as attached:
        attached.retry_level = (2, 0)
        is_retried = bare(pipe, prompts)
    assert [decision.first_fired_step for decision in attached.decisions] == [0, 1]
    alone = guarded(pipe, dual(**{**settings, "w": 0.875}), seeds=[0])
    other = guarded(pipe, dual(tau=0.2, **settings), "c", seeds=[1])
    assert close(is_retried[:1], alone, 1e-4) and close(is_retried[1:], other, 1e-4)


# --- families, gradients


@by_case
def test_w_1_is_the_safe_prompt_in_every_family(case: PipelineCase) -> None:
    pipe = case.build()
    safe, plain = run(case, pipe, "b moon"), run(case, pipe)
    with sr.attach(pipe, dual(w=1.0, dual_fraction=0.7)) as attached:
        found = run(case, pipe)
    assert attached.decisions[0].action == "edited" and attached.decisions[0].first_fired_step == 0
    # ControlNet's residuals in the dual steps are those of the user's latent; Lumina guides three channels of four, Lumina 2
    # normalises, and neither is a weight that could be carried over
    if case.name.endswith("controlnet") or case.family in ("lumina", "lumina-2"):
        assert not close(found, plain, 1e-3)
    else:
        assert (found - safe).abs().max() <= 2e-2 * (plain - safe).abs().max()


def test_gradients_flow(pipe: Any) -> None:
    for name in ("ddim", "dpm++"):
        pipe = make_pipeline(name)
        embeds = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with sr.attach(pipe, dual(provider="interpolate", w=0.6, dual_fraction=0.5)):
            type(pipe).__call__.__wrapped__(  # type: ignore[attr-defined]
                pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros(1, 77, 32), num_inference_steps=4,
                output_type="latent", generator=torch.Generator().manual_seed(0),
            ).images.square().sum().backward()  # fmt: skip
        assert embeds.grad is not None and embeds.grad.isfinite().all() and embeds.grad.abs().sum() > 0


# --- the provider "context_text", of both reconstructions


@pytest.mark.parametrize("kind, config", [(DualLatentR1, DualLatentConfig), (DualLatentR2, DualLatentR2Config)])
def test_context_text_puts_the_safe_words_before_each_prompt(kind: Any, config: Any) -> None:
    pipe, prompts = make_pipeline(), ["a star", "c"]
    guard = kind(config(concept="x", provider="context_text", safe_phrase="b moon", w=1.0, tau=0.0))
    assert guard.needs_text and not kind(config(concept="x")).needs_text
    expected = bare(pipe, ["b moon, a star", "b moon, c"])
    assert close(guarded(pipe, guard, prompts), expected, 1e-4)
    several = guarded(pipe, guard, "c", num_images_per_prompt=2)
    assert close(several, bare(pipe, "b moon, c", num_images_per_prompt=2), 1e-4)
    assert "encode_prompt" not in vars(pipe)
    with pytest.raises(sr.GuardError, match="does not know the prompt of image 0"):
        guarded(pipe, guard, None, prompt_embeds=constant(1.0), negative_prompt_embeds=constant(0.0))


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "pixart-sigma", "sana", "wan"])
def test_context_text_in_families_with_pooled_rows_and_masks(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    guard = dual(provider="context_text", safe_phrase="b", w=1.0, dual_fraction=0.5)
    safe, plain = run(case, pipe, "b, a star"), run(case, pipe)
    with sr.attach(pipe, guard):
        found = run(case, pipe)
    assert (found - safe).abs().max() <= 2e-2 * (plain - safe).abs().max()


# --- 13: refusals, errors, files


def test_errors(pipe: Any) -> None:
    for wrong in (
        {"dual_fraction": 0.0}, {"dual_fraction": 1.0}, {"merge": "x"}, {"after": "x"}, {"phase_order": "dual_first"},
        {"w": 1.1}, {"after": "safe", "tau": 0.5, "tau_mode": "similarity"},
    ):  # fmt: skip
        with pytest.raises(sr.GuardConfigError, match=f"{next(iter(wrong))} is"):
            dual(**wrong)
    with pytest.raises(sr.GuardConfigError, match=r"docs/methods/dual_latent\.md"):
        dual(mode="faithful")
    with pytest.raises(sr.GuardError, match="a run of one step"):
        guarded(pipe, dual(), num_inference_steps=1)
    assert torch.equal(guarded(pipe, dual(w=0.0), num_inference_steps=1), bare(pipe, num_inference_steps=1))


def test_files_and_pictoworld(tmp_path: Path) -> None:
    config = DualLatentR2Config.preset("high", concept="x", provider="learned", merge="slerp")
    guard = DualLatentR2(config, torch.randn(77, PROMPT_WIDTH))
    loaded = Guard.from_pretrained(guard.save_pretrained(tmp_path / "guard"))
    assert isinstance(loaded, DualLatentR2) and loaded.config == config and config.w == 0.75
    made = METHODS["dual-latent-r2"](next(iter(TASKS.values())), None)
    assert made.method == "dual_latent_r2" and made.config.w == 0.75 and made.config.tau == 0.0
    assert ORDER.index("dual-latent-r2") == ORDER.index("dual-latent-100") + 1


def test_the_denoised_estimate_of_the_safe_stream_is_its_own(pipe: Any) -> None:
    """What is merged is x0 of z_s under the safe prompt, guided."""
    watch = Trace()
    with sr.attach(pipe, watch):
        bare(pipe, "b moon")
    guard, kept = dual(w=0.5, dual_fraction=0.6), []

    class Look(DualLatentR2):
        def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
            if step.state.safe is not None:
                kept.append(step.state.safe)
            return super().on_step_end(step, latents)

    with sr.attach(pipe, Look(guard.config)):
        bare(pipe)
    assert len(kept) == 3
    for index, stream in enumerate(kept):
        assert close(stream.x0, watch.x0[index], 1e-4) and close(stream.z, watch.latents[index], 1e-4)
        step = watch.steps[index]
        assert step.pred is not None
        assert close(stream.x0, to_x0("epsilon", step.pred, step.x_t, step.alpha, step.sigma), 1e-4)


def test_context_text_of_prompts_of_any_length_under_a_mask() -> None:
    """Lumina's prompts are as long as the longest of a batch, and its words in context are longer."""
    case, prompts = PIPELINES["lumina"], ["a star", "c over d and e and f"]
    pipe = case.build()
    with sr.attach(pipe, dual(provider="context_text", w=0.8, dual_fraction=0.5)) as attached:
        batch = run(case, pipe, prompts)
        singles = [run(case, pipe, prompt, seeds=[seed]) for seed, prompt in enumerate(prompts)]
    assert attached.decisions[0].fired and close(batch, torch.cat(singles), 1e-3)
