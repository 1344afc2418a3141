"""Dual latent R1: what follows from docs/methods/dual_latent.md (1) to (6), on tiny pipelines and on fakes of one dimension."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import LATENT_SHAPE, PROMPT_WIDTH, SCHEDULERS, generate, make_pipeline, make_scheduler
from tests.guards.guidance_probe import RowCounter, by_case, close
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.guards.dual_latent import LEVELS, DualLatentConfig, DualLatentR1
from saferedir.guards.dual_latent.similarity import largest_level, low_pass
from saferedir.pipelines.schedules import from_x0, to_epsilon, to_x0

PROMPT = "a star"


def dual(**settings: Any) -> DualLatentR1:
    return DualLatentR1(
        DualLatentConfig(**{"concept": "a star", "provider": "phrase", "safe_phrase": "b moon", **settings})
    )


def guarded(pipe: Any, guard: DualLatentR1, prompt: Any = PROMPT, **call: Any) -> Tensor:
    with sr.attach(pipe, guard):
        return generate(pipe, prompt, **call)


def embeds_of(pipe: Any, text: str) -> Tensor:
    found: Tensor = pipe.encode_prompt(text, "cpu", 1, False)[0]
    return found.detach()


# --- 1, 2, 3: identities


@pytest.mark.parametrize("name", SCHEDULERS)
def test_level_0_and_tau_1_change_no_bit_and_need_no_row(name: str) -> None:
    pipe = make_pipeline(name)
    bare = generate(pipe)
    for settings in (
        {"w": 0.0, "tau": 0.0},
        {"w": 1.0, "tau": 1.0},
        {"w": 1.0, "tau": 1.0, "phase_order": "dual_first"},
    ):
        with RowCounter(pipe.unet) as rows:
            assert torch.equal(guarded(pipe, dual(**settings)), bare)
        assert set(rows.counts) == {2}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_level_0_changes_no_bit_in_any_prediction_type(kind: str) -> None:
    pipe = make_pipeline(make_scheduler("ddim", prediction_type=kind))
    bare = generate(pipe)
    for settings in ({"w": 0.0}, {"w": 1.0, "tau": 1.0, "tau_mode": "noise"}):
        assert torch.equal(guarded(pipe, dual(**settings)), bare)


@pytest.mark.parametrize(
    "settings", [{"w": 0.3}, {"w": 1.0, "tau": 0.0}, {"w": 0.7, "tau": 0.5, "phase_order": "dual_first"}]
)
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_safe_prompt_that_is_the_users_changes_nothing(settings: dict[str, Any], scale: float, pipe: Any) -> None:
    bare = generate(pipe, guidance_scale=scale)
    assert close(guarded(pipe, dual(safe_phrase=PROMPT, **settings), guidance_scale=scale), bare, 1e-5)


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "pndm", "heun"])
def test_level_1_in_every_step_is_the_pipeline_under_the_safe_prompt(name: str, scale: float) -> None:
    pipe = make_pipeline(name)
    safe, bare = (generate(pipe, text, guidance_scale=scale) for text in ("b moon", PROMPT))
    found = guarded(pipe, dual(w=1.0, tau=0.0), guidance_scale=scale)
    assert close(found, safe, 1e-5) and (found - safe).abs().max() <= 1e-2 * (bare - safe).abs().max()


# --- 4, 5, 6: solver identity, blend invariance, linearity


class Steps(Guard[GuardConfig]):
    """Keeps every step as the scheduler got it; may replace its prediction by rows of a script."""

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="x"))
        self.steps: list[Step] = []
        self.latents: list[Tensor] = []

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        self.steps.append(step)
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        self.latents.append(latents)
        return latents


def replay(scheduler: Any, predictions: list[Tensor], states: list[Tensor], count: int) -> Tensor:
    """The latents after the last of `predictions`, each taken from its own state: one stream of explicit blending."""
    scheduler.set_timesteps(count)
    out = states[0]
    for t, pred, x in zip(scheduler.timesteps, predictions, states, strict=False):
        out = scheduler.step(pred, t, x, return_dict=False)[0]
    return out


@pytest.mark.parametrize("name, changes", [
    ("ddim", {}), ("ddim", {"prediction_type": "v_prediction"}), ("euler", {}), ("dpm++", {"solver_order": 1}),
    ("dpm++", {"solver_order": 2}), ("unipc-flow", {"solver_order": 1}), ("unipc-flow", {"solver_order": 2}),
])  # fmt: skip
def test_blending_predictions_is_blending_latents(name: str, changes: dict[str, Any]) -> None:
    """Each solver update from a common latent, with the user's own history and with the safe one: their sum is R1's."""
    if name == "unipc-flow":
        changes = {**changes, "disable_corrector": list(range(9))}  # the corrector moves the common latent itself
    pipe, w, count = make_pipeline(make_scheduler(name, **changes)), 0.4, 4
    watch = Steps()
    with sr.attach(pipe, [dual(w=w, tau=0.0), watch]):
        generate(pipe, num_inference_steps=count, guidance_scale=1.0)
    states = [step.x_t for step in watch.steps]
    user = [step.pred_cond for step in watch.steps]
    blended = [step.pred for step in watch.steps]
    safe = [(m - (1 - w) * u) / w for m, u in zip(blended, user, strict=True)]  # type: ignore[operator]
    for last in range(1, count + 1):
        streams = []
        for rows in (user, safe):
            scheduler = make_scheduler(name, **changes)
            streams.append(replay(scheduler, rows[:last], states[:last], count))  # type: ignore[arg-type]
        explicit = (1 - w) * streams[0] + w * streams[1]
        assert close(explicit, watch.latents[last - 1], 1e-5), last


def test_a_level_that_varies_is_not_blending_latents_under_a_multistep_solver() -> None:
    """The boundary of the identity: 2M with another w in its history."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(1, 1, 2, 2, generator=generator) for _ in range(2)]
    user, safe = ([torch.randn(1, 1, 2, 2, generator=generator) for _ in range(2)] for _ in range(2))
    levels = (0.2, 0.9)
    blended = [(1 - w) * u + w * s for w, u, s in zip(levels, user, safe, strict=True)]
    one, two, both = (replay(make_scheduler("dpm++"), rows, x, 3) for rows in (user, safe, blended))
    assert not close(0.1 * one + 0.9 * two, both, 1e-2)


