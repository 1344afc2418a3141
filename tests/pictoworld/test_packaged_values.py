"""The packaged guard of twenty concepts: its rows decide for themselves, whatever the others do or how many there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import saferedir as sr
from saferedir.decisions import Decision
from saferedir.guards.saferedir.network import Redirector
from saferedir.guards.saferedir.rows import with_concept
from saferedir.guards.saferedir_many import SafeRedirMany
from saferedir.pictoworld.evaluation import generate, load_judge
from saferedir.pictoworld.tasks import VALUE_TASKS, forget_prompts, retain_prompts
from saferedir.policy.checking import all_named_conflicts, checked_policies, forms_of
from saferedir.utils.packaged import packaged_guard_path

NAME = "pictoworld/values"
RULE = {"guard": NAME}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return sr.load_pipeline("pictoworld")


@pytest.fixture(scope="module")
def guard() -> SafeRedirMany:
    return SafeRedirMany.from_pretrained(NAME)


def texts() -> list[str]:
    star, red = VALUE_TASKS["shape-star"], VALUE_TASKS["colour-red"]
    rows = (*forget_prompts(star, "test-seen", 2, seed=5), *forget_prompts(red, "test-noisy", 2, seed=5))
    return [prompt.text for prompt in (*rows, *retain_prompts(star, "test-seen", 2, seed=5))]


def decided(pipe: Any, guard: SafeRedirMany, *concepts: str) -> tuple[torch.Tensor, dict[tuple[str, int], Decision]]:
    """Images, and the decision on each concept and image."""
    made = generate(pipe, texts(), guards=[guard.deciding({name: name for name in concepts})], steps=4)
    return made.images, {(decision.concept, decision.image): decision for decision in made.decisions}


def test_every_value_is_a_row_and_the_card_names_it(guard: SafeRedirMany) -> None:
    folder = packaged_guard_path(NAME)
    assert folder is not None and set(guard.config.concepts) == set(VALUE_TASKS) and not guard.config.off
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_500_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == guard.card() and all(f"| {name} |" in card for name in VALUE_TASKS)
    assert not guard.network.config.has_joint  # no guard reads the joint verdict


def test_a_concept_switched_off_leaves_the_others_bit_for_bit(pipe: Any, guard: SafeRedirMany) -> None:
    names = guard.config.concepts
    images, every = decided(pipe, guard, *names)
    fired = {image for (name, image), decision in every.items() if name == "shape-star" and decision.fired}
    assert fired and len(fired) < len(texts())
    rest = [name for name in names if name != "shape-star"]
    other_images, others = decided(pipe, guard, *rest)
    for (name, image), decision in others.items():
        before = every[name, image]
        assert before.prompt_score == decision.prompt_score  # whatever became of the image
        if image not in fired:
            assert before == decision and torch.equal(images[image], other_images[image])


def test_a_concept_more_leaves_the_others_bit_for_bit(pipe: Any, guard: SafeRedirMany) -> None:
    names, config = guard.config.concepts, guard.config
    grown = Redirector(replace(guard.network.config, concepts=(*names, "new")))
    grown.load_state_dict(with_concept(guard.network.state_dict(), len(names), seed=3))
    thresholds = {
        f"{kind}_thresholds": (*getattr(config, f"{kind}_thresholds"), 1e3) for kind in ("prompt", "image", "last")
    }
    more = SafeRedirMany(replace(config, network=grown.config.to_dict(), **thresholds), grown)
    (images, before), (grown_images, after) = decided(pipe, guard, *names), decided(pipe, more, *names, "new")
    assert torch.equal(images, grown_images)
    assert {key: value for key, value in after.items() if key[0] != "new"} == before


def test_rows_remove_their_concepts(pipe: Any, guard: SafeRedirMany) -> None:
    judge = load_judge()
    for name in ("shape-star", "colour-red", "style-mosaic"):
        task = VALUE_TASKS[name]
        prompts = [prompt.text for prompt in forget_prompts(task, "test-seen", 6, seed=99)]
        row = guard.deciding({name: name})
        shown = [
            int(judge.judge(generate(pipe, prompts, guards=on, steps=12).images).shows(dict(task.forget)).sum())
            for on in ([], [row])
        ]
        assert shown[0] >= 4 and shown[1] <= 1, name


def test_a_policy_that_redirects_into_what_it_keeps_out_says_so() -> None:
    def conflicts(**rows: str) -> list[tuple[str, str]]:
        rules = {row: {**RULE, "row": row.replace("_", "-"), "action": action} for row, action in rows.items()}
        policy = sr.Policy.from_dict({"name": "p", "version": 1, "concepts": rules})
        return [
            (each.concept, each.other)
            for each in all_named_conflicts(list(checked_policies(forms_of(policy)).values()))
        ]

    both = [("shape_star", "shape_crescent"), ("shape_crescent", "shape_star")]
    assert conflicts(shape_star="block", shape_crescent="redirect") == both
    assert (
        conflicts(shape_star="block", shape_crescent="log") == conflicts(shape_star="block", colour_red="block") == []
    )
    whole = sr.Policy.from_dict({"name": "p", "version": 1, "concepts": {"values": RULE}})
    named = all_named_conflicts(list(checked_policies(forms_of(whole)).values()))
    assert {each.concept for each in named} == set(VALUE_TASKS)
    assert named[0].sentence.endswith("give its rule another anchor.")


def test_rows_whose_image_side_is_weak_are_said_when_the_guard_is_attached(pipe: Any, guard: SafeRedirMany) -> None:
    with pytest.warns(
        UserWarning, match=r"19 of 20 concepts are weak .*, such as colour-red \(the image verdict misses 88%"
    ):
        sr.attach(pipe, guard).detach()
    strong = guard.deciding({"shape-crescent": "crescent"})
    assert strong.warning_text() is None
    both = {"shape-crescent": "crescent", "shape-star": "star"}
    assert "1 of 2 concepts are weak" in str(guard.deciding(both).warning_text())
    assert guard.deciding(both, logged=["shape-star"]).warning_text() is None
    others = [name for name in guard.config.concepts if name != "shape-crescent"]
    assert str(guard.without(*others).warning_text()).endswith("switched off in this SafeRedir guard of 20 concepts.")
