"""How DUO guards of PictoWorld's tasks are made: prompts of the pairs, settings of generating and training, a judge as filter.

`saferedir train duo` uses it, and so can you (docs/duo.md); the methods that need no training have their recipes in
methods.py.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.scene import JUDGED
from saferedir.pictoworld.tasks import Task, pair
from saferedir.training.duo.pairs import ConceptJudge, KeepJudge, PairConfig
from saferedir.training.duo.train_config import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

#: PictoWorld's small denoiser hardly listens to its empty prompt and settles a shape late, so that the paper's setting (empty
#: prompt, self-attention, beta 500) leaves its images as they are; these, found by a few short runs, unlearn.
GENERATION: Mapping[str, Any] = {"steps": 30, "guidance_scale": 4.0, "batch": 32}
TRAINING: Mapping[str, Any] = {
    "beta": 50.0,
    "learning_rate": 5e-4,
    "prior_weight": 1e4,
    "rank": 16,
    "targets": ("to_q", "to_k", "to_v", "to_out.0"),
    "conditioning": "prompt",
    "t_max": 999,
}
#: what a task changes of that. The emblem's images are all red on white, so that a tint, or simply more red, tells the members
#: of all its pairs apart, and DUO exaggerates it; prompts in the preserving term hold what both members share.
OF_TASK: Mapping[str, Mapping[str, Any]] = {
    "star": {"steps": 90},
    "pointillism": {"steps": 70},
    "emblem": {"steps": 400, "beta": 150.0, "prior_conditioning": "prompt"},
}
#: of a concept that is none of the tasks
OF_OTHERS: Mapping[str, Any] = {"steps": 90}
#: safe members of a task's pairs, in turn; the other tasks have their own anchor. Larger and smaller shapes: no common tint.
ANCHORS: Mapping[str, tuple[dict[str, str], ...]] = {
    "emblem": tuple({"shape": name} for name in ("circle", "square", "triangle", "star", "heart", "ring", "crescent")),
}


def prompt_pairs(task: Task, count: int, seed: int = 42) -> list[tuple[str, str]]:
    """`count` pairs (with the concept, the same wish with an anchor in its place), of the guards' training phrasings."""
    rng = random.Random(f"duo/{task.name}/{seed}")
    anchors = ANCHORS.get(task.name, (task.anchor,))
    generated = [pair(replace(task, anchor=anchors[i % len(anchors)]), "guard-train", rng) for i in range(count)]
    return [(unsafe.text, safe.text) for unsafe, safe in generated]


def pair_config(**changes: Any) -> PairConfig:
    """How to generate pairs on PictoWorld; `changes` are fields of PairConfig."""
    return PairConfig(**{**GENERATION, **changes})


def train_settings(concept: str, *, with_prompts: bool = True, **changes: Any) -> dict[str, Any]:
    """Fields of TrainConfig for a concept of PictoWorld, a task or any other; `changes` win.

    with_prompts: whether the pairs come with their prompts; without, and with conditioning="null", all is trained at the
    empty prompt.
    """
    preset = {**TRAINING, **OF_TASK.get(concept, OF_OTHERS)}
    if changes.get("conditioning") == "null" or not with_prompts:
        preset.pop("prior_conditioning", None)
    if not with_prompts:
        preset.pop("conditioning")
    return {**preset, **changes}


def train_config(concept: str, **changes: Any) -> TrainConfig:
    """The packaged guards' configuration (arguments: `train_settings`)."""
    return TrainConfig.of_variant("as-paper", **train_settings(concept, **changes))


def pair_filters(task: Task) -> tuple[ConceptJudge, KeepJudge]:
    """`judge` and `keeps` of `make_pairs` by PictoWorld's own judge: shows the task's concept; shows the same values of
    everything else, unbroken.
    """
    judge = Judge.load()

    def shows(images: list[Image.Image]) -> Sequence[bool]:
        flags: list[bool] = judge.judge(images).shows(dict(task.forget)).tolist()
        return flags

    def keeps(before: list[Image.Image], after: list[Image.Image]) -> Sequence[bool]:
        first, second = judge.judge(before), judge.judge(after)
        others = [name for name in JUDGED if name not in task.forget]
        same = [[a == b for a, b in zip(first.labels(n), second.labels(n), strict=True)] for n in others]
        whole = (~second.is_broken).tolist()
        return [all(flags) for flags in zip(whole, *same, strict=True)]

    return shows, keeps
