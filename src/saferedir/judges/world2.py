"""PictoWorld 2's two judges behind the common contract: the CNN, and the template search that confirms it.

Both read places in reading order and compare with the stored posters. The networks themselves: pictoworld/world2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge
from saferedir.judges.images import file_checksum
from saferedir.judges.rules import AllOf, AnyAbove, AnyOf, InTop, Rule, Unless
from saferedir.pictoworld.judge import to_tensor
from saferedir.pictoworld.scene import SHAPES
from saferedir.pictoworld.world2 import judge as network
from saferedir.pictoworld.world2.judge import HEADS, PLACES, head_values
from saferedir.pictoworld.world2.judgement import Judgement
from saferedir.pictoworld.world2.poster_judge import PosterJudge, threshold
from saferedir.pictoworld.world2.prompt_sets import poster_labels
from saferedir.pictoworld.world2.tasks import Task
from saferedir.pictoworld.world2.template_judge import TemplateJudge
from saferedir.utils.packaged import library_version

NO_POSTER = "none"
POSTER_LABELS = (*poster_labels(), NO_POSTER)
LABELS = (
    *(f"{head}:{value}" for head, values in HEADS.items() for value in values),
    *(f"poster:{label}" for label in POSTER_LABELS),
    "broken",
)
BROKEN = AnyAbove(("broken",), 0.5)
_PAIR = AnyOf((InTop("layout", "beside"), InTop("layout", "over")))
_SCENE = AnyOf((InTop("layout", "one"), _PAIR))  # no poster


def task_rule(task: Task) -> Rule:
    """Whether an image shows a task's concept in either place and is not broken; a poster must be given back.

    The same decision as `world2.evaluation.shows_concept` without broken images.
    """
    if task.poster:
        return InTop("poster", task.poster)
    first, second = (AnyOf(tuple(_item_rule(slot, values) for values in task.forget)) for slot in PLACES)
    return Unless(AnyOf((AllOf((_SCENE, first)), AllOf((_PAIR, second)))), BROKEN)


def _item_rule(slot: str, values: Mapping[str, str]) -> Rule:
    """The item in a place has all of the values ("background" is the scene's)."""
    rules: list[Rule] = []
    for attribute, value in values.items():
        if attribute == "background":
            rules.append(InTop("background", value))
        elif attribute in ("shape", "character"):
            rules.append(InTop(f"{slot}_kind", value))
        else:
            rules.append(InTop(f"{slot}_{attribute}", value))
    if not {"shape", "character"} & values.keys():  # a character has neither colour nor style
        rules.append(AnyOf(tuple(InTop(f"{slot}_kind", shape) for shape in SHAPES)))
    return AllOf(tuple(rules))


def _poster_columns(images: Tensor) -> Tensor:
    """(B, posters and variants, and none) 1 where the image gives that one back."""
    out = torch.zeros(len(images), len(POSTER_LABELS))
    for row, (title, variant, distance) in enumerate(PosterJudge().nearest(images)):
        label = f"{title}/{variant}" if variant else title
        out[row, POSTER_LABELS.index(label if distance <= threshold(title) else NO_POSTER)] = 1
    return out


def _columns_of(judgement: Judgement) -> Tensor:
    """(B, heads' values): 1 for what each scene shows; an image without a scene has the layout of a poster."""
    rows = []
    for scene in judgement.scenes:
        values = {"layout": "poster"} if scene is None else head_values(scene)
        rows.append([float(values.get(head) == value) for head, known in HEADS.items() for value in known])
    return torch.tensor(rows).view(len(rows), -1)


class World2Judge(Judge):
    """The packaged CNN of PictoWorld 2, or one trained elsewhere (`weights`, a safetensors file).

    Scores: probabilities that sum to 1 over the values of a group, 1 for the poster that an image gives back, and the
    probability that nothing clear is shown. Images of another size than 64x64 are resized by area.
    """

    name = "world2"
    labels = LABELS

    def __init__(self, *, weights: str | Path = network.WEIGHTS) -> None:
        self.weights = Path(weights)
        if not self.weights.is_file():
            raise JudgeError(
                f"there is no weights file {self.weights.name} for the judge of PictoWorld 2; give one as `weights`."
            )
        self.network = network.Judge.load(self.weights)

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        pixels = to_tensor(images.cpu())
        logits, broken = self.network(pixels)
        heads = [logits[name].softmax(dim=1) for name in HEADS]
        return torch.cat([*heads, _poster_columns(pixels), broken.sigmoid()[:, None]], dim=1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, 256) description before the CNN's heads."""
        return self.network.features(to_tensor(self.check(images).cpu()))

    def facts(self) -> dict[str, Any]:
        return {**_FACTS, "id": self.name, "weights": file_checksum(self.weights), "version": library_version()}


class World2TemplateJudge(Judge):
    """Analysis by synthesis: the renders that explain the image best; all scores are 0 or 1. Tenths of a second an image."""

    name = "world2-template"
    labels = LABELS

    def __init__(self) -> None:
        self.templates = TemplateJudge()

    def score(self, images: Tensor) -> Tensor:
        pixels = to_tensor(images.cpu())
        judgement, posters = self.templates.judge(pixels), _poster_columns(pixels)
        is_poster = posters[:, -1] == 0
        broken = judgement.broken.masked_fill(is_poster, 0.0)  # a poster is no scene, and yet clear
        return torch.cat([_columns_of(judgement), posters, broken[:, None]], dim=1)

    def facts(self) -> dict[str, Any]:
        return {**_FACTS, "id": self.name, "weights": "none", "version": library_version()}


_FACTS: Mapping[str, Any] = {"channels": "RGB", "resize": "area to 64x64", "floor": 0.0}


def world2_rules(tasks: Sequence[Task]) -> dict[str, Rule]:
    """Task name -> rule."""
    return {task.name: task_rule(task) for task in tasks}
