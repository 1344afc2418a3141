"""The judge of PictoWorld 2: a small CNN that reads one or two items of an image, their relation and the background.

Places are in reading order: the first is the left or upper one, or the only one. Training: tools/pictoworld/world2/judge.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saferedir.pictoworld.judge import to_tensor
from saferedir.pictoworld.judge_network import JudgeNetwork
from saferedir.pictoworld.scene import BACKGROUNDS, COLOURS, SHAPES, STYLES
from saferedir.pictoworld.world2.characters import CHARACTERS
from saferedir.pictoworld.world2.judgement import Judgement
from saferedir.pictoworld.world2.scene import Item, Scene

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
LAYOUTS = ("one", "beside", "over", "poster")
RELATION_OF_LAYOUT = {"one": "", "beside": "left of", "over": "above"}
KINDS = (*SHAPES, *CHARACTERS)
PLACES = ("first", "second")
_OF_PLACE: Mapping[str, tuple[str, ...]] = {"kind": KINDS, "colour": COLOURS, "style": STYLES}
#: head -> its classes; "broken" is a head of one logit
HEADS: Mapping[str, tuple[str, ...]] = {
    "layout": LAYOUTS,
    "background": BACKGROUNDS,
    **{f"{slot}_{name}": values for slot in PLACES for name, values in _OF_PLACE.items()},
}


def head_values(scene: Scene) -> dict[str, str]:
    """Head -> value of a scene; heads without a right answer (the style of a character, the second of one) are left out."""
    scene = scene.in_reading_order()
    layout = next(name for name, relation in RELATION_OF_LAYOUT.items() if relation == scene.relation)
    values = {"layout": layout, "background": scene.background}
    for slot, item in zip(PLACES, scene.items, strict=False):
        values[f"{slot}_kind"] = item.character or item.shape
        if not item.is_character:
            values |= {f"{slot}_colour": item.colour, f"{slot}_style": item.style}
    return values


def scene_of(values: Mapping[str, str]) -> Scene | None:
    """The scene, in reading order, that a full set of head values describes; None for a poster."""
    if values["layout"] == "poster":
        return None
    items = []
    for slot in PLACES[: 1 if values["layout"] == "one" else 2]:
        kind = values[f"{slot}_kind"]
        is_character = kind in CHARACTERS
        items.append(
            Item(character=kind) if is_character else Item(kind, values[f"{slot}_colour"], values[f"{slot}_style"])
        )
    return Scene(values["background"], tuple(items), RELATION_OF_LAYOUT[values["layout"]])


class Judge(JudgeNetwork):
    """Convolutional network, (B, 3, 64, 64) in [0, 1] to one logit row per head and a broken logit."""

    def __init__(self, width: int = 32, hidden: int = 256) -> None:
        super().__init__({name: len(values) for name, values in HEADS.items()}, width, hidden)

    @torch.no_grad()
    def judge(self, images: Sequence[Image.Image] | Tensor | np.ndarray, batch: int = 128) -> Judgement:
        """Judge images given as PIL images, an array or a tensor (see `saferedir.pictoworld.judge.to_tensor`)."""
        outputs = [self(chunk) for chunk in to_tensor(images).split(batch)]
        labels = {name: torch.cat([logits[name] for logits, _ in outputs]).argmax(dim=1).tolist() for name in HEADS}
        broken = torch.cat([logit for _, logit in outputs]).sigmoid()
        scenes = tuple(scene_of({name: HEADS[name][labels[name][row]] for name in HEADS}) for row in range(len(broken)))
        return Judgement(scenes, broken)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The packaged judge, or one trained elsewhere."""
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no judge of PictoWorld 2 in {path.name}, and none is packaged yet; train one "
                "(`python -m tools.pictoworld world2 judge`) and give its file, or take the template judge."
            )
        return cls().with_weights(path)
