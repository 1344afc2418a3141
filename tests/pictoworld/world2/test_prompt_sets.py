"""PictoWorld 2 in the bench: prompt sets and what they expect, its judges' rules against truth, guards without training."""

from __future__ import annotations

import random

import pytest
import torch

import saferedir as sr
from saferedir.bench.generation.worlds import check_recipe, world_concept, world_guards, world_prompts
from saferedir.errors import BenchError
from saferedir.guards.saferedir_many import SafeRedirMany
from saferedir.judges.base import Scores
from saferedir.judges.registry import load_judge
from saferedir.judges.rules import without_veto
from saferedir.judges.world2 import LABELS, World2Judge, World2TemplateJudge, task_rule
from saferedir.pictoworld.world2.captions import attributes_of, caption
from saferedir.pictoworld.world2.judge import HEADS, head_values
from saferedir.pictoworld.world2.judge import Judge as Network
from saferedir.pictoworld.world2.methods import METHODS, anchor_and_concept, make_guards, phrases
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS
from saferedir.pictoworld.world2.prompt_sets import concept_prompts, expected_values, place_values
from saferedir.pictoworld.world2.renderer import render_contents
from saferedir.pictoworld.world2.scene import Scene, random_scene
from saferedir.pictoworld.world2.tasks import TASKS, concept_contents, other_contents, task_names

LIMITS = {"forget": 6, "rephrased": 3, "retain": 6, "neighbours": 4}
SCENE_TASKS = [name for name, task in TASKS.items() if not task.poster]


@pytest.mark.parametrize("name", task_names("flux"))
def test_sets_of_every_text_task(name: str) -> None:
    sets, task = concept_prompts(name, LIMITS), TASKS[name]
    assert len(sets.forget) == 6 and sets.retain is not None and len(sets.retain) == 6
    assert set(sets.rephrased) == {"test-synonym", "test-implicit", "test-noisy"} | (
        {"test-empty"} if task.poster else set()
    )
    assert len(sets.neighbours["near"]) == 4
    groups = {*HEADS, "poster"}
    for prompts in (sets.forget, sets.retain, *sets.rephrased.values(), *sets.neighbours.values()):
        assert all(item.expected.keys() <= groups for item in prompts.items)
    fewer = concept_prompts(name, {**LIMITS, "forget": 2})
    assert fewer.forget.texts == sets.forget.texts[:2]


def test_what_is_expected_is_what_the_scene_shows_in_reading_order() -> None:
    rng = random.Random(0)
    for _ in range(200):
        scene = random_scene(rng)
        shown = head_values(scene)
        told = place_values(scene, {*attributes_of(scene), "layout"})
        assert told == {head: value for head, value in shown.items() if head in told}
        assert told.keys() == shown.keys()


def test_the_concept_itself_is_not_expected() -> None:
    rng, task = random.Random(1), TASKS["star-2"]
    for content in concept_contents(task, 60):
        assert isinstance(content, Scene)
        expected = expected_values(caption(content, rng), task)
        assert "star" not in expected.values()
        assert content.is_pair or not any(group.startswith("first") for group in expected)


def scores_of(contents: list[Scene], broken: float = 0.0) -> Scores:
    rows = torch.zeros(len(contents), len(LABELS))
    for row, scene in enumerate(contents):
        for head, value in head_values(scene).items():
            rows[row, LABELS.index(f"{head}:{value}")] = 1
        rows[row, LABELS.index("broken")] = broken
    return Scores(LABELS, rows)


@pytest.mark.parametrize("name", SCENE_TASKS)
def test_the_rule_says_what_the_scene_says(name: str) -> None:
    task = TASKS[name]
    scenes = [scene for scene in (*concept_contents(task, 60), *other_contents(task, 60)) if isinstance(scene, Scene)]
    truth = torch.tensor([task.shows_concept(scene) for scene in scenes])
    assert truth.any() and not truth.all()
    rule = task_rule(task)
    assert torch.equal(rule.decide(scores_of(scenes)), truth)
    assert not rule.decide(scores_of(scenes, broken=1.0)).any()
    assert torch.equal(without_veto(rule).decide(scores_of(scenes, broken=1.0))[truth], truth[truth])


def test_the_template_judge_reads_scenes_and_posters() -> None:
    task, poster = TASKS["star-2"], TASKS["poster-quiet-harbour"]
    contents = [
        *concept_contents(task, 4),
        *other_contents(task, 4),
        POSTERS[poster.poster],
        NEAR_VARIANTS[poster.poster][0],
    ]
    scores = Scores(LABELS, World2TemplateJudge().score(render_contents(contents)))
    assert task_rule(task).decide(scores).tolist() == [True] * 4 + [False] * 6
    assert task_rule(poster).decide(scores).tolist() == [False] * 8 + [True, False]


def test_the_network_scores_are_probabilities(tmp_path: object) -> None:
    from pathlib import Path

    weights = Path(str(tmp_path)) / "judge.safetensors"
    Network().save(weights)
    judge = load_judge("world2", weights=weights)
    assert isinstance(judge, World2Judge)
    scores = Scores(LABELS, judge.score(torch.rand(3, 3, 64, 64)))
    for head in (*HEADS, "poster"):
        assert scores.group(head)[1].sum(dim=1) == pytest.approx(torch.ones(3), abs=1e-5)
    assert judge.features(torch.rand(3, 3, 64, 64)).shape == (3, 256)


def test_words_of_every_text_task() -> None:
    for name in task_names("flux"):
        words, sentence = phrases(TASKS[name]), anchor_and_concept(TASKS[name])
        assert len(words) >= 2 and len(set(words)) == len(words)
        assert (sentence is None) == (TASKS[name].kind == "identities")


def test_twenty_characters_are_the_rows_of_one_guard_that_leads_to_none_of_them() -> None:
    task = TASKS["characters-20"]
    guards = make_guards("saferedir", task, None)
    assert guards is not None and isinstance(guards[0], SafeRedirMany)
    config = guards[0].config
    assert set(config.concepts) == {values["character"].lower() for values in task.forget} and not config.off
    assert not any(record.get("leads_into") for record in config.calibration.values())


def test_worlds_are_told_apart() -> None:
    assert world_prompts("world2/star-2", LIMITS).forget.protocol == "world2/star-2/test-seen"
    assert world_concept("world2/star-2/test-seen") == "world2/star-2"
    for recipe in METHODS:
        check_recipe(f"world2/{recipe}")
    (guard,) = world_guards("world2/negative-prompt", "world2/character-" + TASKS_NAME, None)
    assert guard.method == "negative_prompt"
    with pytest.raises(BenchError, match="another world"):
        world_guards("pictoworld/negative-prompt", "world2/star-2", None)
    with pytest.raises(BenchError, match="nothing for"):
        world_guards("world2/dual-latent-50", "world2/characters-20", None)
    with pytest.raises(BenchError, match="PictoWorld 2"):
        world_prompts("world2/star", LIMITS)
    with pytest.raises(BenchError, match="look-alike"):
        world_prompts("world2/star-2", {"look_alikes": 3})


TASKS_NAME = next(name for name in TASKS if name.startswith("character-")).removeprefix("character-")


def test_spell_has_a_radius_for_a_poster_whose_set_is_one_image() -> None:
    (guard,) = make_guards("spell", TASKS["poster-quiet-harbour"], sr.load_pipeline("pictoworld-flux")) or ()
    assert guard.config.radius is not None
