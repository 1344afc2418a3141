"""SLD: equal to diffusers' own (deprecated) pipeline, preset by preset, and what follows from docs/methods/sld.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig, StableDiffusionPipelineSafe
from tests.conftest import LATENT_SHAPE, generate, make_pipeline, make_scheduler
from tests.guards.guidance_probe import RowCounter, by_case, close
from tests.tiny.unets import make_sd
from tests.tiny_pipelines import PipelineCase, run
from torch import Tensor

import saferedir as sr
from saferedir.guard import Conditioning, Guard, GuardConfig, Run, Step
from saferedir.guards.negative_prompt import NegativePrompt, NegativePromptConfig
from saferedir.guards.sld import PRESETS, SLD, SLDConfig, epsilon_per_output
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.schedules import from_x0, to_epsilon, to_x0

#: opens the mask everywhere, so that tiny random networks are edited too
OPEN: dict[str, Any] = {"strength": 1e6, "threshold": 1e6, "momentum": 0.0, "momentum_decay": 0.0, "warmup": 0.0}


def sld(**settings: Any) -> SLD:
    return SLD(SLDConfig(**{"concept": "a moon", **settings}))


def safe_pipeline(pipe: Any) -> Any:
    """diffusers' own SLD pipeline on the parts of a tiny one; "a moon" is its concept."""
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    safe = StableDiffusionPipelineSafe(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    safe._safety_text_concept = "a moon"
    safe.set_progress_bar_config(disable=True)
    return safe


# --- against diffusers


THEIRS = {
    "weak": {**SafetyConfig.WEAK, "sld_guidance_scale": 200},  # the model card's strength
    "weak_diffusers": SafetyConfig.WEAK,
    "medium": SafetyConfig.MEDIUM,
    "strong": SafetyConfig.STRONG,
    "max": SafetyConfig.MAX,
}
COMPARED = [(preset, scheduler, 10) for preset in THEIRS for scheduler in ("ddim", "pndm")] + [("medium", "ddim", 50)]


@pytest.mark.parametrize("preset, scheduler, steps", COMPARED)
def test_equals_diffusers_own_pipeline(preset: str, scheduler: str, steps: int) -> None:
    """At 50 steps with the fraction of warm-up, at 10 with an absolute number, which is where the two differ."""
    theirs = dict(THEIRS[preset]) if steps == 50 else {**THEIRS[preset], "sld_warmup_steps": 3}
    ours: dict[str, Any] = {} if steps == 50 else {"warmup_steps": 3}
    pipe, prompts, seen = make_sd(), ["a star", "b c"], []
    pipe.scheduler = make_scheduler(scheduler)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 7.5, "height": 32, "width": 32}
    bare = generate(pipe, prompts, **call)
    safe_pipeline(pipe)(
        prompts, callback=lambda i, t, latents: seen.append(latents), output_type="np", **theirs, **call,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
    )  # fmt: skip
    with sr.attach(pipe, SLD(SLDConfig.preset(preset, concept="a moon", **ours))) as attached:
        guarded = generate(pipe, prompts, **call)
    assert close(guarded, seen[-1], 1e-5)
    assert (guarded - seen[-1]).abs().max() <= 1e-4 * (bare - seen[-1]).abs().max()
    assert all(decision.fired for decision in attached.decisions)


def test_the_fraction_is_the_authors_number_at_50_steps_of_every_scheduler() -> None:
    for name, expected in (("weak", 15), ("medium", 10), ("strong", 7), ("max", 0)):
        for evaluations in (50, 51):  # PNDM evaluates one more
            assert round(PRESETS[name]["warmup"] * evaluations) == expected


# --- invariants


def test_without_strength_or_after_the_end_nothing_rides_and_no_bit_changes(pipe: Any) -> None:
    bare = generate(pipe, ["a", "b"])
    for settings in ({"strength": 0.0}, {"warmup": 1.0}, {"warmup_steps": 3}):
        with sr.attach(pipe, sld(**settings)) as attached, RowCounter(pipe.unet) as rows:
            assert torch.equal(generate(pipe, ["a", "b"]), bare)
        assert rows.counts == [4, 4, 4]
        assert [d.fired for d in attached.decisions] == [False, False] and not attached.decisions[0].message


