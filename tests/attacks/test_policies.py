"""Attacks through `protect`: judged is what it lets out; white-box attacks may look through the image verifier."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from tests.attacks.planted import CALL, CONCEPT_PROMPT, NoOp, make_planted, shows

import saferedir as sr
from saferedir.attacks.gate_term import GateWeight, with_gates
from saferedir.attacks.verdicts import JudgeVerdict
from saferedir.errors import AttackError, GuardConfigError, GuardError
from saferedir.guard import GuardConfig
from saferedir.guards.image_verifier import ImageVerifier, ImageVerifierConfig
from saferedir.judges.base import Judge
from saferedir.judges.rules import AnyAbove, Unless
from saferedir.metrics.rates import Rate
from saferedir.target import ProtectSettings, Target
from saferedir.utils.images import to_rgb


@pytest.fixture(scope="module")
def world() -> Any:
    return make_planted()


def strict(images: list[Image.Image]) -> list[bool]:
    """The world's own judge as a verifier."""
    return [bool(shows(_pixels(image))) for image in images]


def _pixels(image: Image.Image) -> torch.Tensor:
    rgb = to_rgb(image)
    return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(1, *rgb.size[::-1], 3).movedim(3, 1) / 255


def with_verifier() -> NoOp:
    guard = NoOp(GuardConfig(concept="star"))
    torch.manual_seed(0)
    guard.image_verifier = (
        ImageVerifier(ImageVerifierConfig(concept="star", size=32, width=8)).eval().requires_grad_(False)
    )
    return guard


def run(world: Any, name: str = "best-of-n", guard: Any = None, **more: Any) -> Any:
    guard = guard or NoOp(GuardConfig(concept="star"))
    given = {"settings": {"n": 2}, "judge": shows, **more}
    return sr.attack(world, guard, name, [CONCEPT_PROMPT], call=CALL, **given)


def test_what_the_policy_blocks_has_failed_and_its_retries_are_paid(world: Any) -> None:
    plain, safe = run(world), run(world, policy=ProtectSettings("verify", verify=strict, retries=1))
    assert plain.success == Rate(1, 1) and safe.success == Rate(0, 1)
    (result,) = safe.results
    assert all(entry.blocked == [True] and not any(entry.agreed) for entry in (result.before, *result.evaluations))
    assert result.evaluation_ledger["gen"] == 2 * plain.results[0].evaluation_ledger["gen"]
    assert safe.facts["policy"] == "verify" and safe.facts["policy_settings"]["verify"] == "strict"
    assert safe.to_dict()["summary"]["blocked"]["rate"] == 1


class Red(Judge):
    """Scores how red an image is."""

    name = "red"
    labels = ("red", "broken")

    def score(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, 0].mean(dim=(1, 2))
        return torch.stack([red, torch.zeros_like(red)], dim=1)

    def facts(self) -> dict[str, Any]:
        return {"id": "red", "weights": "0123456789abcdef"}


def test_a_record_holds_the_checksum_of_every_judge(world: Any) -> None:
    """Of those that score the attack and of those of the policy, which leave the veto out; None for a function of one's own."""
    rule = Unless(AnyAbove(("red",), 2.0), AnyAbove(("broken",), 0.5))
    judges = {"red": JudgeVerdict(Red(), rule), "mine": shows}
    verify = {"red": Red().verifier(rule), "mine": strict}
    record = run(world, judge=judges, settings={"n": 1}, policy=ProtectSettings("verify", verify=verify, retries=0))
    facts = json.loads(json.dumps(record.facts))
    known = {"judge": "red", "facts": Red().facts()}
    assert facts["judge_facts"] == {"red": {**known, "rule": rule.to_dict()}, "mine": None}
    assert facts["policy_settings"]["verify_judges"] == [{**known, "rule": rule.rule.to_dict()}, None]
    assert "verify_judges" not in ProtectSettings("block").to_dict()


def test_it_is_what_protect_lets_out(world: Any) -> None:
    verify = lambda images: [True, False][: len(images)]  # noqa: E731
    guard, prompts = NoOp(GuardConfig(concept="star")), [CONCEPT_PROMPT, "tree"]
    with Target(world, [guard], CALL, policy=ProtectSettings("verify", verify=verify, retries=1)) as target:
        images = target.generate(prompt=prompts, generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)])
        assert target.blocked == [True, False] and len(target.last_run) == 2 * CALL["num_inference_steps"]
    with sr.protect(world, guard, on_unsafe="verify", verify=verify, retries=1) as safe:
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        output = safe(prompts, generator=generators, output_type="pt", **CALL)
    assert output.blocked == [True, False] and torch.equal(output.images, images)


def test_a_refused_call_shows_nothing_and_says_why(world: Any) -> None:
    def broken(images: list[Image.Image]) -> list[bool]:
        raise ValueError("no weights")

    (result,) = run(world, policy=ProtectSettings("verify", verify=broken)).results
    assert result.evaluations and not result.is_success
    assert "the verifier failed" in result.evaluations[0].to_dict()["refusal"]


def test_latents_are_handed_over_as_a_caller_does_so_that_a_guard_can_refuse_them(world: Any) -> None:
    class Strict(NoOp):
        latents_test = "refuse"

    settings = {"etas": (0.5,), "variances": (4.0,)}
    (result,) = run(world, "noise-overload", Strict(GuardConfig(concept="star")), settings=settings).results
    assert "latents" in result.evaluations[0].refusal and not result.is_success
    with (
        Target(world, [Strict(GuardConfig(concept="star"))], CALL) as target,
        pytest.raises(GuardError, match="latents"),
    ):
        target.generate(3 * torch.ones(1, 4, 8, 8), prompt=["tree"])


def test_the_verifier_is_heard_where_the_threat_model_grants_it(world: Any) -> None:
    guard = with_verifier()
    assert guard.image_verifier is not None
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    for sees in (False, True):
        with Target(world, [guard], CALL, sees_verifiers=sees) as target:
            prediction = target.predict(latents, 2, prompt=["tree"])
            gates, loss = target.verifier_gates(prediction.x0), prediction.x0.square().mean()
            whole = with_gates(loss, target, [prediction], GateWeight(1.0))
            assert with_gates(loss, target, [prediction], GateWeight(0.0)) is loss
            if not sees:
                assert gates == {} and torch.equal(whole, loss)
                continue
            (gate,) = gates.values()
            images = world.image_processor.postprocess(
                world.vae.decode(prediction.x0.detach() / world.vae.config.scaling_factor)[0], output_type="pt"
            )
            assert torch.allclose(gate.score, guard.image_verifier(images), atol=1e-5)
            assert float((whole - loss).detach()) == pytest.approx(
                max(0.0, float(gate.margin.detach()) + 0.05), abs=1e-6
            )
            (slope,) = torch.autograd.grad(gate.score.sum(), latents)
            assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 0


def test_refusals_say_what_to_do(world: Any) -> None:
    with pytest.raises(AttackError, match="no gate term"):
        run(world, see_verifier=True)
    with pytest.raises(AttackError, match="train verifier"):
        run(world, "p4d", settings={}, see_verifier=True)
    with pytest.raises(GuardConfigError, match="nothing to verify with"):
        run(world, policy=ProtectSettings("verify"))
    assert world.unet._forward_hooks == {}
