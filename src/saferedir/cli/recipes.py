"""Settings and prompts that PictoWorld's models have for training, behind `saferedir train duo`, `uce` and `esd`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saferedir.cli.common import named_values

if TYPE_CHECKING:
    from saferedir.training.saferedir.dataset import Pair

WORLD, WORLD2 = "pictoworld", "pictoworld-flux"


def recipe_settings(
    method: str,
    model: str,
    concept: str,
    given: Mapping[str, Any],
    call: Sequence[str] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Fields of a method's TrainConfig: what was given (not None), over what the recipe of a packaged model has.

    `call`: the command's --call. `facts`: what only DUO's recipes ask, `with_prompts`.
    """
    settings = {name: value for name, value in given.items() if value is not None}
    if call:
        settings["call"] = named_values(list(call), "--call")
    if model == WORLD:
        from saferedir.pictoworld import duo_recipe, edit_recipe

        if method == "duo":
            return duo_recipe.train_settings(concept, **facts, **settings)
        return (edit_recipe.uce_settings if method == "uce" else edit_recipe.esd_settings)(concept, **settings)
    if model == WORLD2:
        from saferedir.pictoworld.world2 import edit_recipe as recipe

        if method == "duo":
            return recipe.duo_settings(concept, **facts, **settings)
        return (recipe.uce_settings if method == "uce" else recipe.esd_settings)(concept, **settings)
    return settings


def world_rows(model: str, concept: str, count: int, seed: int) -> list[Pair]:
    """Prompts of a task of that model's world, "star" or "star-2"; none where it has no such task."""
    if model == WORLD:
        from saferedir.pictoworld.edit_recipe import edit_rows
        from saferedir.pictoworld.tasks import TASKS

        return edit_rows(TASKS[concept], count, seed=seed) if concept in TASKS else []
    if model == WORLD2:
        from saferedir.pictoworld.world2.edit_recipe import edit_rows as world2_rows
        from saferedir.pictoworld.world2.tasks import TASKS as WORLD2_TASKS
        from saferedir.pictoworld.world2.tasks import task_names

        return world2_rows(WORLD2_TASKS[concept], count, seed=seed) if concept in task_names("flux") else []
    return []