def test_a_prompt_that_is_the_concept_is_left_alone(pipe: Any) -> None:
    """d = 0 closes the mask: the known blind spot of the method."""
    embeds = pipe.encode_prompt("a moon", "cpu", 1, False)[0].detach()

    class Exact(SLD):
        def extra_embeds(self, step: Step, extra: Any) -> Any:
            rows = super().extra_embeds(step, extra)
            return None if rows is None else rows._replace(prompt=step.prompt_embeds[None])

    bare = generate(pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(embeds))
    with sr.attach(pipe, Exact(SLDConfig.preset("max", concept="a moon", momentum=0.0, threshold=0.0, strength=1.0))):
        guarded = generate(pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros_like(embeds))
    torch.testing.assert_close(guarded, bare, rtol=1e-4, atol=1e-4)


def test_an_always_open_mask_is_subtract(pipe: Any) -> None:
    with sr.attach(pipe, NegativePrompt(NegativePromptConfig(concept="a moon", variant="subtract"))):
        subtract = generate(pipe, ["a star", "b"])
    with sr.attach(pipe, sld(**{**OPEN, "strength": 1e12})):
        assert close(generate(pipe, ["a star", "b"]), subtract, 1e-4)


def test_row_accounting(pipe: Any) -> None:
    """One more row a call, never two; none in warm-up if no momentum builds up there."""
    for settings, expected in (
        ({"warmup_steps": 2, "momentum": 0.3}, [6, 6, 6, 6]),
        ({"warmup_steps": 2, "momentum": 0.0}, [4, 4, 6, 6]),
    ):
        with sr.attach(pipe, sld(**settings)), RowCounter(pipe.unet) as rows:
            generate(pipe, ["a", "b"], num_inference_steps=4)
        assert rows.counts == expected


def fake_step(kind: str, alpha: float, sigma: float, rows: list[Tensor], x_t: Tensor, index: int = 0) -> Step:
    """A step of a run of any prediction type: `rows` are uncond, cond, concept in epsilon; guidance 5."""
    a, s = (torch.full((len(x_t), 1, 1, 1), value) for value in (alpha, sigma))
    meant = [from_x0(kind, to_x0("epsilon", row, x_t, a, s), x_t, a, s) for row in rows]
    uncond, cond, concept = meant
    run = Run(
        batch_size=len(x_t), num_steps=300, num_evaluations=300, timesteps=(1.0,) * 300, family="f", prediction_type=kind,
        guided=True, guidance_scale=5.0, device=x_t.device, dtype=x_t.dtype,
        encode=lambda texts: PromptEmbeds(torch.zeros(len(texts), 99, 4)),
    )  # fmt: skip
    embeds = PromptEmbeds(torch.zeros(len(x_t), 4, 4))
    return Step(
        run=run, state=None, index=index, evaluation=index, num_steps=300, t=torch.full((len(x_t),), 500.0), alpha=a, sigma=s,
        x_t=x_t, model_input=x_t, conditioning=Conditioning(embeds, embeds), guidance_scale=5.0, pred_cond=cond,
        pred_uncond=uncond, pred_extra=(concept,), pred=uncond + 5.0 * (cond - uncond),
    )  # fmt: skip


KINDS = [
    ("epsilon", 0.6, 0.8), ("v_prediction", 0.6, 0.8), ("sample", 0.6, 0.8), ("epsilon", 1.0, 2.0),
    ("v_prediction", 1.0, 2.0), ("sample", 1.0, 2.0), ("flow", 0.4, 0.6), ("edm_epsilon:0.5", 1.0, 2.0),
    ("edm_v_prediction:0.5", 1.0, 2.0),
]  # fmt: skip


