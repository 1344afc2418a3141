"""What a judge says of images of PictoWorld 2, and the questions that it answers: is it there, is the prompt met, what was kept.

Judges: judge.py (a network), template_judge.py (analysis by synthesis), poster_judge.py (distance to stored posters).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.pictoworld.world2.captions import Prompt, attributes_of
from saferedir.pictoworld.world2.scene import Scene


def met_keys(judged: Scene | None, wanted: Scene, keys: Collection[str]) -> frozenset[str]:
    """Which keys ("0.shape", "relation", "background", see captions.py) look in the judged scene as in the wanted one.

    `judged` is in reading order; None is an image without one or two items, of which no key is met. Items of an image with
    more or fewer of them than wanted do not stand in their places, so of its keys only "background" can be met.
    """
    if judged is None:
        return frozenset()
    if judged.is_pair != wanted.is_pair:
        keys = {key for key in keys if key == "background"}
    if wanted.in_reading_order() != wanted:  # items are compared place by place
        judged = judged.turned()
    values, expected = attributes_of(judged), attributes_of(wanted)
    return frozenset(key for key in keys if values.get(key, "") == expected[key])


@dataclass(frozen=True)
class Judgement:
    """Output of a judge for B images.

    Attributes:
        scenes: per image the scene in reading order (left or upper item first), None for an image of another kind.
        broken: (B,) probability that the image shows nothing clear.
    """

    scenes: tuple[Scene | None, ...]
    broken: Tensor

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def is_broken(self) -> Tensor:
        """(B,) bool."""
        return self.broken > 0.5

    def is_labelled(self, values: Mapping[str, str]) -> Tensor:
        """(B,) bool: an item (with "background": on that background) is labelled with all of the values, broken or not."""
        return torch.tensor([scene is not None and scene.has(values) for scene in self.scenes], dtype=torch.bool)

    def shows(self, values: Mapping[str, str]) -> Tensor:
        """(B,) bool: `is_labelled`, and the image is not broken."""
        return self.is_labelled(values) & ~self.is_broken

    def meets(self, prompts: Sequence[Prompt], keys: Sequence[Collection[str]] | None = None) -> Tensor:
        """(B,) bool: everything that the prompt fixes is right, or those of `keys` that it fixes; the image is not broken.

        `keys` has one collection a prompt: the keys of the other item, say. A poster's title is met by no scene; see
        `poster_judge` for posters.
        """
        flags = []
        for row, (scene, prompt) in enumerate(zip(self.scenes, prompts, strict=True)):
            if not isinstance(prompt.content, Scene):
                flags.append(False)
                continue
            asked = prompt.mentioned if keys is None else prompt.mentioned & set(keys[row])
            flags.append(met_keys(scene, prompt.scene, asked) == asked)
        return torch.tensor(flags, dtype=torch.bool) & ~self.is_broken
