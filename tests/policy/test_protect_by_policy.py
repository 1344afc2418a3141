"""`protect(policy=...)`: each concept with its action, decisions with category and grade, conflicts of anchors."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import saferedir as sr
from saferedir.cli import app
from saferedir.errors import GuardConfigError
from saferedir.policy.conflicts import anchor_conflicts, named_conflicts
from saferedir.policy.observing import observing
from saferedir.protect import guards_of, prompt_decisions

PROMPTS = ["a red star on sand", "a blue circle in pointillism", "a green heart on grass"]
CALL = {"num_inference_steps": 4, "output_type": "np"}


def policy(**concepts: dict[str, Any]) -> sr.Policy:
    return sr.Policy.from_dict({"name": "p", "version": 1, "concepts": concepts})


def generators() -> list[Any]:
    import torch

    return [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def bare(pipe: Any) -> Any:
    return pipe(PROMPTS, generator=generators(), **CALL).images


def test_a_logged_concept_is_scored_and_changes_no_bit(pipe: Any, bare: Any) -> None:
    rule = {"guard": "pictoworld/star", "category": "logos", "action": "log", "grades": {"some": 0.0}}
    with sr.protect(pipe, policy=policy(star=rule)) as safe:
        output = safe(PROMPTS, generator=generators(), **CALL)
    assert np.array_equal(output.images, bare) and output.blocked == [False] * 3
    star, other, _ = output.decisions
    assert (star.fired, star.action, star.category, star.grade, star.name) == (True, "none", "logos", "some", "star")
    assert star.message.startswith("Logged only.") and not other.fired and other.grade == ""


def test_each_concept_has_its_own_action(pipe: Any, bare: Any) -> None:
    both = policy(
        star={"guard": "pictoworld/star", "action": "redirect"},
        dots={"guard": "pictoworld/pointillism", "action": "block"},
    )
    with sr.protect(pipe, policy=both) as safe:
        output = safe(PROMPTS, generator=generators(), **CALL)
    assert output.blocked == [False, True, False]
    assert not np.array_equal(output.images[0], bare[0]) and output.images[0].any() and not output.images[1].any()
    assert np.array_equal(output.images[2], bare[2])
    with sr.protect(pipe, policy=both.stricter({"star": "block"})) as safe:
        assert safe(PROMPTS, generator=generators(), **CALL).blocked == [True, True, False]


def test_a_grade_blocks_whatever_the_action(pipe: Any) -> None:
    rule = {"guard": "pictoworld/star", "action": "redirect", "grades": {"high": 4.0}, "block_at": "high"}
    with sr.protect(pipe, policy=policy(star=rule)) as safe:
        output = safe(PROMPTS, generator=generators(), **CALL)
    assert output.blocked == [True, False, False] and output.decisions[0].grade == "high"


def test_a_policy_of_one_action_does_what_on_unsafe_does(pipe: Any) -> None:
    guard = sr.Guard.from_pretrained("pictoworld/star")
    for action in ("redirect", "verify", "block"):
        with sr.protect(pipe, guard, on_unsafe=action) as safe:
            expected = safe(PROMPTS, generator=generators(), **{**CALL, "num_inference_steps": 12})
        with sr.protect(pipe, policy=policy(star={"guard": "pictoworld/star", "action": action})) as safe:
            output = safe(PROMPTS, generator=generators(), **{**CALL, "num_inference_steps": 12})
        assert output.blocked == expected.blocked and np.array_equal(output.images, expected.images)


def test_what_cannot_be_done_is_refused(pipe: Any) -> None:
    with pytest.raises(GuardConfigError, match="leave out guards and on_unsafe"):
        sr.protect(pipe, policy=policy(star={"guard": "pictoworld/star"}), on_unsafe="block")
    with pytest.raises(GuardConfigError, match="give guards, or a policy"):
        sr.protect(pipe)
    with pytest.raises(GuardConfigError, match="there is no profile 'children'"):
        sr.protect(pipe, policy=policy(star={"guard": "pictoworld/star"}), profile="children")
    with pytest.raises(GuardConfigError, match="scores nothing"):
        sr.protect(pipe, policy=policy(star={"guard": "pictoworld/star-duo", "action": "log"}))
    with pytest.raises(GuardConfigError, match="the policy verifies 'star'"):
        sr.protect(pipe, policy=policy(star={"guard": "pictoworld/star-duo", "action": "verify"}))


def test_an_observing_guard_shares_its_weights_and_leaves_the_guard_as_it_was() -> None:
    guard = sr.Guard.from_pretrained("pictoworld/star")
    other = observing(guard)
    assert other.network is guard.network and isinstance(other, type(guard))  # type: ignore[attr-defined]
    assert type(guard).verdict is not type(other).verdict and other.method == "saferedir"


def test_an_anchor_that_another_guard_keeps_out_is_a_conflict(pipe: Any, tmp_path: Any) -> None:
    both = policy(emblem={"guard": "pictoworld/emblem"}, dots={"guard": "pictoworld/pointillism"})
    guards, rules = guards_of(both, None)
    decide = partial(prompt_decisions, pipe)
    guards[0].config.training["anchor"] = "a red cross in pointillism on white"
    (conflict,) = anchor_conflicts(decide, guards, rules)
    assert (conflict.concept, conflict.other) == ("emblem", "dots")
    assert [each.other for each in named_conflicts(guards, rules)] == ["dots"]  # its guard's concept is pointillism
    guards[0].config.training["anchor"] = "two red Dots, on white"
    (named,) = named_conflicts(guards, rules)
    assert (
        named.sentence
        == "emblem redirects to 'two red Dots, on white', which names dots; give its rule another anchor."
    )
    guards[0].config.training["anchor"] = "a red heart on white"
    assert anchor_conflicts(decide, guards, rules) == named_conflicts(guards, rules) == []


def test_the_command_line_explains_and_compares(tmp_path: Any) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    text = 'name = "shop"\nversion = 1\n[concepts.star]\nguard = "pictoworld/star"\naction = "verify"\n'
    first.write_text(text)
    second.write_text(text.replace("verify", "redirect"))

    def call(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["policy", *map(str, words)])
        return result.exit_code, " ".join(result.output.split())

    code, output = call("check", first)
    assert code == 0 and "verify" in output and "shop, version 1" in output
    assert call("diff", first, first) == (0, "The policies say the same.")
    code, output = call("diff", first, second)
    assert code == 1 and "star.action" in output and "weaker" in output
    assert call("diff", second, first)[0] == 0
    second.write_text(text.replace("pictoworld/star", "pictoworld/stars"))
    assert call("check", second)[0] == 1


def test_a_grade_below_the_threshold_blocks_too(pipe: Any) -> None:
    rule = {"guard": "pictoworld/star", "action": "redirect", "grades": {"any": -1000.0}, "block_at": "any"}
    with sr.protect(pipe, policy=policy(brand=rule)) as safe:
        output = safe(PROMPTS, generator=generators(), **CALL)
    assert output.blocked == [True] * 3 and not output.decisions[2].fired
    assert output.blocked_by == [("brand",)] * 3  # by the policy's name, not the guard's


def test_a_retry_for_one_concept_is_no_reason_to_block_for_another(pipe: Any) -> None:
    calls: list[int] = []

    def once(images: list[Any]) -> list[bool]:
        calls.append(len(images))
        return [len(calls) == 1] * len(images)

    both = policy(
        star={"guard": "pictoworld/star", "action": "verify"},
        dots={"guard": "pictoworld/pointillism", "action": "block"},
    )
    with sr.protect(pipe, policy=both, verify=once, retries=1) as safe:
        output = safe("a green heart on grass", generator=generators()[0], num_inference_steps=12)
    assert output.blocked == [False] and {d.attempts for d in output.decisions} == {2}


def test_a_logged_guard_tests_no_input(pipe: Any) -> None:
    guard = sr.Guard.from_pretrained("pictoworld/star")
    assert observing(guard.with_settings(latents_test="refuse")).latents_test == "off"  # type: ignore[attr-defined]
    with pytest.raises(GuardConfigError, match="adds rows"):
        observing(guard.with_settings(recheck="same_step"))  # type: ignore[attr-defined]
    rules = policy(star={"guard": "pictoworld/star", "action": "log"})
    with pytest.raises(GuardConfigError, match="nothing to look with"):
        sr.protect(pipe, policy=rules, check_inputs=True)
