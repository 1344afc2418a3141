"""PictoWorld's prompts as the bench takes them: every set of one concept, each prompt with the attributes it fixes.

Forget, rephrased and retain prompts are those of tasks.py, in its order; neighbours and look-alikes are made here. Test
phrasings and test scenes throughout.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from saferedir.errors import BenchError
from saferedir.pictoworld.captions import (
    MAX_CHARACTERS,
    OFTEN_UNSAID,
    Prompt,
    caption,
    choose_phrases,
    scene_part,
    sentence,
)
from saferedir.pictoworld.phrases import LEXICON, Phrase
from saferedir.pictoworld.scene import JUDGED, Scene, random_scene
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.prompts.sets import ConceptPrompts, PromptItem, PromptSet
from saferedir.utils.names import unknown_name_message

#: prompts of each kind where no limit is given: sentences can be made without end. Kinds not named are then left out.
USUAL: Mapping[str, int] = {"forget": 200, "rephrased": 200, "retain": 200}
KINDS = ("forget", "rephrased", "retain", "neighbours", "look_alikes")
#: words that occur in phrases of the concept and, innocently, in phrases of other things: a filter of words trips over them
LOOK_ALIKE_WORDS: Mapping[str, tuple[str, ...]] = {
    "star": ("armed", "mark", "outline", "symbol", "tip"),
    "pointillism": ("dot", "made", "tip", "tiny"),
    "emblem": ("badge", "box", "emblem", "sign", "symbol"),
}
_ALWAYS_SAID = ("shape", "colour", "background")


def concept_prompts(task_name: str, limits: Mapping[str, int | None]) -> ConceptPrompts:
    """All prompts of a task.

    Args:
        task_name: "star", "pointillism" or "emblem".
        limits: "forget", "rephrased", "retain", "neighbours" (each neighbour), "look_alikes" -> how many prompts; without one,
            200 of the first three and none of the others.

    Returns:
        forget "test-seen", rephrased by the other test splits, retain, neighbours by what they show, look-alikes. `expected`
        holds every attribute that the words or their silence fix, the concept's own among them. A smaller limit gives the
        first prompts of a larger one.

    Raises:
        BenchError: an unknown task or kind, no forget prompts, a negative limit, more prompts than there are.
    """
    if task_name not in TASKS:
        raise BenchError(unknown_name_message("concept of PictoWorld", task_name, TASKS))
    for kind, limit in limits.items():
        if kind not in KINDS:
            raise BenchError(unknown_name_message("kind of prompts", kind, KINDS))
        if limit is not None and limit < (kind == "forget"):
            raise BenchError(f"the limit of {kind} prompts is {limit}, expected a number >= {int(kind == 'forget')}.")
    task, count = TASKS[task_name], {kind: _count(limits.get(kind), kind) for kind in KINDS}
    try:
        forget, *rephrased = (
            _set(split, forget_prompts(task, split, count["forget" if split == TEST_SPLITS[0] else "rephrased"]), task)
            for split in (TEST_SPLITS if count["rephrased"] else TEST_SPLITS[:1])
        )
        return ConceptPrompts(
            forget=forget,
            rephrased={prompt_set.name: prompt_set for prompt_set in rephrased},
            retain=_set("retain", retain_prompts(task, "test-seen", count["retain"]), task)
            if count["retain"]
            else None,
            neighbours=_neighbours(task, count["neighbours"]) if count["neighbours"] else {},
            look_alikes=_look_alikes(task, count["look_alikes"]) if count["look_alikes"] else None,
        )
    except ValueError as error:  # tasks.py: fewer different prompts exist
        raise BenchError(f"PictoWorld's task {task_name!r}: {str(error)[:1].lower()}{str(error)[1:]}") from error


def _count(limit: int | None, kind: str) -> int:
    return USUAL.get(kind, 0) if limit is None else limit


def _set(name: str, prompts: Sequence[Prompt], task: Task) -> PromptSet:
    items = tuple(
        PromptItem(
            text=prompt.text,
            expected={
                attribute: prompt.scene.value(attribute) for attribute in JUDGED if attribute in prompt.mentioned
            },
            tags=(prompt.level,),
        )
        for prompt in prompts
    )
    return PromptSet(name, items, f"pictoworld/{task.name}/{name}")


def _scene(rng: random.Random, task: Task, fixed: Mapping[str, str]) -> Scene:
    while True:
        scene = random_scene(rng, **fixed)
        if scene_part(scene) == "test" and not task.shows_concept(scene):
            return scene


def _distinct(sample: Callable[[], Prompt], count: int, what: str) -> list[Prompt]:
    by_text: dict[str, Prompt] = {}
    for _ in range(200 * count):
        prompt = sample()
        by_text.setdefault(prompt.text.lower(), prompt)
        if len(by_text) == count:
            return list(by_text.values())
    raise BenchError(f"PictoWorld has only {len(by_text)} {what} prompts where {count} were asked for; ask for fewer.")


def neighbour_name(neighbour: Mapping[str, str]) -> str:
    """What a neighbour shows: "heart", "mosaic", "blue cross on white"."""
    colour, background = neighbour.get("colour"), neighbour.get("background")
    kernel = neighbour.get("shape") or neighbour.get("style") or "shape"
    return f"{f'{colour} ' if colour else ''}{kernel}{f' on {background}' if background else ''}"


def _neighbours(task: Task, count: int) -> dict[str, PromptSet]:
    """A set for each neighbour: its attributes said in plain words or synonyms, the rest of the scene in words of every level."""

    def prompts_of(name: str, neighbour: Mapping[str, str]) -> PromptSet:
        rng = random.Random(f"neighbours/{task.name}/{name}")

        def sample() -> Prompt:
            scene = _scene(rng, task, neighbour)
            levels = {a: "canonical" if rng.random() < 0.75 else "synonym" for a in neighbour}
            return caption(scene, rng, part="test", levels=levels, level_name="neighbour")

        return _set(name, _distinct(sample, count, name), task)

    return {name: prompts_of(name, neighbour) for neighbour in task.neighbours if (name := neighbour_name(neighbour))}


def look_alike_phrases(task: Task) -> list[tuple[str, str, Phrase]]:
    """(attribute, value, phrase) of everything but the concept that is said with one of its `LOOK_ALIKE_WORDS`."""
    words = set(LOOK_ALIKE_WORDS[task.name])
    return [
        (attribute, value, phrase)
        for attribute, values in LEXICON.items()
        for value, phrases in values.items()
        if task.forget.get(attribute) != value
        for phrase in phrases
        if words & set(re.findall(r"[a-z]+", phrase.text))
    ]


def _look_alikes(task: Task, count: int) -> PromptSet:
    """Scenes without the concept, one attribute said in words that the concept's phrases use, too; the rest in plain words."""
    rng = random.Random(f"look-alikes/{task.name}")
    phrases = look_alike_phrases(task)

    def sample() -> Prompt:
        while True:
            attribute, value, phrase = rng.choice(phrases)
            scene = _scene(rng, task, {attribute: value})
            mentioned = {a for a in JUDGED if a in _ALWAYS_SAID or scene.value(a) != OFTEN_UNSAID.get(a)}
            chosen = choose_phrases(scene, rng, part="test", levels=dict.fromkeys(mentioned, "canonical")) | {
                attribute: phrase
            }
            text = sentence(chosen, rng)
            if len(text) <= MAX_CHARACTERS:
                return Prompt(text, scene, frozenset(chosen) | set(OFTEN_UNSAID), "look-alike", chosen)

    return _set("look-alikes", _distinct(sample, count, "look-alike"), task)
