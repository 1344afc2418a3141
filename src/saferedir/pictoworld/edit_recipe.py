"""How UCE and ESD guards of PictoWorld's tasks are made: their prompts, and the settings found on the validation phrasings.

`saferedir train uce` and `train esd` use it, and so can you (docs/methods/uce.md, docs/methods/esd.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saferedir.pictoworld.duo_recipe import prompt_pairs
from saferedir.pictoworld.tasks import Task, retain_prompts
from saferedir.training.saferedir.dataset import Pair

#: prompts with the concept, each with its counterpart, and prompts to preserve
PAIRS, PRESERVED = 400, 400
#: what a task changes of UCE's defaults: a conjunction needs more votes against the words that other prompts share with it
UCE_OF_TASK: Mapping[str, Mapping[str, Any]] = {"emblem": {"erase_scale": 5.0}}
#: of ESD, all tasks: the model is small and hardly listens to its empty prompt, so each prompt is turned about its counterpart
ESD_TRAINING: Mapping[str, Any] = {
    "reference": "safe",
    "sampling_steps": 10,
    "batch": 4,
    "moments": 2,
    "eta": 0.3,
    "steps": 80,
    "learning_rate": 5e-4,
}
#: what a task changes of that
ESD_OF_TASK: Mapping[str, Mapping[str, Any]] = {}


def edit_rows(task: Task, pairs: int = PAIRS, preserved: int = PRESERVED, seed: int = 42) -> list[Pair]:
    """Prompts of the guards' training phrasings: pairs as for DUO, then prompts to preserve, half of them neighbours."""
    rows = [Pair(unsafe, safe) for unsafe, safe in prompt_pairs(task, pairs, seed) if unsafe != safe]
    return rows + [Pair(None, prompt.text) for prompt in retain_prompts(task, "guard-train", preserved, seed)]


def uce_settings(concept: str, **changes: Any) -> dict[str, Any]:
    """Fields of UCE's TrainConfig for a concept of PictoWorld, a task or any other; `changes` win."""
    return {**UCE_OF_TASK.get(concept, {}), **changes}


def esd_settings(concept: str, **changes: Any) -> dict[str, Any]:
    """Fields of ESD's TrainConfig for a concept of PictoWorld, a task or any other; `changes` win."""
    return {**ESD_TRAINING, **ESD_OF_TASK.get(concept, {}), **changes}
