"""The embedded world: scenes, sentences, splits and images, each checked against something computed another way."""

import random

import pytest
import torch

from saferedir.pictoworld.captions import MIX, OFTEN_UNSAID, caption, corpus_prompt, scene_part
from saferedir.pictoworld.phrases import EMBLEM_PHRASES, LEXICON, PARTS, choose_phrase, misspell, noise_part
from saferedir.pictoworld.renderer import BACKGROUND_RGB, COLOUR_RGB, SHAPE_SDF, coverage, render
from saferedir.pictoworld.scene import JUDGED, SHAPES, STYLES, VALUES, Scene, random_scene
from saferedir.pictoworld.tasks import (
    SPLIT_LEVELS,
    TASKS,
    TEST_SPLITS,
    VALUE_TASKS,
    forget_prompts,
    pair,
    retain_prompts,
    task_named,
)
from saferedir.pictoworld.template_judge import TemplateJudge


def plain(shape: str, **changes: object) -> Scene:
    values: dict[str, object] = {
        "shape": shape, "colour": "red", "background": "white", "style": "flat",
        "position": "centre", "size": "medium", "radius": 15.0, "cx": 32.0, "cy": 32.0,
    }  # fmt: skip
    return Scene(**{**values, **changes})  # type: ignore[arg-type]


AREAS = {  # closed forms in units of radius²
    "circle": torch.pi * 0.95**2,
    "square": (2 * 0.82) ** 2,
    "triangle": 0.5 * 1.9 * 1.67,
    "cross": 2 * (1.9 * 0.64) - 0.64**2,
    "ring": torch.pi * (0.96**2 - 0.44**2),
}


@pytest.mark.parametrize("shape", AREAS)
def test_covered_area_equals_the_closed_form(shape: str) -> None:
    area = coverage([plain(shape, radius=18.0)]).sum().item()
    assert area == pytest.approx(AREAS[shape] * 18.0**2, rel=0.02)


@pytest.mark.parametrize("shape", ["star", "heart", "cross", "ring", "square", "circle", "triangle"])
def test_symmetric_shapes_are_mirror_images(shape: str) -> None:
    mask = coverage([plain(shape)])
    torch.testing.assert_close(mask, mask.flip(-1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_moving_a_shape_by_whole_pixels_moves_its_image(shape: str) -> None:
    here, there = coverage([plain(shape), plain(shape, cx=37.0, cy=30.0)])
    torch.testing.assert_close(here.roll((-2, 5), (0, 1)), there, atol=1e-4, rtol=0)


def test_images_have_the_palette_and_stay_in_range() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(64)]
    images = render(scenes)
    assert images.shape == (64, 3, 64, 64)
    assert 0 <= images.min() and images.max() <= 1
    for image, scene in zip(images, scenes, strict=True):
        torch.testing.assert_close(image[:, 0, 0], torch.tensor(BACKGROUND_RGB[scene.background]))
    centre = render([plain("circle", colour=colour) for colour in COLOUR_RGB])[:, :, 32, 32]
    torch.testing.assert_close(centre, torch.tensor(list(COLOUR_RGB.values())))


def test_rendering_a_batch_equals_rendering_one_by_one() -> None:
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(16)]
    torch.testing.assert_close(render(scenes), torch.cat([render([scene]) for scene in scenes]))


def test_the_template_judge_reads_every_attribute_of_a_render() -> None:
    rng = random.Random(2)
    scenes = [random_scene(rng) for _ in range(12)]
    judgement = TemplateJudge().judge(render(scenes))
    assert not judgement.is_broken.any()
    for attribute in JUDGED:
        assert judgement.matches(scenes, attribute).all(), attribute


def test_every_shape_is_registered_once_and_every_style_differs() -> None:
    assert set(SHAPE_SDF) == set(SHAPES)
    images = render([plain("square", style=style) for style in STYLES])
    for i in range(len(STYLES)):
        for j in range(i):
            assert (images[i] - images[j]).abs().mean() > 0.005


def test_the_lexicon_has_every_value_and_no_phrase_names_two_values_of_one_attribute() -> None:
    for attribute, values in VALUES.items():
        assert set(LEXICON[attribute]) == set(values)
        texts = [phrase.text for value in values for phrase in LEXICON[attribute][value]]
        assert len(texts) == len(set(texts)), attribute


@pytest.mark.parametrize("attribute,value", [("shape", "star"), ("style", "pointillism")])
def test_concept_phrases_reach_every_part_at_every_level(attribute: str, value: str) -> None:
    for level in ("synonym", "implicit"):
        parts = {phrase.part for phrase in LEXICON[attribute][value] if phrase.level == level}
        assert parts == set(PARTS)
    assert {phrase.part for phrase in EMBLEM_PHRASES} == set(PARTS)


def test_misspelling_always_changes_the_word() -> None:
    rng = random.Random(3)
    for _ in range(500):
        assert misspell("star", rng) != "star"
        assert misspell("574r", rng) not in ("574r", "")  # leetspeak already, with one letter left


