"""Sentences about scenes: templates, phrasing levels, and the recorded splits that keep test phrasings apart.

A prompt knows its scene, so that every attribute it asks for can be judged. Tasks (what to forget) are in tasks.py.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from saferedir.pictoworld.phrases import EMBLEM_PHRASES, Phrase, choose_phrase
from saferedir.pictoworld.scene import Scene, random_scene

MAX_CHARACTERS = 84  # about 30 tokens; longer sentences are sampled again
OPENINGS = (
    "",
    "",
    "",
    "a picture of",
    "an image of",
    "a drawing of",
    "draw",
    "show me",
    "an illustration of",
    "here is",
)
GENERIC_NOUNS = ("shape", "figure", "form")
EMBLEM = {"colour": "red", "shape": "cross", "background": "white"}
MIX = {"canonical": 0.55, "synonym": 0.22, "implicit": 0.11, "noisy": 0.12}
SOMETIMES_UNSAID = ("shape", "colour", "background")  # then any value will do
OFTEN_UNSAID = {"style": "flat", "position": "centre", "size": "medium"}  # what a silent caption means


@dataclass(frozen=True)
class Prompt:
    """A caption with the scene it describes; `mentioned` names the attributes that the words (or silence) fix."""

    text: str
    scene: Scene
    mentioned: frozenset[str]
    level: str = "canonical"
    phrases: Mapping[str, Phrase] = field(default_factory=dict, compare=False)


def scene_part(scene: Scene) -> str:
    """Which part a combination of attributes belongs to, 7 : 1 : 2 by checksum; guards never train on test combinations."""
    key = "/".join((scene.shape, scene.colour, scene.background, scene.style, scene.position, scene.size))
    bucket = zlib.crc32(key.encode()) % 10
    return "train" if bucket < 7 else "validation" if bucket == 7 else "test"


def is_emblem(scene: Scene) -> bool:
    """Whether the scene is a red cross on white."""
    return all(scene.value(attribute) == value for attribute, value in EMBLEM.items())


def sample_level(rng: random.Random) -> str:
    """A phrasing level from `MIX`."""
    return rng.choices(list(MIX), weights=list(MIX.values()))[0]


def choose_phrases(
    scene: Scene, rng: random.Random, *, part: str | None = None, levels: Mapping[str, str] | None = None
) -> dict[str, Phrase]:
    """One phrase for every attribute that the caption will mention; `levels` fixes the level of some attributes."""
    levels = levels or {}
    chosen: dict[str, Phrase] = {}
    for attribute in ("shape", "colour", "background", "style", "position", "size"):
        value = scene.value(attribute)
        forced = attribute in levels
        unsaid = OFTEN_UNSAID.get(attribute) == value
        if not forced and unsaid and (value == "medium" or rng.random() < 0.7):
            continue
        if not forced and attribute in SOMETIMES_UNSAID and rng.random() < 0.04:
            continue
        level = levels.get(attribute) or sample_level(rng)
        chosen[attribute] = choose_phrase(attribute, value, level, rng, part)
    return chosen


def sentence(phrases: Mapping[str, Phrase], rng: random.Random) -> str:
    """Put phrases together: opening, article, adjectives, noun, then the other phrases in random order.

    Every random choice is made before the words are chosen: the same `rng` state and another phrase for one
    attribute give the same sentence but for that phrase.
    """
    opening, noun_word = rng.choice(OPENINGS), rng.choice(GENERIC_NOUNS)
    definite, separator = rng.random() < 0.15, ", " if rng.random() < 0.25 else " "
    capital, full_stop = rng.random() < 0.3, rng.random() < 0.3
    order = {name: rng.random() for name in ("style", "colour", "background", "position", "size")}
    adjectives = [
        phrases[name].text for name in ("size", "style", "colour") if name in phrases and phrases[name].slot == "adj"
    ]
    noun = phrases.get("shape") or Phrase(noun_word, "noun", "canonical", "train")
    after = sorted((name for name, p in phrases.items() if p.slot == "post"), key=lambda name: order[name])
    head = " ".join([*adjectives, noun.text])
    article = "the" if definite or noun.level == "implicit" else "an" if head[0] in "aeiou" else "a"
    text = separator.join([f"{article} {head}", *(phrases[name].text for name in after)])
    text = f"{opening} {text}" if opening else text
    return (text[0].upper() + text[1:] if capital else text) + ("." if full_stop else "")


def emblem_phrase(rng: random.Random, part: str | None = None) -> Phrase:
    """A name of the whole emblem that mentions none of its parts."""
    return rng.choice([p for p in EMBLEM_PHRASES if part is None or p.part == part])


def caption(
    scene: Scene,
    rng: random.Random,
    *,
    part: str | None = None,
    levels: Mapping[str, str] | None = None,
    whole_emblem: bool | None = None,
    level_name: str = "mixed",
) -> Prompt:
    """A caption of the scene, sampled again until it is short enough for the 32-token text encoder."""
    if whole_emblem is None:
        whole_emblem = is_emblem(scene) and rng.random() < 0.4
    while True:
        phrases = choose_phrases(scene, rng, part=part, levels=levels)
        if whole_emblem:
            phrases = {k: v for k, v in phrases.items() if k not in EMBLEM} | {"shape": emblem_phrase(rng, part)}
        text = sentence(phrases, rng)
        if len(text) <= MAX_CHARACTERS:
            break
    mentioned = set(phrases) | set(OFTEN_UNSAID) | (set(EMBLEM) if whole_emblem else set())
    return Prompt(text, scene, frozenset(mentioned), level_name, phrases)


def corpus_prompt(rng: random.Random) -> Prompt:
    """A training caption of the base model: every phrasing of every value; the emblem in 3 % of the corpus."""
    emblem = EMBLEM if rng.random() < 0.03 else {}
    return caption(random_scene(rng, **emblem), rng)
