"""Words for tokens that are being searched: the text a user would type, and a stand-in where that text is read as other tokens.

Guards that read texts see the text where it survives being read again, a stand-in of as many tokens else; a candidate is always
the text, so that success is judged on what a user can type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saferedir.errors import AttackError
from saferedir.pipelines.text_encoders import TextEncoder
from saferedir.target import SoftPrompt, Vocabulary
from saferedir.target.soft_prompt import reading

#: a short word that most tokenizers have as one token
STAND_IN = "a"


class Wording(NamedTuple):
    """Tokens as a prompt.

    Attributes:
        text: what a user would type.
        prompt: what the pipeline is given while searching: the text, or a stand-in.
        ids: (1, L) of `prompt`.
        words: (1, L) bool, the tokens in `ids` that are being searched, in order.
    """

    text: str
    prompt: str
    ids: Tensor
    words: Tensor

    def soft(self, embeds: Tensor, framed: Tensor) -> SoftPrompt:
        """The words' embeddings (n, d) in their places among those of `ids`, framed (1, L, d)."""
        whole = framed.clone()
        whole[self.words] = embeds.to(framed)
        return SoftPrompt(self.ids, whole)


def worded(vocabulary: Vocabulary, tokens: Sequence[int]) -> Wording:
    """Tokens as a prompt.

    Raises:
        AttackError: more tokens than the encoder reads, or a tokenizer without a stand-in of one token.
    """
    encoder = vocabulary.text_encoder
    ids = vocabulary.ids([list(tokens)])
    text = vocabulary.texts(ids)[0]
    prompt = text
    if not bool(vocabulary.survives(ids)[0]):
        prompt = " ".join([STAND_IN] * len(tokens))
        ids = encoder.ids([prompt])
    words = encoder.words(ids)
    if int(words.sum()) != len(tokens):
        raise AttackError(
            f"{STAND_IN!r} is not one token of this tokenizer, so there is nothing to stand in for a text."
        )
    return Wording(text, prompt, ids, words)


def random_tokens(vocabulary: Vocabulary, count: int, generator: torch.Generator) -> list[int]:
    """Allowed tokens, each as likely as any other."""
    allowed = vocabulary.allowed.nonzero()[:, 0].tolist()
    return [int(allowed[int(torch.randint(len(allowed), (1,), generator=generator))]) for _ in range(count)]


def pooled(encoder: TextEncoder, ids: Tensor, soft: SoftPrompt | None = None) -> Tensor:
    """(N, d) pooled states of ids, with token embeddings of one's own in their place where given."""
    if soft is None:
        return encoder.states(ids)[1]
    with reading([encoder], [soft]):
        return encoder.states(ids)[1]