@pytest.mark.parametrize("kind, alpha, sigma", KINDS)
def test_every_prediction_type_gives_the_same_x0(kind: str, alpha: float, sigma: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, 4, 8, 8, generator=draw)
    found = []
    for name in ("epsilon", kind):
        guard, draw = sld(strength=2.0, threshold=0.3, warmup=0.0), torch.Generator().manual_seed(1)
        state = None
        for index in range(3):
            rows = [torch.randn(2, 4, 8, 8, generator=draw) for _ in range(3)]
            step = fake_step(name, alpha, sigma, rows, x_t, index)
            state = state or guard.start(step.run)
            object.__setattr__(step, "state", state)
            pred = guard.on_prediction(step)
            found.append(to_x0(name, pred, x_t, step.alpha, step.sigma))
    for plain, other in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, alpha, sigma", KINDS)
def test_the_factor_is_the_change_of_epsilon_with_the_output(kind: str, alpha: float, sigma: float) -> None:
    expected = {
        "epsilon": 1.0,
        "v_prediction": alpha / (alpha**2 + sigma**2) ** 0.5,
        "sample": -alpha / sigma,
        "flow": 1 - sigma,
    }
    x_t, row = torch.randn(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    step = fake_step(kind, alpha, sigma, [row] * 3, x_t)
    f = epsilon_per_output(step)
    if kind in expected:
        assert float(f) == pytest.approx(expected[kind], rel=1e-6)
    low, high = (
        to_epsilon(to_x0(kind, row + m, x_t, step.alpha, step.sigma), x_t, step.alpha, step.sigma) for m in (0.0, 1.0)
    )
    torch.testing.assert_close(high - low, f.expand_as(low), rtol=1e-5, atol=1e-5)


def test_nothing_is_edited_at_pure_flow_noise() -> None:
    rows = [torch.randn(1, 4, 8, 8) for _ in range(3)]
    step = fake_step("flow", 0.4, 0.6, rows, torch.randn(1, 4, 8, 8))
    guard = sld(**{**OPEN, "momentum": 0.5})
    state = guard.start(step.run)
    for name, value in (
        ("state", state),
        ("alpha", torch.zeros_like(step.alpha)),
        ("sigma", torch.ones_like(step.sigma)),
    ):
        object.__setattr__(step, name, value)
    assert torch.equal(guard.on_prediction(step), step.pred) and not state.tally.calls.any()


@pytest.mark.parametrize("momentum, decay", [(0.3, 0.4), (0.5, 0.7)])
def test_momentum_converges_to_its_fixed_point(momentum: float, decay: float) -> None:
    rows = [torch.full((1, 1, 1, 1), value, dtype=torch.float32) for value in (0.0, 1.0, 2.0)]
    guard = sld(**{**OPEN, "momentum": momentum, "momentum_decay": decay})
    step = fake_step("epsilon", 0.6, 0.8, rows, torch.zeros(1, 1, 1, 1))
    state = guard.start(step.run)
    object.__setattr__(step, "state", state)
    for _ in range(200):
        guard.on_prediction(step)
    assert float(state.velocity) == pytest.approx(2.0 / (1 - momentum), abs=1e-5)


def test_momentum_builds_up_in_warm_up(pipe: Any) -> None:
    """Changing the momentum changes the first edited step, so something was there before it."""
    results = []
    for momentum in (0.3, 0.6):
        with sr.attach(pipe, sld(**{**OPEN, "momentum": momentum, "warmup_steps": 2})) as attached:
            results.append(generate(pipe))
        assert attached.decisions[0].first_fired_step == 2 and attached.decisions[0].steps_redirected == 1
    assert not close(results[0], results[1], 1e-5)


# --- in use


def test_batches_equal_single_runs(pipe: Any) -> None:
    with sr.attach(pipe, SLD(SLDConfig.preset("max", concept="a moon", strength=1.0))):
        batch = generate(pipe, ["a star", "b"])
        singles = [generate(pipe, prompt, seeds=[seed]) for seed, prompt in enumerate(["a star", "b"])]
    assert close(batch, torch.cat(singles), 1e-3)


def test_a_retry_takes_warm_up_away_from_that_image_alone(pipe: Any) -> None:
    bare = generate(pipe, ["a star", "b"])
    with sr.attach(pipe, sld(**{**OPEN, "warmup": 1.0})) as attached:
        attached.retry_level = (1, 0)
        guarded = generate(pipe, ["a star", "b"])
    assert [d.first_fired_step for d in attached.decisions] == [0, None]
    assert close(guarded[1], bare[1]) and not close(guarded[0], bare[0], 1e-2)


def test_gradients_flow(pipe: Any) -> None:
    embeds = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with sr.attach(pipe, SLD(SLDConfig.preset("max", concept="a moon", strength=0.5))):
        type(pipe).__call__.__wrapped__(  # type: ignore[attr-defined]
            pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros(1, 77, 32), latents=latents,
            num_inference_steps=3, output_type="latent",
        ).images.square().sum().backward()  # fmt: skip
    for leaf in (embeds, latents):
        assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0


@by_case
def test_every_pipeline_works_or_refuses_with_one_sentence(case: PipelineCase) -> None:
    pipe = case.build()
    bare = run(case, pipe, steps=2)
    with sr.attach(pipe, sld(**{**OPEN, "momentum": 0.3})) as attached:
        if case.guidance:
            result = run(case, pipe, steps=2)
            assert result.isfinite().all() and not torch.equal(result, bare)
            assert attached.decisions[0].action == "edited" and attached.decisions[0].steps_redirected >= 1
        else:
            with pytest.raises(sr.GuardError, match="'sld' works through classifier-free guidance"):
                run(case, pipe, steps=2)


def test_a_guard_that_does_not_replace_guidance_may_stand_beside(pipe: Any) -> None:
    class Weaken(Guard[GuardConfig]):
        def on_step_start(self, step: Step) -> Tensor:
            return 0.1 * step.prompt_embeds

    with sr.attach(pipe, [Weaken(GuardConfig(concept="x")), sld(**OPEN)]) as attached:
        assert generate(pipe).isfinite().all() and attached.decisions[1].fired


def test_bfloat16(pipe: Any) -> None:
    half = make_pipeline(dtype=torch.bfloat16)
    with sr.attach(half, sld(**OPEN)) as attached:
        assert generate(half).dtype == torch.bfloat16 and attached.decisions[0].steps_redirected == 3


def test_files_presets_and_configs(tmp_path: Path) -> None:
    guard = SLD(SLDConfig.preset("strong", concept="a", phrases=("b", "c"), warmup_steps=4))
    loaded = Guard.from_pretrained(guard.save_pretrained(tmp_path / "guard"))
    assert isinstance(loaded, SLD) and loaded.config == guard.config and loaded.config.text == "b, c"
    assert SLDConfig(concept="a") == SLDConfig.preset("medium", concept="a")
    with pytest.raises(sr.GuardConfigError, match="medium"):
        SLDConfig.preset("extreme", concept="a")
    for wrong in (
        {"strength": -1.0}, {"threshold": float("inf")}, {"momentum": 1.0}, {"momentum_decay": -0.1}, {"warmup": 1.5},
        {"warmup_steps": -1}, {"phrases": ("",)},
    ):  # fmt: skip
        with pytest.raises(sr.GuardConfigError, match=f"{next(iter(wrong))} is"):
            sld(**wrong)


def test_warm_up_at_ten_steps_starts_although_the_authors_number_never_would() -> None:
    pipe = make_pipeline(make_scheduler("ddim"))
    with sr.attach(pipe, sld(**{**OPEN, "warmup": PRESETS["medium"]["warmup"]})) as attached:
        generate(pipe, num_inference_steps=10)
    assert attached.decisions[0].first_fired_step == 2 and attached.decisions[0].steps_redirected == 8
