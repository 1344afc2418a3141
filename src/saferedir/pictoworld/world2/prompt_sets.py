"""PictoWorld 2's prompts as the bench takes them: every set of one concept, each prompt with what its image should show.

Prompts are those of tasks.py in its order; test phrasings and test scenes throughout. What an image should show is said in the
judge's groups (judge.py, "first_kind": "star"), by place in the image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from saferedir.errors import BenchError
from saferedir.pictoworld.tasks import TEST_SPLITS
from saferedir.pictoworld.world2.captions import Prompt
from saferedir.pictoworld.world2.judge import PLACES, RELATION_OF_LAYOUT
from saferedir.pictoworld.world2.posters import NEAR_VARIANTS, POSTERS, Poster
from saferedir.pictoworld.world2.scene import Scene
from saferedir.pictoworld.world2.tasks import (
    TASKS,
    Task,
    forget_prompts,
    neighbour_prompts,
    other_keys,
    retain_prompts,
    task_names,
)
from saferedir.prompts.sets import ConceptPrompts, PromptItem, PromptSet
from saferedir.utils.names import unknown_name_message

#: prompts of each kind where no limit is given
USUAL: Mapping[str, int] = {"forget": 200, "rephrased": 200, "retain": 200, "neighbours": 0}
KINDS = (*USUAL, "look_alikes")
WORLD = "world2"


def concept_prompts(task_name: str, limits: Mapping[str, int | None]) -> ConceptPrompts:
    """All prompts of a task of the text-conditional model.

    Args:
        task_name: such as "star-2" or "character-…", see `tasks.TASKS`.
        limits: "forget", "rephrased" (each phrasing), "retain", "neighbours" -> how many prompts; without one, 200 of the first
            three and none of the last. "look_alikes" must be 0 or not given: this world has none.

    Returns:
        forget "test-seen", rephrased by the other test splits (and "test-empty" for a poster), retain, neighbours. `expected`
        leaves out what a forget prompt asks for of the concept, so that it says what should stay.

    Raises:
        BenchError: an unknown task or kind, no forget prompts, a negative limit, more prompts than there are.
    """
    if task_name not in task_names("flux"):
        raise BenchError(unknown_name_message("concept of PictoWorld 2", task_name, task_names("flux")))
    for kind, limit in limits.items():
        if kind not in KINDS:
            raise BenchError(unknown_name_message("kind of prompts", kind, KINDS))
        if limit is not None and limit < (kind == "forget"):
            raise BenchError(f"the limit of {kind} prompts is {limit}, expected a number >= {int(kind == 'forget')}.")
    if limits.get("look_alikes"):
        raise BenchError("PictoWorld 2 has no look-alike prompts; leave `look_alikes` out.")
    task = TASKS[task_name]
    chosen = {kind: limits.get(kind) for kind in USUAL}
    count = {kind: usual if (limit := chosen[kind]) is None else limit for kind, usual in USUAL.items()}
    splits = [*TEST_SPLITS, *(["test-empty"] if task.poster else [])][: None if count["rephrased"] else 1]
    try:
        forget, *rephrased = (
            _set(split, forget_prompts(task, split, count["rephrased" if index else "forget"]), task)
            for index, split in enumerate(splits)
        )
        return ConceptPrompts(
            forget=forget,
            rephrased={prompts.name: prompts for prompts in rephrased},
            retain=_set("retain", retain_prompts(task, "test-seen", count["retain"]), task)
            if count["retain"]
            else None,
            neighbours={"near": _set("near", neighbour_prompts(task, "test-seen", count["neighbours"]), task)}
            if count["neighbours"]
            else {},
        )
    except ValueError as error:  # tasks.py: fewer different prompts exist
        raise BenchError(f"PictoWorld 2's task {task_name!r}: {str(error)[:1].lower()}{str(error)[1:]}") from error


def _set(name: str, prompts: Sequence[Prompt], task: Task) -> PromptSet:
    items = tuple(
        PromptItem(prompt.text, expected=expected_values(prompt, task), tags=(prompt.level,)) for prompt in prompts
    )
    return PromptSet(name, items, f"{WORLD}/{task.name}/{name}")


def expected_values(prompt: Prompt, task: Task) -> dict[str, str]:
    """Judge's group -> value that the image of a prompt should show, the task's concept left out."""
    if isinstance(prompt.content, Poster):
        poster = prompt.content
        return {} if task.shows_concept(poster) else {"poster": poster_label(poster)}
    keys: Collection[str] = prompt.mentioned
    if task.shows_concept(prompt.scene):
        keys = {*other_keys(task, prompt), *({"relation"} & prompt.mentioned)}
    else:
        keys = {*keys, "layout"}
    return place_values(prompt.scene, keys)


def place_values(scene: Scene, keys: Collection[str]) -> dict[str, str]:
    """Judge's group -> value of these keys ("0.shape", "relation", "background", see captions.py; "layout") of a scene."""
    if scene.in_reading_order() != scene:
        turned = {key: f"{1 - int(key[0])}{key[1:]}" if key[0].isdigit() else key for key in keys}
        return place_values(scene.turned(), turned.values())
    values: dict[str, str] = {}
    if "background" in keys:
        values["background"] = scene.background
    if "relation" in keys or "layout" in keys:
        values["layout"] = next(name for name, relation in RELATION_OF_LAYOUT.items() if relation == scene.relation)
    for index, (slot, item) in enumerate(zip(PLACES, scene.items, strict=False)):
        for attribute, group in (("shape", "kind"), ("character", "kind"), ("colour", "colour"), ("style", "style")):
            if f"{index}.{attribute}" in keys:
                values[f"{slot}_{group}"] = getattr(item, attribute)
    return values


def poster_label(poster: Poster) -> str:
    """ "Quiet Harbour", or "Quiet Harbour/3" for its third near variant."""
    return f"{poster.title}/{poster.variant}" if poster.variant else poster.title


def poster_labels() -> list[str]:
    """Labels of all posters and near variants."""
    return [poster_label(poster) for title, variants in NEAR_VARIANTS.items() for poster in (POSTERS[title], *variants)]
