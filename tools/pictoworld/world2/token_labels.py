"""What each image token shows, and the term that has the transformer say so while it learns.

Aligning an inner layer with what the clean image shows, patch by patch, speeds up the training of diffusion transformers
(REPA, arXiv:2410.06940). There the target is a pretrained encoder's feature; in this world the content of every patch is known.
The classifiers exist in training only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from saferedir.pictoworld.scene import BACKGROUNDS, COLOURS, STYLES
from saferedir.pictoworld.world2.judge import KINDS
from saferedir.pictoworld.world2.posters import Figure, Poster
from saferedir.pictoworld.world2.scene import Item, Scene

PATCH = 8  # pixels of a token's side
SIDE = 8  # tokens in a row
NOTHING = "nothing"  # the token shows the background, or a character, whose colours are its own
#: what a token shows -> its values
LABELS: Mapping[str, tuple[str, ...]] = {
    "kind": (*KINDS, NOTHING),
    "colour": (*COLOURS, NOTHING),
    "style": (*STYLES, NOTHING),
    "background": BACKGROUNDS,
}
_CENTRES = PATCH * (np.arange(SIDE) + 0.5)


def _values(thing: Item | Figure) -> tuple[str, str, str]:
    if isinstance(thing, Item) and thing.is_character:
        return thing.character, NOTHING, NOTHING
    return thing.shape, thing.colour, thing.style


def token_labels(contents: Sequence[Scene | Poster]) -> Tensor:
    """Class indices (B, 64, 4), in the order of `LABELS`; a thing covers the tokens whose centre lies in its square."""
    names = list(LABELS)
    out = np.empty((len(contents), SIDE, SIDE, len(names)), dtype=np.int64)
    for row, content in enumerate(contents):
        out[row, ..., :3] = [LABELS[name].index(NOTHING) for name in names[:3]]
        out[row, ..., 3] = BACKGROUNDS.index(content.background)
        for thing in content.figures if isinstance(content, Poster) else content.items:
            inside = (np.abs(_CENTRES - thing.cy) < thing.radius)[:, None] & (
                np.abs(_CENTRES - thing.cx) < thing.radius
            )
            indices = [LABELS[name].index(value) for name, value in zip(names[:3], _values(thing), strict=True)]
            out[row, inside, :3] = indices
    return torch.from_numpy(out).flatten(1, 2)


class TokenReader(nn.Module):
    """A transformer that also returns linear classifiers' logits of its image tokens after the last joint block."""

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer
        width = int(transformer.config.num_attention_heads * transformer.config.attention_head_dim)
        self.classify = nn.Linear(width, sum(len(values) for values in LABELS.values()))
        self._tokens: list[Tensor] = []
        self._hook = transformer.transformer_blocks[-1].register_forward_hook(
            lambda block, inputs, outputs: self._tokens.append(outputs[1])
        )

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The transformer's inputs -> (velocity (B, 64, C), logits (B, 64, classes))."""
        self._tokens.clear()
        velocity = self.transformer(**inputs, return_dict=False)[0]
        return velocity, self.classify(self._tokens.pop())

    def released(self) -> FluxTransformer2DModel:
        """The transformer by itself, no longer read."""
        self._hook.remove()
        return self.transformer


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, 64, classes) to labels (B, 64, 4), summed over the four kinds of label."""
    parts = logits.float().split([len(values) for values in LABELS.values()], dim=-1)
    losses = [cross_entropy(part.flatten(0, 1), labels[..., i].flatten()) for i, part in enumerate(parts)]
    return torch.stack(losses).sum()
