"""The tasks of PictoWorld 2: their prompts ask for the concept or do without it, and splits share neither words nor content."""

from __future__ import annotations

import random

import pytest

from saferedir.pictoworld.tasks import TEST_SPLITS
from saferedir.pictoworld.world2.captions import SCENE_STYLE, Prompt, attributes_of, scene_part
from saferedir.pictoworld.world2.characters import CHARACTERS, siblings
from saferedir.pictoworld.world2.posters import POSTERS, Poster
from saferedir.pictoworld.world2.tasks import (
    SPLITS,
    TASKS,
    TWENTY,
    Task,
    class_part,
    concept_contents,
    forget_prompts,
    led_to,
    neighbour_prompts,
    other_contents,
    other_keys,
    pair,
    retain_prompts,
    task_named,
    task_names,
)

TEXT_TASKS = task_names("flux")
SCENE_TASKS = [name for name in TEXT_TASKS if not TASKS[name].poster]
PARTS = {"guard-train": "train", "guard-validation": "validation"}


def test_every_kind_of_task_is_there() -> None:
    assert {task.kind for task in TASKS.values()} == {
        "object", "style", "composition", "identity", "identities", "poster", "class part", "share",
    }  # fmt: skip
    assert [task.model for task in TASKS.values()].count("flux") == len(TEXT_TASKS) == 10
    assert len(set(TWENTY)) == 20
    with pytest.raises(ValueError, match="star-2"):
        task_named("star")


def test_every_character_has_a_task_that_leaves_its_siblings_alone() -> None:
    tasks = {name: task_named(f"character-{name.lower()}") for name in CHARACTERS}
    for name, task in tasks.items():
        assert task.forget == ({"character": name},) and task.anchor is not None
        assert CHARACTERS[task.anchor["character"]].family != CHARACTERS[name].family
        assert {near["character"] for near in task.neighbours} == set(siblings(name))
        assert TASKS.get(task.name, task) is task


@pytest.mark.parametrize("name", TEXT_TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_forget_prompts_ask_for_the_concept_in_words_of_their_split(name: str, split: str) -> None:
    task = TASKS[name]
    if split == "test-empty" and not task.poster:
        with pytest.raises(ValueError, match="one of posters"):
            forget_prompts(task, split, 1)
        return
    prompts = forget_prompts(task, split, 12)
    assert prompts == forget_prompts(task, split, 12)
    assert prompts[:5] == forget_prompts(task, split, 5)
    assert all(task.shows_concept(prompt.content) for prompt in prompts)
    if not task.poster:
        divided = [p for p in prompts if p.scene.is_pair or task.kind in ("object", "style")]
        assert all(scene_part(prompt.scene) == PARTS.get(split, "test") for prompt in divided)
    for prompt in prompts:
        for phrase in concept_phrases(name, prompt):
            assert phrase.level == "canonical" or phrase.part == PARTS.get(
                split, "train" if "seen" in split else "test"
            )


def concept_phrases(name: str, prompt: Prompt) -> list:  # type: ignore[type-arg]
    task = TASKS[name]
    if task.poster:
        return list(prompt.phrases.values())
    keys = {f"{i}." for i in range(len(prompt.scene.items)) if task.is_concept(prompt.scene, i)}
    names = {key for values in task.forget for key in values}
    return [
        phrase
        for key, phrase in prompt.phrases.items()
        if (key[:2] in keys and key[2:] in names) or (key in names) or (key == SCENE_STYLE and "style" in names)
    ]


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_retain_and_neighbour_prompts_do_without_it(name: str) -> None:
    task = TASKS[name]
    prompts = retain_prompts(task, "test-seen", 40)
    near = neighbour_prompts(task, "test-seen", 20)
    assert not any(task.shows_concept(prompt.content) for prompt in (*prompts, *near))
    assert sum(prompt.level == "neighbour" for prompt in prompts) == 20
    assert prompts == retain_prompts(task, "test-seen", 40)
    if task.poster:
        assert {prompt.content.title for prompt in near if isinstance(prompt.content, Poster)} == {task.poster}
    else:
        assert all(any(prompt.scene.has(values) for values in task.neighbours) for prompt in near)


def test_a_character_has_its_siblings_as_neighbours_and_an_anchor_of_another_family() -> None:
    for name in SCENE_TASKS:
        task = TASKS[name]
        if task.kind == "identity":
            character = task.forget[0]["character"]
            assert [values["character"] for values in task.neighbours] == siblings(character)
            assert task.anchor and CHARACTERS[task.anchor["character"]].family != CHARACTERS[character].family


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_pairs_differ_in_the_concept_alone(name: str) -> None:
    task, rng = TASKS[name], random.Random(1)
    for _ in range(25):
        unsafe, safe = pair(task, "guard-train", rng)
        assert task.shows_concept(unsafe.content) and not task.shows_concept(safe.content)
        assert unsafe.text != safe.text
        if task.poster:
            assert task.anchor and safe.content == POSTERS[task.anchor["poster"]]
            continue
        assert unsafe.scene.relation == safe.scene.relation and unsafe.scene.background == safe.scene.background
        values = attributes_of(safe.scene)
        for key in other_keys(task, unsafe):
            assert values[key] == attributes_of(unsafe.scene)[key]
            if key in unsafe.phrases:
                assert safe.phrases[key] == unsafe.phrases[key] and safe.phrases[key].text.lower() in safe.text.lower()


@pytest.mark.parametrize("name", SCENE_TASKS)
def test_half_of_the_forget_prompts_have_another_item_to_keep(name: str) -> None:
    task = TASKS[name]
    prompts = forget_prompts(task, TEST_SPLITS[0], 60)
    pairs = [prompt for prompt in prompts if prompt.scene.is_pair]
    assert 15 <= len(pairs) <= 45
    keys = [other_keys(task, prompt) for prompt in pairs]
    assert sum(any(key[0] in "01" for key in of_prompt) for of_prompt in keys) >= 0.7 * len(pairs)


@pytest.mark.parametrize("name", list(TASKS))
def test_contents_for_references_show_the_concept_or_do_not(name: str) -> None:
    task = TASKS[name]
    assert all(task.shows_concept(content) for content in concept_contents(task, 10))
    assert not any(task.shows_concept(content) for content in other_contents(task, 10))


def test_a_class_part_is_the_twenty_per_cent_one() -> None:
    assert TASKS["class-part"].forget == ({"shape": "ring", "colour": "pink"},)
    assert len(class_part(10).neighbours) == 3 and "character" in class_part(10).forget[0]
    with pytest.raises(ValueError, match="takes no text"):
        forget_prompts(TASKS["share"], "test-seen", 1)


def test_a_task_can_lead_to_the_anchor_of_another() -> None:
    circle = led_to(TASKS["character-lomka"], TASKS["characters-20"])
    unsafe, safe = pair(circle, "guard-train", random.Random(0))
    assert unsafe.scene.has({"character": "Lomka"}) and safe.scene.has({"shape": "circle", "colour": "blue"})
    assert "blue" in safe.text and "Lomka" not in safe.text
    for other, why in (("share", "no anchor|anchor of 'share'"), ("poster-quiet-harbour", "poster-quiet-harbour")):
        with pytest.raises(ValueError, match=why):
            led_to(TASKS["character-lomka"], TASKS[other])
    with pytest.raises(ValueError, match="what 'shape' forgets"):
        led_to(Task("shape", "object", ({"shape": "circle"},)), TASKS["characters-20"])
