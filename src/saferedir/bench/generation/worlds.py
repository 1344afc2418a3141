"""The built-in worlds: the only file of the bench that knows one.

A world brings prompts of its concepts ("pictoworld/star") and recipes for guards made without training ("pictoworld/sld-max").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from saferedir.errors import BenchError
from saferedir.guards.base import Guard
from saferedir.prompts.sets import ConceptPrompts
from saferedir.utils.names import unknown_name_message

WORLDS = ("pictoworld",)


def _split(kind: str, name: str) -> str:
    world, _, rest = name.partition("/")
    if world not in WORLDS or not rest:
        raise BenchError(unknown_name_message(kind, name, [f"{known}/…" for known in WORLDS]))
    return rest


def world_prompts(name: str, limits: Mapping[str, int | None]) -> ConceptPrompts:
    """Prompts of "pictoworld/star"; `limits`: kind -> at most so many."""
    from saferedir.pictoworld.prompt_sets import concept_prompts
    from saferedir.pictoworld.tasks import TASKS

    task = _split("built-in concept", name)
    if task not in TASKS:
        raise BenchError(unknown_name_message("concept of PictoWorld", task, TASKS))
    return concept_prompts(task, limits)


def check_recipe(name: str) -> None:
    """One sentence for a recipe nobody knows."""
    from saferedir.pictoworld.methods import CONTROLS, METHODS

    recipe = _split("recipe", name)
    known = {**METHODS, **CONTROLS}
    if recipe not in known:
        raise BenchError(unknown_name_message("recipe of PictoWorld", recipe, known))


def world_guards(recipe: str, concept: str, pipe: Any) -> list[Guard[Any]]:
    """Guards of a recipe for "pictoworld/star"; those that carry data come from the package where it has them."""
    from saferedir.pictoworld.methods import make_guards
    from saferedir.pictoworld.tasks import TASKS

    check_recipe(recipe)
    return make_guards(_split("recipe", recipe), TASKS[_split("built-in concept", concept)], pipe) or []


def world_concept(protocol: str) -> str | None:
    """The built-in concept, such as "pictoworld/star", that prompts of this protocol are about; None for the user's own."""
    world, _, rest = protocol.partition("/")
    return f"{world}/{rest.partition('/')[0]}" if world in WORLDS else None


def labelled_images(concept: str, n: int) -> tuple[Tensor, list[bool], str]:
    """n images that show a built-in concept and n that do not, (2n, 3, H, W), their labels, and what they are in words."""
    from saferedir.pictoworld.labelled import labelled_scenes
    from saferedir.pictoworld.tasks import TASKS

    images, labels = labelled_scenes(TASKS[_split("built-in concept", concept)], n)
    return images, labels, "rendered scenes, through the model's own autoencoder"
