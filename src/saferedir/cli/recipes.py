"""Settings and prompts that PictoWorld's models have for training, behind `saferedir train duo`, `uce` and `esd`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saferedir.cli.common import named_values

if TYPE_CHECKING:
    from saferedir.pictoworld.recipes import WorldRecipe
    from saferedir.training.saferedir.dataset import Pair

#: the model that commands train on unless another is given
WORLD = "pictoworld"


def recipe_of(model: str) -> WorldRecipe | None:
    """The recipes of a packaged model; None for any other."""
    from saferedir.pictoworld.recipes import RECIPES

    return RECIPES.get(model)


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
    recipe = recipe_of(model)
    return settings if recipe is None else recipe.settings[method](concept, **facts, **settings)


def world_rows(model: str, concept: str, count: int, seed: int) -> list[Pair]:
    """Prompts of a task of that model's world, "star" or "star-2"; none where it has no such task."""
    recipe = recipe_of(model)
    return [] if recipe is None or concept not in recipe.tasks else recipe.rows(recipe.tasks[concept], count, seed=seed)
