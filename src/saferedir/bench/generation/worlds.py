"""The built-in worlds: the only file of the bench that knows them.

A world brings prompts of its concepts ("pictoworld/star", "world2/star-2") and recipes for guards made without training
("pictoworld/sld-max").
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from saferedir.errors import BenchError
from saferedir.guards.base import Guard
from saferedir.prompts.sets import ConceptPrompts
from saferedir.utils.names import unknown_name_message


@dataclass(frozen=True)
class World:
    """What a world brings.

    Attributes:
        title: its name in sentences.
        tasks: names of its concepts that have prompts.
        recipes: names of its guards made without training.
        prompts: (concept, limits by kind) -> prompts.
        guards: (recipe, concept, pipeline) -> guards, or None where the recipe has nothing for the concept.
        labelled: (concept, n) -> n images that show the concept and n that do not, (2n, 3, H, W), and their labels.
    """

    title: str
    tasks: Collection[str]
    recipes: Collection[str]
    prompts: Callable[[str, Mapping[str, int | None]], ConceptPrompts]
    guards: Callable[[str, str, Any], list[Guard[Any]] | None]
    labelled: Callable[[str, int], tuple[Tensor, list[bool]]]


def _pictoworld() -> World:
    from saferedir.pictoworld.labelled import labelled_scenes
    from saferedir.pictoworld.methods import CONTROLS, METHODS, make_guards
    from saferedir.pictoworld.prompt_sets import concept_prompts
    from saferedir.pictoworld.tasks import TASKS

    return World(
        title="PictoWorld",
        tasks=TASKS,
        recipes=[*METHODS, *CONTROLS],
        prompts=concept_prompts,
        guards=lambda recipe, task, pipe: make_guards(recipe, TASKS[task], pipe),
        labelled=lambda task, n: labelled_scenes(TASKS[task], n),
    )


def _world2() -> World:
    from saferedir.pictoworld.world2.labelled import labelled_contents
    from saferedir.pictoworld.world2.methods import METHODS, STACKS, make_guards
    from saferedir.pictoworld.world2.prompt_sets import concept_prompts
    from saferedir.pictoworld.world2.tasks import TASKS, task_names

    return World(
        title="PictoWorld 2",
        tasks=task_names("flux"),
        recipes=[*METHODS, *STACKS],
        prompts=concept_prompts,
        guards=lambda recipe, task, pipe: make_guards(recipe, TASKS[task], pipe),
        labelled=lambda task, n: labelled_contents(TASKS[task], n),
    )


WORLDS: Mapping[str, Callable[[], World]] = {"pictoworld": _pictoworld, "world2": _world2}


def _split(kind: str, name: str) -> tuple[World, str]:
    world, _, rest = name.partition("/")
    if world not in WORLDS or not rest:
        raise BenchError(unknown_name_message(kind, name, [f"{known}/…" for known in WORLDS]))
    return WORLDS[world](), rest


def _concept(name: str) -> tuple[World, str]:
    world, task = _split("built-in concept", name)
    if task not in world.tasks:
        raise BenchError(unknown_name_message(f"concept of {world.title}", task, world.tasks))
    return world, task


def world_prompts(name: str, limits: Mapping[str, int | None]) -> ConceptPrompts:
    """Prompts of "pictoworld/star"; `limits`: kind -> at most so many."""
    world, task = _concept(name)
    return world.prompts(task, limits)


def check_recipe(name: str) -> None:
    """One sentence for a recipe nobody knows."""
    world, recipe = _split("recipe", name)
    if recipe not in world.recipes:
        raise BenchError(unknown_name_message(f"recipe of {world.title}", recipe, world.recipes))


def world_guards(recipe: str, concept: str, pipe: Any) -> list[Guard[Any]]:
    """Guards of a recipe for "pictoworld/star"; those that carry data come from the package where it has them.

    Raises:
        BenchError: the recipe and the concept are of two worlds, or the recipe has nothing for this concept.
    """
    check_recipe(recipe)
    world, task = _concept(concept)
    name = _split("recipe", recipe)[1]
    if recipe.partition("/")[0] != concept.partition("/")[0]:
        raise BenchError(f"recipe {recipe!r} is of another world than the concept {concept!r}.")
    guards = world.guards(name, task, pipe)
    if guards is None:
        raise BenchError(
            f"recipe {recipe!r} has nothing for the concept {concept!r}; name those it serves in the guard's `concepts`."
        )
    return guards


def world_concept(protocol: str) -> str | None:
    """The built-in concept, such as "pictoworld/star", that prompts of this protocol are about; None for the user's own."""
    world, _, rest = protocol.partition("/")
    return f"{world}/{rest.partition('/')[0]}" if world in WORLDS else None


def labelled_images(concept: str, n: int) -> tuple[Tensor, list[bool], str]:
    """n images that show a built-in concept and n that do not, (2n, 3, H, W), their labels, and what they are in words."""
    world, task = _concept(concept)
    try:
        images, labels = world.labelled(task, n)
    except FileNotFoundError as error:
        raise BenchError(str(error)) from error
    return images, labels, "rendered scenes, through the model's own autoencoder"
