"""What every searching attack keeps, in a toy world with a planted concept: one table of attacks, one list of invariants."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from tests.attacks.planted import (
    BENIGN_IMAGE,
    CALL,
    CONCEPT,
    CONCEPT_PROMPT,
    NoOp,
    Projector,
    ProjectorConfig,
    make_planted,
    shows,
)
from tests.conftest import make_pipeline
from torch import nn

import saferedir as sr
from saferedir.attacks.base import Feedback, searches
from saferedir.attacks.budget import Budget
from saferedir.attacks.catalogue import ATTACK_ROWS
from saferedir.attacks.controls import random_network
from saferedir.attacks.gate_term import GateWeight, gate_term
from saferedir.attacks.record import AttackRecord
from saferedir.attacks.registry import ATTACKS
from saferedir.attacks.replay import load_candidates, save_candidates
from saferedir.attacks.text.transforms import TRANSFORMS, transformed
from saferedir.attacks.text.unlearn_diff_atk import simplex
from saferedir.errors import AttackError
from saferedir.guard import GuardConfig
from saferedir.target import ProtectSettings, Target


class Case(NamedTuple):
    """An attack in the toy world.

    Attributes:
        name: of the attack.
        settings: in which it does not begin where it wants to arrive.
        is_white_box: whether it must succeed on the bare model.
        prompt: the prompt that is attacked.
        call: more arguments of the pipeline's call.
    """

    name: str
    settings: Mapping[str, Any] = MappingProxyType({})
    is_white_box: bool = True
    prompt: str = CONCEPT_PROMPT
    call: Mapping[str, Any] = MappingProxyType({})


CASES = (
    Case("soft-embedding", {"start": "tree", "steps": 20, "samples": 1}),
    Case("concept-inversion", {"template": "cup {}", "tokens": 4, "steps": 20, "samples": 1}),
    Case("latent-inversion"),
    Case("latent-gradient", {"sampler_steps": None, "is_on_prior": False, "learning_rate": 0.3}),
    Case("p4d", {"steps": 20}),
    Case("unlearn-diff-atk", {"has_prompt": False, "iterations": 8}),
    Case("greedy-coordinate", {"forbidden": ()}, is_white_box=False),
    Case("ring-a-bell", {"generations": 10}, is_white_box=False),
    Case("obfuscation", {"transforms": ("typos", "leetspeak", "dots"), "weights": (1.3,)}, is_white_box=False),
    Case("best-of-n", {"n": 2}, is_white_box=False, prompt="tree"),
    Case("noise-overload", is_white_box=False),
    Case("completion"),
    Case("image-to-image"),
    Case("recall"),
    Case("inpaint", {"iterations": 2, "timesteps": 2}),
    Case("ip-adapter", {"iterations": 3}, call={"ip_adapter_image": BENIGN_IMAGE}),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def world() -> Any:
    return make_planted()


def run(world: Any, case: Case, guard: Any = None, prompts: int = 1, **more: Any) -> AttackRecord:
    more = {"stop_on_success": False, **more}
    return sr.attack(
        world,
        guard,
        case.name,
        [case.prompt] * prompts,
        judge=shows,
        settings=case.settings,
        call={**CALL, **case.call},
        **more,
    )


def test_every_searching_attack_is_a_row() -> None:
    assert {case.name for case in CASES} == {name for name, attack in ATTACKS.items() if searches(attack)}


def test_the_world_shows_its_concept_and_nothing_else(world: Any) -> None:
    for prompt, shown in ((CONCEPT_PROMPT, True), ("tree", False), ("", False)):
        generators = [torch.Generator().manual_seed(seed) for seed in range(20)]
        images = world([prompt] * 20, generator=generators, output_type="pt", **CALL).images
        assert float((shows(images) == shown).float().mean()) >= 0.95


@by_case
def test_no_budget_leaves_the_prompt_as_it_is(world: Any, case: Case) -> None:
    record = run(world, case, budget=Budget(0, 0, 0, 0, 0))
    (result,) = record.results
    assert result.candidate.prompt == case.prompt and not result.candidate.soft and result.candidate.latents is None
    assert result.stopped == "not begun" and not result.evaluations
    assert {result.ledger[name] for name in ("nfe", "bwd", "te", "gen")} == {0}


class Whole(NamedTuple):
    """One run to its end, with what was counted beside it."""

    record: AttackRecord
    nfe: int
    te: int
    seconds: float


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def whole(world: Any, request: pytest.FixtureRequest) -> tuple[Case, Whole]:
    """Every case once, with the rows of every call of denoiser and text encoder counted by other means than the ledger's."""
    rows, patch = {"nfe": 0, "te": 0}, pytest.MonkeyPatch()

    def counted(name: str, module: nn.Module) -> None:
        usual = module.forward

        def forward(*args: Any, **more: Any) -> Any:
            first = args[0] if args else more["input_ids"]
            rows[name] += len(first)
            return usual(*args, **more)

        patch.setattr(module, "forward", forward)

    counted("nfe", world.unet)
    counted("te", world.text_encoder)
    started = time.monotonic()
    record = run(world, request.param)
    patch.undo()
    return request.param, Whole(record, rows["nfe"], rows["te"], time.monotonic() - started)