@pytest.mark.parametrize("kind, alpha, sigma", [
    ("epsilon", 0.6, 0.8), ("v_prediction", 0.6, 0.8), ("sample", 0.6, 0.8), ("epsilon", 1.0, 2.0),
    ("v_prediction", 1.0, 2.0), ("sample", 1.0, 2.0), ("flow", 0.4, 0.6),
])  # fmt: skip
def test_blending_is_the_same_on_outputs_x0_and_epsilon(kind: str, alpha: float, sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, user, safe = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    a, s, w = torch.tensor(alpha), torch.tensor(sigma), 0.3
    x0 = [to_x0(kind, m, x, a, s) for m in (user, safe)]
    eps = [to_epsilon(value, x, a, s) for value in x0]
    on_outputs = (1 - w) * user + w * safe
    on_x0 = from_x0(kind, (1 - w) * x0[0] + w * x0[1], x, a, s)
    on_eps = from_x0(kind, to_x0("epsilon", (1 - w) * eps[0] + w * eps[1], x, a, s), x, a, s)
    for other in (on_x0, on_eps):
        assert close(other, on_outputs, 1e-5)


class Fake:
    """Replaces a UNet's forward by `predict(x, c)`; c (rows,) is the mean of the prompt embeddings."""

    def __init__(self, pipe: Any, predict: Any) -> None:
        self.unet, self.predict = pipe.unet, predict

    def __enter__(self) -> None:
        def forward(sample: Tensor, t: Any, encoder_hidden_states: Tensor, return_dict: bool = True, **_: Any) -> Any:
            c = encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1, 1)
            return (self.predict(sample, c, t),)

        self.unet.forward = forward

    def __exit__(self, *_: object) -> None:
        del self.unet.forward


