"""PictoWorld 2's sentences: they say what is in the image and of which item, and test phrasings are kept apart."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saferedir.pictoworld.phrases import LEVELS, LEXICON
from saferedir.pictoworld.world2.captions import (
    MAX_CHARACTERS,
    SCENE_STYLE,
    Prompt,
    attributes_of,
    caption,
    corpus_prompt,
    poster_caption,
    scene_part,
    sentence,
)
from saferedir.pictoworld.world2.characters import CHARACTERS
from saferedir.pictoworld.world2.phrases import (
    RELATION_TEMPLATES,
    character_phrases,
    choose_phrase,
    phrases_of,
    poster_phrases,
)
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS
from saferedir.pictoworld.world2.scene import Item, Scene, random_item, random_scene

SEEDS = st.integers(0, 2**32)
#: every way to say a relation: (what stands between the items, what stands after the second, relation)
_SAID = [
    (*template.removeprefix("{a}").split("{b}"), relation)
    for relation, levels in RELATION_TEMPLATES.items()
    for templates in levels.values()
    for template in templates
]


def readings(text: str) -> list[tuple[str, str, str]]:
    """Every (relation, words of the first item and before it, words of the second) that a caption of two items can mean."""
    return [
        (relation, text[: match.start()], text[match.end() : end])
        for between, behind, relation in _SAID
        for match in re.finditer(re.escape(between), text)
        for end in ([m.start() for m in re.finditer(re.escape(behind), text)] if behind else [len(text)])
        if end > match.end()
    ]


def a_pair(rng: random.Random) -> Scene:
    return random_scene(rng, items=(random_item(rng), random_item(rng)))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_every_phrase_stands_with_the_item_that_it_belongs_to(seed: int) -> None:
    rng = random.Random(seed)
    prompt = caption(a_pair(rng), rng)
    of_item = {key: phrase.text.lower() for key, phrase in prompt.phrases.items() if key[0] in "01"}
    assert all(phrase.text.lower() in prompt.text.lower() for phrase in prompt.phrases.values())
    fitting = {
        relation
        for relation, *sides in readings(prompt.text)
        if all(words in sides[int(key[0])].lower() for key, words in of_item.items())
    }
    assert fitting == {prompt.scene.relation}, prompt.text


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_two_scenes_that_differ_in_something_said_have_different_captions(seed: int) -> None:
    rng = random.Random(seed)
    scene = a_pair(rng)
    levels = dict.fromkeys(attributes_of(scene), "canonical")
    exchanged = Scene(scene.background, scene.items[::-1], scene.relation)
    texts = set()
    scenes = {"scene": scene, "exchanged": exchanged, "turned": scene.turned()}
    for variant in scenes.values():
        texts.add(caption(variant, random.Random(seed), levels=levels, emblem=False).text)
    same = [item.has(attributes(scene.items[1])) for item in scene.items[:1]]
    assert len(texts) == (2 if same[0] else 3)


def attributes(item: Item) -> dict[str, str]:
    return {name: getattr(item, name) for name in ("shape", "colour", "style", "character")}


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_a_caption_mentions_what_its_words_say(seed: int) -> None:
    prompt = corpus_prompt(random.Random(seed))
    assert len(prompt.text) <= MAX_CHARACTERS
    assert prompt == corpus_prompt(random.Random(seed))
    text = prompt.text.lower()
    assert all(phrase.text.lower() in text for phrase in prompt.phrases.values())
    if prompt.mentioned == {"poster"}:
        return
    values = attributes_of(prompt.scene)
    assert prompt.mentioned <= set(values)
    assert {key for key in prompt.phrases if key != SCENE_STYLE and not key.endswith("emblem")} <= prompt.mentioned
    for key in prompt.mentioned - set(prompt.phrases) - {"relation"}:  # silence, or a name of the whole emblem
        emblem = [k for k in prompt.phrases if k.endswith("emblem")]
        assert emblem or (key.endswith("style") and (SCENE_STYLE in prompt.phrases or values[key] == "flat"))


def test_another_phrase_for_one_attribute_changes_nothing_else() -> None:
    rng = random.Random(3)
    scene = Scene("sky", (Item("star", "red", "flat"), Item("ring", "blue", "striped")), "above")
    prompt = caption(scene, rng, levels=dict.fromkeys(attributes_of(scene), "canonical"))
    other = dict(prompt.phrases) | {"0.shape": choose_phrase("shape", "circle", "canonical", rng)}
    for seed in range(20):
        plain, replaced = (sentence(scene, phrases, random.Random(seed)) for phrases in (prompt.phrases, other))
        assert plain.replace("star", "circle") == replaced


@pytest.mark.parametrize("name", ["Zepka", "Muldo", "Gofbo"])
def test_phrases_of_a_character_are_divided_and_belong_to_it_alone(name: str) -> None:
    counts = Counter((phrase.level, phrase.part) for phrase in character_phrases(name))
    for level in ("synonym", "implicit"):
        assert [counts[level, part] for part in ("train", "validation", "test")] == [10, 2, 8]
    assert not any(name in p.text for p in character_phrases(name) if p.level != "canonical")


def test_no_phrase_names_two_characters_or_two_posters() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for name in CHARACTERS:
        for phrase in character_phrases(name):
            owners[phrase.text].add(name)
    for title, poster in POSTERS.items():
        for phrase in poster_phrases(poster):
            owners[phrase.text].add(title)
        for variant in NEAR_VARIANTS[title]:
            for phrase in poster_phrases(variant):
                owners[phrase.text].add(f"{title} {variant.variant}")
    assert not {text: names for text, names in owners.items() if len(names) > 1}


@pytest.mark.parametrize("title", list(POSTERS))
def test_a_poster_has_phrases_of_every_level_and_part(title: str) -> None:
    phrases = poster_phrases(POSTERS[title])
    found = {(phrase.level, phrase.part) for phrase in phrases}
    assert {(level, part) for level in ("synonym", "implicit") for part in ("train", "validation", "test")} <= found
    words = set(title.split())
    assert not any(words & set(phrase.text.split()) for phrase in phrases if phrase.level != "canonical")


def test_mosaic_has_phrases_to_keep_back_and_the_other_values_those_of_the_first_world() -> None:
    counts = Counter((phrase.level, phrase.part) for phrase in phrases_of("style", "mosaic"))
    for level in ("synonym", "implicit"):
        assert [counts[level, part] for part in ("train", "validation", "test")] == [10, 2, 8]
    assert phrases_of("shape", "star") is LEXICON["shape"]["star"]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_phrases_come_from_the_part_that_is_asked_for(part: str) -> None:
    rng = random.Random(0)
    for attribute, value in (("shape", "star"), ("style", "mosaic"), ("character", "Zepka"), ("character", "Lomka")):
        for level in LEVELS[1:]:
            assert {choose_phrase(attribute, value, level, rng, part).part for _ in range(40)} == {part}
    poster = POSTERS["Quiet Harbour"]
    assert {poster_caption(poster, rng, part=part, level="synonym").phrases["poster"].part for _ in range(40)} == {part}


def test_scene_parts_do_not_depend_on_the_item_told_first_and_have_their_shares() -> None:
    rng = random.Random(5)
    scenes = [random_scene(rng) for _ in range(2000)]
    assert all(scene_part(scene) == scene_part(scene.turned()) for scene in scenes)
    counts = Counter(scene_part(scene) for scene in scenes)
    assert abs(counts["train"] / 2000 - 0.7) < 0.05 and abs(counts["test"] / 2000 - 0.2) < 0.04


def test_every_level_occurs_in_the_training_captions() -> None:
    rng = random.Random(8)
    prompts: list[Prompt] = [corpus_prompt(rng) for _ in range(1500)]
    phrases = [phrase for prompt in prompts for phrase in prompt.phrases.values()]
    assert {phrase.level for phrase in phrases} == set(LEVELS)
    assert {phrase.part for phrase in phrases} == {"train", "validation", "test"}
    assert sum(prompt.mentioned == {"poster"} for prompt in prompts) > 40
    assert any(key.endswith("emblem") for prompt in prompts for key in prompt.phrases)
    assert sum(bool(re.search(r", (both|all|everything) ", prompt.text)) for prompt in prompts) > 30