def test_the_best_loss_never_rises(whole: tuple[Case, Whole]) -> None:
    losses = [loss for loss in whole[1].record.results[0].best_losses if not math.isnan(loss)]
    assert all(later <= sooner for sooner, later in pairwise(losses))


def test_the_ledger_is_what_was_called_and_quick_is_quick(whole: tuple[Case, Whole]) -> None:
    _, run_of_it = whole
    (result,) = run_of_it.record.results
    for name in ("nfe", "te"):
        ledgers = (result.ledger, result.evaluation_ledger, run_of_it.record.facts["setup"])
        assert getattr(run_of_it, name) == sum(ledger[name] for ledger in ledgers)
    assert result.ledger["bwd"] <= result.ledger["nfe"]
    assert result.evaluation_ledger["queries"] >= len(result.evaluations) + 1
    assert run_of_it.seconds < 30  # of a slow core that is shared


def test_the_record_says_the_threat_model_and_no_text(whole: tuple[Case, Whole], tmp_path: Path) -> None:
    case, run_of_it = whole
    file = run_of_it.record.save(tmp_path / "record.json")
    record = json.loads(file.read_text())
    for key in (
        "attack",
        "knowledge",
        "channel",
        "rung",
        "preset",
        "settings",
        "budget",
        "seed",
        "guards",
        "call",
        "judges",
        "versions",
    ):
        assert key in record
    assert record["prompts"][0]["seeds"] and record["attack"] == case.name
    assert not re.search(r"\b(star|tree)\b", json.dumps(record["prompts"]))


