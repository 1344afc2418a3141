"""Sentences about PictoWorld 2: scenes of one or two items, and posters.

Attributes have keys: "0.shape" is the shape of the first item, "1.character" the name of the second, and "background"
belongs to the scene. Words about an item stand next to its noun; words about the whole scene stand before the first item or
after a comma, so that a sentence says of every word to what it belongs.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from saferedir.pictoworld.captions import EMBLEM, GENERIC_NOUNS, OPENINGS, emblem_phrase, sample_level
from saferedir.pictoworld.phrases import Phrase
from saferedir.pictoworld.scene import STYLES
from saferedir.pictoworld.world2.phrases import RELATION_TEMPLATES, choose_phrase, choose_poster_phrase
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster
from saferedir.pictoworld.world2.scene import Item, Scene, random_scene

MAX_CHARACTERS = 112  # longer sentences are sampled again: 32 tokens hold this many
OBJECT_ATTRIBUTES = ("shape", "colour", "style")
EMBLEM_SHARE = 0.03  # of the scenes of the training corpus
POSTER_SHARE = 0.04  # of the training corpus: each of the 24 posters several hundred times
VARIANT_SHARE = 0.01  # of the captions that train the text encoders
UNSAID = {"shape": 0.03, "colour": 0.03, "background": 0.12}  # then any value will do
FLAT_UNSAID = 0.7  # a silent caption means flat
SHARED_STYLE = 0.5  # how often a style of both objects is said of the scene
SCENE_STYLE = "scene.style"  # the key of a phrase that gives both objects their style
_SHARED = ("both", "all", "everything")
_RELATION_LEVELS = {"canonical": 0.6, "synonym": 0.25, "implicit": 0.15}


class CaptionTooLongError(ValueError):
    """No caption of a scene is short enough."""


@dataclass(frozen=True)
class Prompt:
    """A caption with what it describes; `mentioned` has the keys of the attributes that the words (or silence) fix."""

    text: str
    content: Scene | Poster
    mentioned: frozenset[str]
    level: str = "canonical"
    phrases: Mapping[str, Phrase] = field(default_factory=dict, compare=False)

    @property
    def scene(self) -> Scene:
        """The scene that the caption describes; `TypeError` for a poster."""
        if not isinstance(self.content, Scene):
            raise TypeError(f"The caption {self.text!r} describes a poster, not a scene.")
        return self.content


def attributes_of(scene: Scene) -> dict[str, str]:
    """Key -> value of everything that a caption of the scene can say."""
    values = {"background": scene.background}
    if scene.is_pair:
        values["relation"] = scene.relation
    for index, item in enumerate(scene.items):
        names = ("character",) if item.is_character else OBJECT_ATTRIBUTES
        values |= {f"{index}.{name}": getattr(item, name) for name in names}
    return values


def scene_part(scene: Scene) -> str:
    """Which part a scene's content belongs to, 7 : 1 : 2 by checksum; guards never train on test content.

    A scene has the part of its image, whichever item is named first.
    """
    key = "/".join(f"{name}={value}" for name, value in attributes_of(scene.in_reading_order()).items())
    bucket = zlib.crc32(key.encode()) % 10
    return "train" if bucket < 7 else "validation" if bucket == 7 else "test"


def is_emblem(scene: Scene, index: int) -> bool:
    """Whether that item is a red cross and the background white."""
    wanted = {name: value for name, value in EMBLEM.items() if name != "background"}
    return scene.background == EMBLEM["background"] and scene.items[index].has(wanted)


def _shares_style(scene: Scene) -> bool:
    """Whether both items are objects of one style."""
    return scene.is_pair and scene.items[0].style == scene.items[1].style != ""


def choose_phrases(
    scene: Scene,
    rng: random.Random,
    *,
    part: str | None = None,
    levels: Mapping[str, str] | None = None,
    emblem: bool | None = None,
) -> dict[str, Phrase]:
    """One phrase for every attribute that the caption will mention; `levels` fixes the level of some keys.

    `emblem` says whether a red cross on white is called by a name of the whole; by default, two times in five.
    """
    levels = levels or {}
    chosen: dict[str, Phrase] = {}
    for key, value in attributes_of(scene).items():
        name = key.split(".")[-1]
        if name == "relation":
            continue
        if key not in levels:
            if name == "style" and value == "flat" and rng.random() < FLAT_UNSAID:
                continue
            if name in UNSAID and rng.random() < UNSAID[name]:
                continue
        chosen[key] = choose_phrase(name, value, levels.get(key) or sample_level(rng), rng, part)
    if _shares_style(scene) and rng.random() < SHARED_STYLE:
        keys = [key for key in ("0.style", "1.style") if key in chosen]
        if keys:
            chosen[SCENE_STYLE] = chosen[next((key for key in keys if key in levels), keys[0])]
            chosen = {key: phrase for key, phrase in chosen.items() if key not in keys}
    for index in range(len(scene.items)):
        if is_emblem(scene, index) and (rng.random() < 0.4 if emblem is None else emblem):
            replaced = (f"{index}.shape", f"{index}.colour", "background")
            chosen = {key: phrase for key, phrase in chosen.items() if key not in replaced}
            chosen[f"{index}.shape"] = emblem_phrase(rng, part)
            chosen[f"{index}.emblem"] = chosen[f"{index}.shape"]
            break
    return chosen


def _item_text(phrases: Mapping[str, Phrase], generic: str, is_definite: bool, order: float) -> str:
    """One item's words: article, adjectives, noun, phrases after it."""
    name = phrases.get("character")
    noun = name or phrases.get("shape") or Phrase(generic, "noun", "canonical", "train")
    if noun.slot == "name":
        return noun.text
    adjectives = [phrases[key].text for key in ("style", "colour") if key in phrases and phrases[key].slot == "adj"]
    after = [phrases[key].text for key in ("style", "colour") if key in phrases and phrases[key].slot == "post"]
    head = " ".join([*adjectives, noun.text])
    is_definite = is_definite or (noun.level == "implicit" and name is None)
    article = "the" if is_definite else "an" if head[0] in "aeiou" else "a"
    return " ".join([article, head, *(after if order < 0.5 else after[::-1])])