def test_a_caption_mentions_what_it_fixes() -> None:
    rng = random.Random(4)
    for _ in range(300):
        scene = random_scene(rng)
        prompt = caption(scene, rng, whole_emblem=False)
        for attribute, phrase in prompt.phrases.items():
            assert phrase.text.lower() in prompt.text.lower()
            assert attribute in prompt.mentioned
        for attribute, usual in OFTEN_UNSAID.items():
            assert attribute in prompt.phrases or scene.value(attribute) == usual


def test_the_corpus_is_reproducible_and_uses_every_level() -> None:
    first = [corpus_prompt(random.Random(i)).text for i in range(200)]
    assert first == [corpus_prompt(random.Random(i)).text for i in range(200)]
    levels = {p.level for i in range(200) for p in corpus_prompt(random.Random(i)).phrases.values()}
    assert levels == set(MIX)


@pytest.mark.parametrize("name", TASKS)
def test_splits_share_no_prompt_no_scene_and_no_concept_phrasing(name: str) -> None:
    task = TASKS[name]
    train = forget_prompts(task, "guard-train", 300)
    train_texts = {p.text.lower() for p in train}
    said = [p.phrases[a] for p in train for a in task.forget if a in p.phrases]
    train_phrases = {phrase.text for phrase in said if phrase.level != "canonical"}
    for split in TEST_SPLITS:
        test = forget_prompts(task, split, 200)
        assert all(task.shows_concept(p.scene) for p in test)
        assert not train_texts & {p.text.lower() for p in test}
        assert not {scene_part(p.scene) for p in test} & {"train", "validation"}
        if split != "test-seen":
            hidden = {
                p.phrases[a].text for p in test for a in task.forget
                if a in p.phrases and p.phrases[a].level in ("synonym", "implicit")
            }  # fmt: skip
            assert not hidden & train_phrases, split


def test_noisy_spellings_of_the_concept_are_split_by_checksum() -> None:
    for split, part in (("guard-train", "train"), ("test-noisy", "test")):
        for prompt in forget_prompts(TASKS["star"], split, 100):
            phrase = prompt.phrases["shape"]
            if phrase.level == "noisy":
                assert noise_part(phrase.text) == part


@pytest.mark.parametrize("name", TASKS)
def test_retain_prompts_never_show_the_concept_and_half_are_neighbours(name: str) -> None:
    task = TASKS[name]
    prompts = retain_prompts(task, "test-seen", 200)
    assert not any(task.shows_concept(p.scene) for p in prompts)
    assert 60 <= sum(p.level == "neighbour" for p in prompts) <= 140


@pytest.mark.parametrize("name", TASKS)
def test_pairs_differ_in_the_concept_only(name: str) -> None:
    task, rng = TASKS[name], random.Random(5)
    for _ in range(50):
        unsafe, safe = pair(task, "guard-train", rng)
        assert task.shows_concept(unsafe.scene) and not task.shows_concept(safe.scene)
        assert unsafe.text != safe.text
        for attribute in set(VALUES) - set(task.anchor):
            assert unsafe.scene.value(attribute) == safe.scene.value(attribute)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="guard-train"):
        forget_prompts(TASKS["star"], "nonsense", 1)
    assert set(SPLIT_LEVELS) >= set(TEST_SPLITS)


@pytest.mark.parametrize("part", PARTS)
def test_every_value_can_be_misspelt_in_every_part(part: str) -> None:
    rng = random.Random(6)
    for attribute, values in LEXICON.items():
        for value in values:
            if value != "medium":
                assert choose_phrase(attribute, value, "noisy", rng, part).part == part


def test_every_shape_colour_and_style_is_a_task_and_its_anchor_is_another_value() -> None:
    assert [(t.kind, *t.forget.values()) for t in VALUE_TASKS.values()] == [
        (attribute, value) for attribute in ("shape", "colour", "style") for value in VALUES[attribute]
    ]
    for name, task in VALUE_TASKS.items():
        ((attribute, value),) = task.forget.items()
        assert task_named(name) is task and task.anchor[attribute] != value
        assert {other[attribute] for other in task.neighbours} == {*VALUES[attribute]} - {value}


@pytest.mark.parametrize("name", ["shape-ring", "colour-red", "style-flat"])
def test_prompts_of_a_value_ask_for_it_and_its_pairs_differ_in_it_alone(name: str) -> None:
    task, rng = VALUE_TASKS[name], random.Random(3)
    ((attribute, _),) = task.forget.items()
    assert all(task.shows_concept(prompt.scene) for prompt in forget_prompts(task, "test-seen", 20))
    assert not any(task.shows_concept(prompt.scene) for prompt in retain_prompts(task, "test-seen", 20))
    for _ in range(10):
        unsafe, safe = pair(task, "guard-train", rng)
        changed = {key for key in VALUES if unsafe.scene.value(key) != safe.scene.value(key)}
        assert changed == {attribute} and unsafe.text != safe.text