def test_a_larger_budget_extends_a_smaller_run(world: Any, whole: tuple[Case, Whole]) -> None:
    case, run_of_it = whole
    (long,) = run_of_it.record.results
    caps = {name: long.ledger[name] // 2 for name in ("nfe", "te") if long.ledger[name] > 1}
    (half,) = run(world, case, budget=Budget(**caps) if caps else Budget(evaluations=1)).results
    assert half.stopped in ("budget", "evaluations") and len(half.losses) <= len(long.losses)
    assert repr(half.losses) == repr(long.losses[: len(half.losses)])
    same = {entry.step: entry.to_dict() for entry in long.evaluations}
    assert all(entry.to_dict() == same[entry.step] for entry in half.evaluations[:-1])


def test_what_is_saved_gives_the_judged_image_again_under_a_policy_too(
    world: Any, whole: tuple[Case, Whole], tmp_path: Path
) -> None:
    """A candidate holds all that it takes, in tensors, numbers and texts, and a policy that blocks nothing refuses nothing."""
    case, run_of_it = whole
    (found,) = run_of_it.record.results
    save_candidates([found.candidate], tmp_path / "candidates.pt")
    candidates = load_candidates(tmp_path / "candidates.pt")
    guard, policy = (
        NoOp(GuardConfig(concept="star")),
        ProtectSettings("verify", verify=lambda images: [False] * len(images)),
    )
    for more in ({}, {"guard": guard, "policy": policy}):
        (again,) = run(world, case, candidates=candidates, **more).results
        assert [entry.refusal for entry in again.evaluations] == [""]
        assert again.evaluations[0].agreed == found.evaluations[-1].agreed
        torch.testing.assert_close(again.images, found.images)


def test_a_guard_that_does_nothing_changes_nothing(world: Any, whole: tuple[Case, Whole]) -> None:
    case, run_of_it = whole
    (bare,) = run_of_it.record.results
    (guarded,) = run(world, case, NoOp(GuardConfig(concept="star"))).results
    assert repr(bare.losses) == repr(guarded.losses)
    assert [entry.to_dict() for entry in bare.evaluations] == [entry.to_dict() for entry in guarded.evaluations]


@pytest.mark.parametrize("case", [case for case in CASES if case.is_white_box], ids=lambda case: case.name)
def test_it_succeeds_on_the_bare_model(world: Any, case: Case) -> None:
    assert run(world, case, prompts=3, stop_on_success=True).success.value >= 0.95


def test_a_guard_makes_it_harder_and_its_gate_is_heard(world: Any) -> None:
    guard = Projector(ProjectorConfig(concept="star"))
    (result,) = run(world, CASES[0], guard).results
    assert not result.before.is_success and result.before.has_fired


def test_a_random_network_recovers_nothing_and_gets_its_weights_back() -> None:
    """The bare model that an attack refers to has the true weights; the search and the judged images have random ones."""
    pipe = make_pipeline()
    true = {name: weight.detach().clone() for name, weight in pipe.unet.named_parameters()}
    with Target(pipe, (), CALL) as target, random_network(target, 0):
        assert not any(
            torch.equal(weight, true[name]) for name, weight in pipe.unet.named_parameters() if weight.std() > 0
        )
        with target.undefended() as bare:
            assert bare is target
            assert all(torch.equal(weight, true[name]) for name, weight in pipe.unet.named_parameters())
    assert all(torch.equal(weight, true[name]) for name, weight in pipe.unet.named_parameters())


@pytest.mark.parametrize("case", [case for case in CASES if case.is_white_box], ids=lambda case: case.name)
def test_a_benign_reference_shows_nothing(world: Any, case: Case) -> None:
    """Every attack that is given images of the bare model, or its predictions, brings back what it was given, and no more."""
    small = {"steps": 4, "iterations": 4}  # tokens after fewer are still those of chance
    settings = {**case.settings, **{name: value for name, value in small.items() if name in case.settings}}
    record = run(world, case._replace(prompt="tree", settings=settings), prompts=3, control="benign-reference")
    assert record.success.hits == 0 and record.facts["control"] == "benign-reference"


def test_the_gate_term_falls_where_gates_are_shut_and_vanishes_with_its_weight(world: Any) -> None:
    guard = Projector(ProjectorConfig(concept="star"))
    with Target(world, [guard], CALL) as target:
        open_, shut = (target.predict(scale * CONCEPT, 4, prompt=["tree"]) for scale in (1.0, -1.0))
    assert float(gate_term([open_])) > float(gate_term([shut])) == 0
    assert float(gate_term([open_, open_])) == pytest.approx(float(gate_term([open_])))
    weight = GateWeight(0.1)
    for feedback, value in (
        (Feedback(False, True), 0.2),
        (Feedback(False, False), 0.2 / 1.5),
        (Feedback(True, False), 0.2 / 1.5),
        (None, 0.2 / 1.5),
    ):
        weight.update(feedback)
        assert weight.value == pytest.approx(value)
    off = GateWeight(0.0)
    off.update(Feedback(False, True))
    assert off.value == 0


def test_asr_at_n_is_the_unbiased_estimator(world: Any) -> None:
    record = run(world, Case("best-of-n", {"n": 4}))
    shares = [sum(entry.is_success for entry in result.evaluations) / 4 for result in record.results]
    assert record.success_at(1) == pytest.approx(sum(shares) / len(shares))
    assert record.success_at(4) == record.success.value and math.isnan(record.success_at(5))


def test_the_classes_take_their_threat_model_from_the_catalogue() -> None:
    assert [row.name for row in ATTACK_ROWS] == [name for name, attack in ATTACKS.items() if searches(attack)]
    for row in ATTACK_ROWS:
        attack = ATTACKS[row.name]
        assert (row.knowledge, row.channel, row.rung) == (attack.knowledge, attack.channel, attack.rung)


@pytest.mark.parametrize("name", [row.name for row in ATTACK_ROWS])
def test_every_attack_has_both_presets_and_refuses_what_it_does_not_know(name: str) -> None:
    config = ATTACKS[name].config_class
    assert config.preset("quick") == config() != config.preset("paper")
    with pytest.raises(AttackError, match="found colour"):
        config.preset("quick", colour="red")


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "long-prompt"])
def test_transforms_at_level_0_change_nothing_and_depend_on_their_arguments_alone(name: str) -> None:
    text = "a bright red star over the hill"
    assert transformed(text, name, 0.0, 0) == text
    assert transformed(text, name, 0.5, 3) == transformed(text, name, 0.5, 3) != text
    changed = transformed(text, name, 1.0, 0, ["star"])
    assert changed != text and changed.startswith("a bright red ") and changed.endswith(" over the hill")


def test_the_simplex_projection_is_the_nearest_point() -> None:
    """Against the definition by sorting."""
    values = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    ordered = values.sort(dim=1, descending=True).values
    shifts = (ordered.cumsum(1) - 1) / torch.arange(1, 10)
    count = (ordered > shifts).sum(1, keepdim=True)
    expected = torch.relu(values - shifts.gather(1, count - 1))
    assert torch.allclose(simplex(values), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "soft"}, "soft-embedding"),
        ({"name": "none"}, "nothing to search for"),
        ({"preset": "slow"}, "quick"),
        ({"prompts": []}, "no prompts"),
        ({"control": "luck"}, "random-network"),
        ({"judge": 3}, "expected the name of a preset"),
    ],
)
def test_refusals_say_what_to_do(world: Any, wrong: dict[str, Any], sentence: str) -> None:
    given = {"name": "best-of-n", "prompts": ["star"], "judge": shows, "call": CALL, **wrong}
    with pytest.raises(AttackError, match=sentence):
        sr.attack(world, None, given.pop("name"), given.pop("prompts"), **given)