def constant(value: float) -> Tensor:
    return torch.full((1, 77, PROMPT_WIDTH), value)


def learned(value: float, **settings: Any) -> DualLatentR1:
    return DualLatentR1(DualLatentConfig(concept="x", provider="learned", **settings), constant(value)[0])


def test_the_result_of_a_linear_denoiser_is_affine_in_the_level(pipe: Any) -> None:
    call = {"prompt_embeds": constant(1.0), "negative_prompt_embeds": constant(0.0)}
    with Fake(pipe, lambda x, c, t: 0.3 * x + c):
        ends = [guarded(pipe, learned(-1.0, w=w, tau=0.0), None, **call) for w in (0.0, 0.35, 1.0)]
    assert close(ends[1], 0.65 * ends[0] + 0.35 * ends[2], 1e-4) and not close(ends[0], ends[2], 1e-2)


# --- 7: control


def test_control_is_monotone_in_level_and_threshold(pipe: Any) -> None:
    """Every pixel is a draw of N(c, 0.3^2), c = +1 for the user and -1 for the safe prompt."""
    abar, var = pipe.scheduler.alphas_cumprod, 0.09

    def epsilon(x: Tensor, c: Tensor, t: Any) -> Tensor:
        a2 = abar[int(t)]
        a, s2 = a2.sqrt(), 1 - a2
        x0 = c + a * var / (a2 * var + s2) * (x - a * c)
        return (x - a * x0) / s2.sqrt()

    def share(**settings: Any) -> float:
        call = {"prompt_embeds": constant(1.0).repeat(8, 1, 1), "guidance_scale": 1.0, "num_inference_steps": 10}
        end = guarded(pipe, learned(-1.0, **settings), None, **call)
        return float((end < 0).float().mean())

    with Fake(pipe, epsilon):
        by_level = [share(w=w, tau=0.0) for w in (0.0, 0.25, 0.5, 0.75, 1.0)]
        by_tau = [share(w=0.75, tau=tau) for tau in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert by_level == sorted(by_level) and by_level[0] < 0.05 and by_level[-1] > 0.95
    assert by_tau == sorted(by_tau, reverse=True) and by_tau[0] > by_tau[-1]


# --- 10: similarity


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=1)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9, 0.99])
def test_the_closed_form_is_the_bisection(tau: float) -> None:
    generator = torch.Generator().manual_seed(int(100 * tau))
    a, b = (torch.randn(200, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    b = b * torch.rand(200, 1, generator=generator, dtype=torch.float64) * 4 + a * torch.randn(
        200, 1, generator=generator
    )
    found = largest_level(a, b, tau)
    low, high = torch.zeros(200, dtype=torch.float64), torch.full((200,), 64.0, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        is_similar = cosine(a, (1 - middle[:, None]) * a + middle[:, None] * b) >= tau
        low, high = torch.where(is_similar, middle, low), torch.where(is_similar, high, middle)
    limited = low < 63.9
    torch.testing.assert_close(found[limited], low[limited], rtol=1e-9, atol=1e-9)
    assert (found[~limited] >= 63.9).all() and limited.any()
    w = found.clamp(max=1.0)[:, None]
    assert (cosine(a, (1 - w) * a + w * b) >= tau - 1e-6).all()


def test_similarity_at_its_ends() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).requires_grad_()
    b = torch.tensor([[0.0, 1.0], [3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = largest_level(a, b, 1.0)
    assert found.tolist()[:3] == [0.0, math.inf, math.inf]
    largest_level(a, b, 0.5).clamp(max=1.0).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all()
    assert float(largest_level(a, b, 0.5)[3].detach()) == pytest.approx(0.5)  # beyond zero the direction turns round


def test_similarity_holds_on_what_the_scheduler_gets(pipe: Any) -> None:
    bare_steps, steps = Steps(), Steps()
    for watch, guards in ((bare_steps, []), (steps, [dual(w=1.0, tau=0.999, tau_mode="similarity")])):
        with sr.attach(pipe, [*guards, watch]) as attached:
            generate(pipe, ["a star", "c"], guidance_scale=9.0)
    assert attached.decisions[0].fired and "Levels used" in attached.decisions[0].message
    for step in steps.steps:
        user = step.pred_uncond + 9.0 * (step.pred_cond - step.pred_uncond)  # type: ignore[operator]
        x0 = to_x0("epsilon", user, step.x_t, step.alpha, step.sigma)
        assert step.x0 is not None
        assert (cosine(low_pass(x0), low_pass(step.x0)) >= 0.999 - 1e-5).all()
    free, held = (
        guarded(pipe, dual(w=1.0, tau=tau, tau_mode=mode)) for tau, mode in ((0.0, "steps"), (1.0, "similarity"))
    )
    bare = generate(pipe)
    assert not close(held, free, 1e-5) and close(held, bare, 1e-4)


# --- phases and 12: rows


def phases(pipe: Any, count: int = 10, **settings: Any) -> str:
    with RowCounter(pipe.unet) as rows:
        guarded(pipe, dual(w=0.5, **settings), num_inference_steps=count)
    return "".join({2: "c", 3: "d"}[number] for number in rows.counts)


def test_the_extra_row_rides_in_the_dual_phase_only(pipe: Any) -> None:
    for tau in (0.0, 0.1, 0.5):
        context = round(10 * tau)
        assert phases(pipe, tau=tau) == "c" * context + "d" * (10 - context)
        assert phases(pipe, tau=tau, phase_order="dual_first") == "d" * (10 - context) + "c" * context
        rows = sum({"c": 2, "d": 3}[name] for name in phases(pipe, tau=tau))
        assert rows / 20 == pytest.approx(1 + 0.5 * (1 - tau))
    assert phases(pipe, tau=0.1, tau_mode="similarity") == "d" * 10


@pytest.mark.parametrize("name", ["ddim", "euler", "unipc-flow"])
def test_noise_phases_are_shares_of_the_noise_axis(name: str) -> None:
    pipe, watch = make_pipeline(name), Steps()
    with sr.attach(pipe, watch):
        generate(pipe, num_inference_steps=6)
    u = [float((step.sigma / (step.alpha + step.sigma)).flatten()[0]) for step in watch.steps]
    for tau in (0.3, 0.7):
        assert phases(pipe, 6, tau=tau, tau_mode="noise") == "".join("c" if value > 1 - tau else "d" for value in u)
        found = phases(pipe, 6, tau=tau, tau_mode="noise", phase_order="dual_first")
        assert found == "".join("d" if value > tau else "c" for value in u)


def test_the_generator_ends_where_the_bare_pipelines_does() -> None:
    pipe, states = make_pipeline("euler-ancestral"), []
    for guards in ([], [dual()]):
        generator = torch.Generator().manual_seed(0)
        with sr.attach(pipe, [Steps(), *guards]):
            generate(pipe, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


# --- 11: batches, levels per image, retries


def test_each_image_has_its_own_level(pipe: Any) -> None:
    prompts, levels = ["a star", "c", "d e"], (0.0, 0.5, 1.0)
    with sr.attach(pipe, dual(w=levels, tau=0.3)) as attached:
        batch = generate(pipe, prompts)
    assert [decision.fired for decision in attached.decisions] == [False, True, True]
    for row, (prompt, w) in enumerate(zip(prompts, levels, strict=True)):
        assert close(batch[row : row + 1], guarded(pipe, dual(w=w, tau=0.3), prompt, seeds=[row]), 1e-5)
    with pytest.raises(sr.GuardError, match="3 levels w for 1 images"):
        guarded(pipe, dual(w=levels))


def test_a_retry_widens_the_dual_phase_of_that_image_alone(pipe: Any) -> None:
    plain = guarded(pipe, dual(w=0.5, tau=0.5), ["a star", "c"])
    with sr.attach(pipe, dual(w=0.5, tau=0.5)) as attached:
        attached.retry_level = (2, 0)
        is_retried = generate(pipe, ["a star", "c"])
    assert [decision.first_fired_step for decision in attached.decisions] == [0, 2]
    stronger = guarded(pipe, dual(w=0.875, tau=0.0))
    assert close(is_retried[:1], stronger, 1e-5) and close(is_retried[1:], plain[1:], 1e-5)


# --- the safe row


def test_providers(pipe: Any) -> None:
    user, safe, anchor = (embeds_of(pipe, text) for text in (PROMPT, "b moon", "c"))
    expected = {
        "phrase": safe,
        "interpolate": 0.75 * user + 0.25 * safe,
        "anchor": user + (anchor - embeds_of(pipe, "a star")),
        "learned": safe,
    }
    for provider, meant in expected.items():
        guard = dual(provider=provider, w=1.0, tau=0.0, amount=0.25, anchor="c")
        if provider == "learned":
            guard.safe_prompt_embeds = safe[0]
        found = guarded(pipe, guard)
        assert close(found, generate(pipe, prompt_embeds=meant, negative_prompt_embeds=embeds_of(pipe, "")), 1e-5), (
            provider
        )


@by_case
def test_every_pipeline_works_with_every_provider(case: PipelineCase) -> None:
    pipe = case.build()
    bare = run(case, pipe, steps=2)
    seen: list[Step] = []

    class Look(Guard[GuardConfig]):
        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            seen.append(step)
            return x0

    for provider in ("phrase", "interpolate", "anchor"):
        guard = dual(provider=provider, w=0.8, tau=0.0, anchor="b moon", concept="c")
        with sr.attach(pipe, [guard, Look(GuardConfig(concept="x"))]) as attached:
            result = run(case, pipe, steps=2)
        assert result.isfinite().all() and not torch.equal(result, bare), provider
        decision = attached.decisions[0]
        assert decision.action == "edited" and decision.first_fired_step == 0 and decision.steps_redirected >= 1
    prompt, pooled = seen[0].prompt_embeds[0], seen[0].pooled
    config = DualLatentConfig(concept="x", provider="learned", w=0.8, tau=0.0)
    with sr.attach(pipe, DualLatentR1(config, -prompt, None if pooled is None else -pooled[0])):
        assert not torch.equal(run(case, pipe, steps=2), bare)
    if pooled is not None:
        with sr.attach(pipe, DualLatentR1(config, -prompt)), pytest.raises(sr.GuardError, match="safe_pooled_embeds"):
            run(case, pipe, steps=2)


def test_texts_longer_than_the_prompt_are_mixed_under_the_mask_and_neighbours_do_not_matter() -> None:
    """Lumina's prompts are as long as the longest of a batch."""
    case = PIPELINES["lumina"]
    pipe, prompts = case.build(), ["a star", "c over d and e and f"]
    settings = {"w": 0.8, "tau": 0.0, "safe_phrase": "b moon of g"}
    for provider in ("interpolate", "phrase"):
        with sr.attach(pipe, dual(provider=provider, **settings)):
            batch = run(case, pipe, prompts)
            singles = [run(case, pipe, prompt, seeds=[seed]) for seed, prompt in enumerate(prompts)]
        assert close(batch, torch.cat(singles), 1e-4)
    longer = torch.randn(40, case.build().encode_prompt("a")[0].shape[-1], generator=torch.Generator().manual_seed(0))
    with sr.attach(pipe, DualLatentR1(DualLatentConfig(concept="x", provider="learned", tau=0.0), longer)):
        assert not close(run(case, pipe), singles[0], 1e-2)


def test_w_1_is_the_safe_prompt_where_the_family_has_pooled_rows_or_masks() -> None:
    for name in ("sdxl", "sd3", "flux", "flux-true-cfg", "pixart-sigma", "wan"):
        case = PIPELINES[name]
        pipe = case.build()
        safe, bare = run(case, pipe, "b moon"), run(case, pipe)
        with sr.attach(pipe, dual(w=1.0, tau=0.0)):
            found = run(case, pipe)
        assert (found - safe).abs().max() <= 1e-2 * (bare - safe).abs().max(), name


def test_it_acts_after_guards_that_change_the_prompt(pipe: Any) -> None:
    class Weaken(Guard[GuardConfig]):
        def on_step_start(self, step: Step) -> Tensor:
            return 0.1 * step.prompt_embeds

    settings = {"provider": "interpolate", "amount": 0.0, "w": 1.0, "tau": 0.0}
    with sr.attach(pipe, Weaken(GuardConfig(concept="x"))):
        weakened = generate(pipe)
        with sr.attach(pipe, dual(**settings)):
            assert close(generate(pipe), weakened, 1e-5)


def test_gradients_flow(pipe: Any) -> None:
    for tau_mode in ("steps", "similarity"):
        embeds = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with sr.attach(pipe, dual(provider="interpolate", w=0.9, tau=0.4, tau_mode=tau_mode)):
            type(pipe).__call__.__wrapped__(  # type: ignore[attr-defined]
                pipe, prompt_embeds=embeds, negative_prompt_embeds=torch.zeros(1, 77, 32), latents=latents,
                num_inference_steps=3, output_type="latent",
            ).images.square().sum().backward()  # fmt: skip
        for leaf in (embeds, latents):
            assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0


# --- 13: errors, files


def test_errors() -> None:
    with pytest.raises(sr.GuardConfigError, match=r"docs/methods/dual_latent\.md"):
        dual(mode="faithful")
    for wrong in (
        {"mode": "x"}, {"w": 1.1}, {"w": (0.5, -0.1)}, {"tau": 1.1}, {"tau": 0.0, "tau_mode": "similarity"}, {"tau_mode": "x"},
        {"phase_order": "x"}, {"provider": "x"}, {"amount": 2.0}, {"safe_phrase": ""}, {"anchor": "", "provider": "anchor"},
        {"w": 1.6, "w_extrapolate": True},
    ):  # fmt: skip
        with pytest.raises(sr.GuardConfigError, match=f"{next(iter(wrong))} is"):
            dual(**wrong)
    assert dual(w=1.5, w_extrapolate=True).config.levels == (1.5,)
    with pytest.raises(sr.GuardConfigError, match="medium"):
        DualLatentConfig.preset("x", concept="a")
    pipe = make_pipeline()
    with pytest.raises(sr.GuardError, match="no weights"):
        guarded(pipe, DualLatentR1(DualLatentConfig(concept="x", provider="learned")))
    misfit = DualLatentR1(DualLatentConfig(concept="x", provider="learned"), torch.zeros(5, PROMPT_WIDTH))
    with pytest.raises(sr.GuardError, match="do not fit"):
        guarded(pipe, misfit)


def test_files_and_levels(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(77, PROMPT_WIDTH, generator=generator)
    config = DualLatentConfig(concept="x", provider="learned", w=(0.25, 0.5))
    guard = DualLatentR1(config, embeds, torch.ones(3))
    loaded = Guard.from_pretrained(guard.save_pretrained(tmp_path / "guard"))
    assert isinstance(loaded, DualLatentR1) and loaded.config == config
    assert (
        torch.equal(loaded.tensors()["safe_prompt_embeds"], embeds) and len(loaded.tensors()["safe_pooled_embeds"]) == 3
    )
    for wrong in ({"other": embeds}, {"safe_prompt_embeds": embeds[None]}):
        with pytest.raises(sr.GuardConfigError, match="dual_latent_r1"):
            guard.load_tensors(wrong)
    assert DualLatentConfig.preset("medium", concept="a") == DualLatentConfig(concept="a")
    assert [DualLatentConfig.preset(level, concept="a").w for level in LEVELS] == [0.0, 0.25, 0.5, 0.75, 1.0]
