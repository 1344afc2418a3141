"""A target is the guarded pipeline itself: the same numbers on every family, with gradients, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_pipelines import CASES, PipelineCase
from torch import Tensor, nn

import saferedir as sr
from saferedir.errors import AttackError, GuardError
from saferedir.guards.registry import guard_class
from saferedir.target import Ledger, SoftPrompt, Target
from saferedir.target.ledger import BudgetSpent

PROMPT = ["a red star"]
STEPS = 4
#: text to image, and every step of the schedule
FAMILIES = [c for c in CASES if not any(part in c.name for part in ("img2img", "inpaint", "controlnet", "refiner"))]
STAR = ["an image of a red star on grass"]
CALL = {"num_inference_steps": 6, "guidance_scale": 4.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frozen(pipe: Any) -> Any:
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    return pipe


def call_of(case: PipelineCase) -> dict[str, Any]:
    return {**case.settings, **case.guidance, "num_inference_steps": STEPS}


def size(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.abs().sum())


@pytest.fixture(scope="module")
def world() -> Any:
    pipe = frozen(sr.load_pipeline("pictoworld"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def star() -> sr.Guard[Any]:
    return sr.Guard.from_pretrained("pictoworld/star")


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_one_step_is_that_step_of_the_whole_run(case: PipelineCase) -> None:
    """From the same latents, each evaluation by itself says bit for bit what it says amid a run, and has gradients."""
    pipe = case.build()
    bare = pipe(PROMPT, **call_of(case), generator=seeded(), output_type="latent")
    with Target(pipe, (), call_of(case)) as target:
        run = target.roll_out(None, prompt=PROMPT, generator=seeded())
        assert len(run) == len(target.moments)
        for place, amid in enumerate(run):
            latents = amid.x_t.detach().clone().requires_grad_(True)
            alone = target.predict(latents, place, prompt=PROMPT, generator=seeded())
            assert (alone.index, alone.evaluation) == (amid.index, amid.evaluation) == (place, place)
            assert torch.equal(alone.pred, amid.pred) and torch.equal(alone.x0, amid.x0)
            moment = target.moments[place]
            assert float(alone.alpha.flatten()[0]) == pytest.approx(moment.alpha, abs=1e-6)
            assert float(alone.sigma.flatten()[0]) == pytest.approx(moment.sigma, abs=1e-6)
            assert torch.allclose(target.noised(alone.x0, alone.eps, place), alone.x_t, atol=1e-4)
            assert size(torch.autograd.grad(alone.eps.square().sum(), latents)[0]) > 0
    again = pipe(PROMPT, **call_of(case), generator=seeded(), output_type="latent")
    assert torch.equal(torch.as_tensor(again[0]), torch.as_tensor(bare[0]))
    assert "prepare_latents" not in vars(pipe) and "step" not in vars(pipe.scheduler)
    weights = [
        weight for part in pipe.components.values() if isinstance(part, nn.Module) for weight in part.parameters()
    ]
    assert all(weight.requires_grad and weight.grad is None for weight in weights)


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_soft_prompts_are_read_in_place_of_the_text(case: PipelineCase) -> None:
    """Looked-up embeddings change nothing, and every encoder passes gradients on to its own."""
    pipe = frozen(case.build())
    with Target(pipe, (), call_of(case)) as target:
        if not target.text_encoders:
            pytest.skip(f"{case.family} has no row about its text encoders")
        soft = []
        for place, text_encoder in enumerate(target.text_encoders):
            ids = text_encoder.ids(PROMPT)
            soft.append(SoftPrompt(ids, target.embed(ids, place).clone().requires_grad_(True), place))
        plain, read = (target.roll_out(None, 1, 2, given, prompt=PROMPT, generator=seeded())[0] for given in ((), soft))
        assert torch.equal(plain.pred, read.pred)
        for gradient in torch.autograd.grad(read.eps.square().sum(), [one.embeds for one in soft]):
            assert size(gradient) > 0
        moved = [SoftPrompt(one.ids, one.embeds.detach() + 1.0, one.text_encoder) for one in soft]
        assert not torch.equal(
            target.roll_out(None, 1, 2, moved, prompt=PROMPT, generator=seeded())[0].pred, plain.pred
        )
        stray = SoftPrompt(soft[0].ids + 1, soft[0].embeds.detach())
        with pytest.raises(AttackError, match="given the ids"):
            target.roll_out(None, 0, 1, [stray], prompt=PROMPT)


def test_the_whole_run_is_the_guarded_pipeline(world: Any, star: sr.Guard[Any]) -> None:
    """CT1: the same latents at every step, the same image, with the guard's own hard decisions."""
    seen: list[Tensor] = []

    def look(pipe: Any, step: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(values["latents"])
        return {}

    with sr.attach(world, star):
        image = world(STAR, **CALL, generator=seeded(), output_type="pt", callback_on_step_end=look).images
    with Target(world, [star], CALL) as target, torch.no_grad():
        run = target.roll_out(None, prompt=STAR, generator=seeded())
        assert all(torch.equal(one.latents, latents) for one, latents in zip(run, seen, strict=True))
        assert torch.equal(target.generate(prompt=STAR, generator=seeded()), image)


def test_gates_are_the_guards_own_scores(world: Any, star: sr.Guard[Any]) -> None:
    with sr.attach(world, star) as attached:
        world([*STAR, "an image of a red circle on grass"], **CALL, generator=[seeded(0), seeded(1)])
        decisions = attached.decisions
    with Target(world, [star], CALL) as target, torch.no_grad():
        run = target.roll_out(
            None, prompt=[*STAR, "an image of a red circle on grass"], generator=[seeded(0), seeded(1)]
        )
    for row, decision in enumerate(decisions):
        scores = [float(one.gates["saferedir.prompt"].score[row]) for one in run]
        assert scores == pytest.approx(decision.prompt_scores)
        images = [float(one.gates["saferedir.image"].score[row]) for one in run]
        assert images == pytest.approx(decision.image_scores)
        assert (float(run[0].gates["saferedir.prompt"].margin[row]) >= 0) == decision.fired
    assert target.roll_out.__self__.guards == (star,)  # type: ignore[attr-defined]


def test_gradients_pass_through_the_guard(world: Any, star: sr.Guard[Any]) -> None:
    """CT4: towards the gates and the guarded prediction, and right: central differences along random directions."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    with Target(world, [star], CALL) as target:
        latents = target.roll_out(None, 0, 1, prompt=STAR, generator=seeded())[0].x_t.detach()
        ids = target.text_encoders[0].ids(STAR)
        looked_up = target.embed(ids).detach()

        def loss(embeds: Tensor, what: str) -> Tensor:
            found = target.predict(latents, 1, [SoftPrompt(ids, embeds)], prompt=STAR)
            return found.gates[what].margin.sum() if what else found.eps.square().mean()

        for what in ("", "saferedir.prompt", "saferedir.image"):
            embeds = looked_up.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(embeds, what), embeds)
            assert size(gradient) > 0
            direction = gradient / gradient.norm()
            step = 2e-2
            with torch.no_grad():
                ahead, behind = (float(loss(looked_up + way * step * direction, what)) for way in (1, -1))
            assert (ahead - behind) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_checkpointing_of_the_denoiser_leaves_the_gradient_and_holds_less(world: Any, star: sr.Guard[Any]) -> None:
    def gradient(is_checkpointed: bool) -> tuple[Tensor, int]:
        held = 0

        def keep(value: Tensor) -> Tensor:
            nonlocal held
            held += value.numel() * value.element_size()
            return value

        if is_checkpointed:
            world.unet.enable_gradient_checkpointing()
        try:
            with Target(world, [star], {"num_inference_steps": 3, "guidance_scale": 4.0}) as target:
                ids = target.text_encoders[0].ids(["a red star on grass"])
                embeds = target.embed(ids).detach().requires_grad_(True)
                noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                    images = target.generate(noise, [SoftPrompt(ids, embeds)], prompt=["a red star on grass"])
                images.square().mean().backward()
        finally:
            world.unet.disable_gradient_checkpointing()
        assert embeds.grad is not None
        return embeds.grad, held

    (whole, much), (again, little) = gradient(False), gradient(True)
    torch.testing.assert_close(again, whole)
    assert float(whole.abs().max()) > 0 and little < 0.6 * much


def test_a_batch_is_its_rows(world: Any, star: sr.Guard[Any]) -> None:
    """CT3: purity. The same call twice is the same, and a row does not depend on its neighbours."""
    prompts = [*STAR, "an image of a red circle on grass"]
    with Target(world, [star], CALL) as target, torch.no_grad():
        noise = torch.cat(
            [one.x_t for one in [target.roll_out(None, 0, 1, prompt=STAR, generator=seeded(s))[0] for s in (0, 1)]]
        )
        both = target.predict(noise, 2, prompt=prompts)
        assert torch.equal(target.predict(noise, 2, prompt=prompts).x0, both.x0)
        for row, prompt in enumerate(prompts):
            alone = target.predict(noise[row : row + 1], 2, prompt=[prompt])
            assert torch.allclose(alone.x0, both.x0[row : row + 1], atol=1e-4)


@pytest.mark.parametrize("method", ["negative_prompt", "sld"])
def test_guidance_defences_are_in_the_prediction(world: Any, method: str) -> None:
    """Gone from the conditional row, there in the guided one; with nothing to say they change no bit."""
    kind = guard_class(method)
    guard = kind(kind.config_class.from_dict({"concept": "star", "phrases": ["star"]}))
    with Target(world, (), CALL) as bare, torch.no_grad():
        plain = bare.roll_out(None, 0, 1, prompt=STAR, generator=seeded())[0]
    with Target(world, [guard], CALL) as target, torch.no_grad():
        defended = target.predict(plain.x_t, len(target.moments) - 1, prompt=STAR)
    with Target(world, (), CALL) as bare, torch.no_grad():
        undefended = bare.predict(plain.x_t, len(bare.moments) - 1, prompt=STAR)
    assert torch.allclose(defended.eps_cond, undefended.eps_cond, atol=1e-5)
    assert not torch.allclose(defended.eps, undefended.eps, atol=1e-3)


def test_the_ledger_counts_what_is_spent(world: Any) -> None:
    """I6: rows through the denoiser (two an image under guidance), rows with a gradient, rows through the text encoder."""
    ledger = Ledger()
    with Target(world, (), CALL, ledger) as target:
        count = len(target.moments)
        before = (ledger.nfe, ledger.te)
        assert before[0] == 0
        latents = target.roll_out(None, 0, 1, prompt=STAR)[0].x_t.requires_grad_(True)
        assert (ledger.nfe, ledger.bwd) == (2, 0)
        target.predict(latents, 3, prompt=STAR)
        assert (ledger.nfe, ledger.bwd) == (4, 2)
        with torch.no_grad():
            target.generate(prompt=STAR * 2)
        assert (ledger.nfe, ledger.bwd, ledger.gen) == (4 + 2 * 2 * count, 2, 2)
        ledger.caps["nfe"] = ledger.nfe + 3
        target.predict(latents, 3, prompt=STAR)
        with pytest.raises(BudgetSpent):
            target.predict(latents, 3, prompt=STAR)
        del ledger.caps["nfe"]
        target.predict(latents, 3, prompt=STAR)  # what was broken off leaves nothing behind
    spent = ledger.to_dict()
    world(STAR, **CALL)
    assert {**ledger.to_dict(), "seconds": 0} == {**spent, "seconds": 0}


def test_pipelines_that_start_from_a_image_are_refused() -> None:
    case = next(case for case in CASES if case.name == "sd-img2img")
    with pytest.raises(AttackError, match="text-to-image"):
        Target(case.build())


def test_steps_that_are_not_there(world: Any) -> None:
    with Target(world, (), CALL) as target:
        with pytest.raises(AttackError, match="evaluations 6 to 6"):
            target.predict(torch.zeros(1, 4, 16, 16), 6, prompt=STAR)
        with pytest.raises(AttackError, match="expected \\(B, L, d\\)"):
            SoftPrompt(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 4, 8))


def test_a_failing_guard_still_fails_closed(world: Any) -> None:
    kind = guard_class("negative_prompt")

    class Broken(kind):  # type: ignore[misc, valid-type]
        def on_denoised(self, step: Any, x0: Tensor) -> Tensor:
            return x0 * torch.nan

    guard = Broken(kind.config_class.from_dict({"concept": "star", "phrases": ["star"]}))
    with Target(world, [guard], CALL) as target, pytest.raises(GuardError):
        target.roll_out(None, 0, 1, prompt=STAR)
    world(STAR, **CALL)  # nothing is left on the pipeline