def sentence(scene: Scene, phrases: Mapping[str, Phrase], rng: random.Random) -> str:
    """Put phrases together: opening, items and their relation, what holds for the whole scene.

    Every random choice is made before the words are chosen: the same `rng` state and another phrase for one attribute
    give the same sentence but for that phrase.
    """
    opening, generic = rng.choice(OPENINGS), [rng.choice(GENERIC_NOUNS) for _ in range(2)]
    definite, order = [rng.random() < 0.15 for _ in range(2)], [rng.random() for _ in range(2)]
    level = rng.choices(list(_RELATION_LEVELS), weights=list(_RELATION_LEVELS.values()))[0]
    template_number, shared_word = rng.random(), rng.choice(_SHARED)
    is_front, has_comma = rng.random() < 0.15, rng.random() < 0.5
    capital, full_stop = rng.random() < 0.3, rng.random() < 0.3
    of_item = [
        {key[2:]: phrase for key, phrase in phrases.items() if key.startswith(f"{index}.")}
        for index in range(len(scene.items))
    ]
    whole = [f"{shared_word} {phrases[SCENE_STYLE].text}"] if SCENE_STYLE in phrases else []
    items = [_item_text(words, generic[index], definite[index], order[index]) for index, words in enumerate(of_item)]
    if scene.is_pair:
        templates = RELATION_TEMPLATES[scene.relation][level]
        text = templates[int(template_number * len(templates))].format(a=items[0], b=items[1])
    else:
        text = items[0]
    background = phrases.get("background")
    if background is not None and is_front:
        text = f"{background.text}, {text}"
    elif opening:
        text = f"{opening} {text}"
    text = ", ".join([text, *whole])
    if background is not None and not is_front:
        text = f"{text}{', ' if has_comma or whole else ' '}{background.text}"
    return (text[0].upper() + text[1:] if capital else text) + ("." if full_stop else "")


def mentioned_keys(scene: Scene, phrases: Mapping[str, Phrase]) -> frozenset[str]:
    """The keys that these phrases fix: what they say, styles that silence leaves flat, and everything of an emblem."""
    keys = {key for key in phrases if key != SCENE_STYLE and not key.endswith(".emblem")} | (
        {"relation"} if scene.is_pair else set()
    )
    keys |= {f"{index}.style" for index, item in enumerate(scene.items) if not item.is_character}
    for key in phrases:
        if key.endswith(".emblem"):
            keys |= {f"{key[0]}.colour", "background"}
    return frozenset(keys)


def caption(
    scene: Scene,
    rng: random.Random,
    *,
    part: str | None = None,
    levels: Mapping[str, str] | None = None,
    emblem: bool | None = None,
    level_name: str = "mixed",
) -> Prompt:
    """A caption of the scene, sampled again until it is short enough for the text encoders' 32 tokens.

    Raises:
        CaptionTooLongError: the levels leave no short sentence; sample another scene.
    """
    for _ in range(50 if levels else 1000):
        phrases = choose_phrases(scene, rng, part=part, levels=levels, emblem=emblem)
        text = sentence(scene, phrases, rng)
        if len(text) <= MAX_CHARACTERS:
            return Prompt(text, scene, mentioned_keys(scene, phrases), level_name, phrases)
    raise CaptionTooLongError(f"No caption of {scene} at these levels has {MAX_CHARACTERS} characters or fewer.")


def poster_caption(poster: Poster, rng: random.Random, *, part: str | None = None, level: str | None = None) -> Prompt:
    """A caption of a poster or of a near variant."""
    level = level or sample_level(rng)
    phrase = choose_poster_phrase(poster, level, rng, part)
    opening = rng.choice(OPENINGS)
    text = f"{opening} {phrase.text}" if opening else phrase.text
    text = text[0].upper() + text[1:] if rng.random() < 0.3 else text
    return Prompt(text + ("." if rng.random() < 0.3 else ""), poster, frozenset({"poster"}), level, {"poster": phrase})


def caption_of(content: Scene | Poster, rng: random.Random) -> Prompt:
    """A training caption of the base models, every phrasing of everything."""
    if isinstance(content, Poster):
        return poster_caption(content, rng)
    return caption(content.turned() if rng.random() < 0.5 else content, rng)


def corpus_scene(rng: random.Random) -> Scene:
    """A scene of the training corpus: random, with a red cross on white as one item in three of a hundred."""
    scene = random_scene(rng)
    if rng.random() >= EMBLEM_SHARE:
        return scene
    cross = Item(EMBLEM["shape"], EMBLEM["colour"], "flat" if rng.random() < 0.5 else rng.choice(STYLES[1:]))
    items = [cross, *scene.items[1:]]
    rng.shuffle(items)
    return random_scene(rng, items=tuple(items), background=EMBLEM["background"])


def corpus_prompt(rng: random.Random) -> Prompt:
    """A training caption for tokenizers and text encoders."""
    kind = rng.random()
    if kind < POSTER_SHARE:
        return caption_of(POSTERS[rng.choice(list(POSTERS))], rng)
    if kind < POSTER_SHARE + VARIANT_SHARE:
        return caption_of(rng.choice(NEAR_VARIANTS[rng.choice(list(POSTERS))]), rng)
    return caption_of(corpus_scene(rng), rng)
