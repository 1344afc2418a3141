"""What training knows of each packaged model: its tasks, their prompts, and settings by method, in one table by the model's name.

`saferedir train duo`, `uce` and `esd` read it, and so do the makers of packaged guards. The recipes themselves: duo_recipe.py,
edit_recipe.py and world2/edit_recipe.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saferedir.guards.weights import WeightGuard
from saferedir.pictoworld import duo_recipe, edit_recipe
from saferedir.pictoworld.tasks import TASKS
from saferedir.pictoworld.world2 import edit_recipe as world2_recipe
from saferedir.pictoworld.world2.tasks import TASKS as WORLD2_TASKS
from saferedir.pictoworld.world2.tasks import task_names
from saferedir.training.duo.pairs import ConceptJudge, KeepJudge, PairConfig
from saferedir.training.esd.train import train_esd
from saferedir.training.esd.train_config import TrainConfig as ESDTrainConfig
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.uce.train import TrainConfig as UCETrainConfig
from saferedir.training.uce.train import train_uce
from saferedir.utils.progress import SILENT, Progress


class GeneratedPairs(NamedTuple):
    """What DUO's image pairs of a task are generated from, and what keeps the good ones.

    Attributes:
        prompts: (task, count, seed) -> texts with the concept and without.
        filters: task -> `judge` and `keeps` of `make_pairs`.
    """

    prompts: Callable[..., list[tuple[str, str]]]
    filters: Callable[..., tuple[ConceptJudge, KeepJudge]]


@dataclass(frozen=True)
class WorldRecipe:
    """What one packaged model has for training.

    Attributes:
        tasks: those that a prompt can ask for, by name.
        rows: (task, pairs=, seed=) -> prompts of the guards' training phrasings, pairs first.
        settings: method -> (concept, **changes) -> fields of its TrainConfig; "duo" takes `with_prompts`, too.
        pair_config: (**changes) -> how the model generates image pairs for DUO.
        generated_pairs: what it generates them from; None where pairs are rendered.
    """

    tasks: Mapping[str, Any]
    rows: Callable[..., list[Pair]]
    settings: Mapping[str, Callable[..., dict[str, Any]]]
    pair_config: Callable[..., PairConfig]
    generated_pairs: GeneratedPairs | None = None


RECIPES: Mapping[str, WorldRecipe] = {
    "pictoworld": WorldRecipe(
        tasks=TASKS,
        rows=edit_recipe.edit_rows,
        settings={
            "duo": duo_recipe.train_settings,
            "uce": edit_recipe.uce_settings,
            "esd": edit_recipe.esd_settings,
        },
        pair_config=duo_recipe.pair_config,
        generated_pairs=GeneratedPairs(duo_recipe.prompt_pairs, duo_recipe.pair_filters),
    ),
    "pictoworld-flux": WorldRecipe(
        tasks={name: WORLD2_TASKS[name] for name in task_names("flux")},
        rows=world2_recipe.edit_rows,
        settings={
            "duo": world2_recipe.duo_settings,
            "uce": world2_recipe.uce_settings,
            "esd": world2_recipe.esd_settings,
        },
        pair_config=world2_recipe.pair_config,
    ),
}
_TRAINERS: Mapping[str, tuple[Callable[..., WeightGuard[Any]], type[Any]]] = {
    "uce": (train_uce, UCETrainConfig),
    "esd": (train_esd, ESDTrainConfig),
}


def train_edit(
    method: str,
    pipe: Any,
    task: Any,
    out: Path,
    *,
    model: str = "pictoworld",
    progress: Progress = SILENT,
    **changes: Any,
) -> WeightGuard[Any]:
    """Train a UCE or ESD guard of a task by the recipe of the packaged model it belongs to; `changes` are of its TrainConfig."""
    train, config = _TRAINERS[method]
    settings = RECIPES[model].settings[method](task.name, **changes)
    return train(pipe, RECIPES[model].rows(task), out, concept=task.name, config=config(**settings), progress=progress)
