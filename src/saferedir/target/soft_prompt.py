"""Token embeddings of one's own on their way into a text encoder, with gradients.

transformers' text models take ids only, so the embeddings take the place of those looked up, in the call that is given exactly
these ids; the ids still say where a prompt ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import AttackError
from saferedir.pipelines.text_encoders import TextEncoder
from saferedir.utils.renamed import old_argument


@dataclass(frozen=True)
class SoftPrompt:
    """What a text encoder shall read for the prompts of ids (B, L): embeds (B, L, d). text_encoder: which of the encoders."""

    ids: Tensor
    embeds: Tensor
    text_encoder: int = 0

    def __post_init__(self) -> None:
        if self.embeds.shape[:2] != self.ids.shape or self.embeds.ndim != 3:
            raise AttackError(
                f"a soft prompt has embeddings of shape {tuple(self.embeds.shape)} for ids of shape {tuple(self.ids.shape)}, "
                "expected (B, L, d) for (B, L)."
            )


SoftPrompt.__init__ = old_argument("tower", "text_encoder")(SoftPrompt.__init__)  # type: ignore[method-assign]


def table_of(text_encoder: TextEncoder) -> nn.Module:
    """The encoder's token embeddings."""
    model = (
        text_encoder.encoder.encoder if text_encoder.facts.kind == "t5" else text_encoder.encoder
    )  # T5's own stack has a table of its own
    table: nn.Module = model.get_input_embeddings()
    return table


@contextmanager
def reading(text_encoders: Sequence[TextEncoder], prompts: Sequence[SoftPrompt]) -> Iterator[None]:
    """Inside, the encoders read these; AttackError at the end for a soft prompt whose ids never came."""
    used = [False] * len(prompts)

    def hook_of(index: int, prompt: SoftPrompt) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            ids = args[0] if args else None
            if (
                not isinstance(ids, Tensor)
                or ids.shape != prompt.ids.shape
                or not torch.equal(ids, prompt.ids.to(ids.device))
            ):
                return None
            used[index] = True
            return prompt.embeds.to(output)

        return hook

    handles = [
        table_of(text_encoders[prompt.text_encoder]).register_forward_hook(hook_of(index, prompt))
        for index, prompt in enumerate(prompts)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not all(used):
        raise AttackError(
            "no text encoder was given the ids of a soft prompt; make them with the encoder's own `ids` of the call's prompts."
        )
