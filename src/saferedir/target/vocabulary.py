"""The words an attack may write with one text encoder: which tokens, how near, and whether a text survives being read again.

Shapes: ids (B, L) with opening token, closing token and padding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from saferedir.errors import AttackError
from saferedir.pipelines.text_encoders import TextEncoder
from saferedir.target.soft_prompt import table_of


class Vocabulary:
    """Tokens of one encoder.

    Args:
        text_encoder: the encoder.
        forbidden: no token whose text holds one of these, in whatever case.

    Attributes:
        allowed: (V,) bool over rows of the embedding table: a token of the tokenizer that can be printed, not a special one, not
            forbidden. The table may have more rows than the tokenizer has tokens. Whether tokens side by side are read again as
            they are is another question: `survives`.
        table: (V, d) float32 embeddings.
    """

    def __init__(self, text_encoder: TextEncoder, forbidden: Collection[str] = ()) -> None:
        self.text_encoder = text_encoder
        weight: Tensor = table_of(text_encoder).weight  # type: ignore[assignment]
        self.table = weight.detach().float()
        tokenizer, words = text_encoder.tokenizer, [word.lower() for word in forbidden if word]
        special = set(tokenizer.all_special_ids)
        self.allowed = torch.zeros(len(self.table), dtype=torch.bool, device=self.table.device)
        for token in sorted(token_id for token_id in set(tokenizer.get_vocab().values()) if token_id < len(self.table)):
            text = self._text([token])
            held = any(word in text.lower() for word in words)
            is_int = bool(text) and "\ufffd" not in text  # not a part of a character
            self.allowed[token] = token not in special and is_int and not held
        if not bool(self.allowed.any()):
            raise AttackError(
                f"no token of {type(tokenizer).__name__} is left to write with; forbid less than {words}."
            )

    def nearest(self, embeds: Tensor) -> Tensor:
        """(..., d) to (...) ids of the allowed tokens with the highest cosine."""
        like = normalize(embeds.detach().float(), dim=-1) @ normalize(self.table, dim=-1).T
        return like.masked_fill(~self.allowed, -torch.inf).argmax(dim=-1)

    def ids(self, words: Sequence[Sequence[int]]) -> Tensor:
        """(B, L) of the words' tokens, as the pipeline would frame and pad them; AttackError where they are too many."""
        room = self.text_encoder.length - self.text_encoder.first_word - 1
        longest = max(map(len, words), default=0)
        if longest > room:
            raise AttackError(f"a prompt of {longest} tokens does not fit; this encoder reads {room}.")
        framed = self.text_encoder.ids([""] * len(words))
        end = framed[:, self.text_encoder.first_word].clone()
        for row, tokens in enumerate(words):
            stop = self.text_encoder.first_word + len(tokens)
            framed[row, self.text_encoder.first_word : stop] = torch.tensor(list(tokens), dtype=torch.long)
            framed[row, stop] = end[row]
        return framed

    def words(self, ids: Tensor) -> list[list[int]]:
        """The words' tokens of ids (B, L), without frame and padding."""
        inside = self.text_encoder.words(ids)
        return [row[keep].tolist() for row, keep in zip(ids, inside, strict=True)]

    def texts(self, ids: Tensor) -> list[str]:
        """What a user would type."""
        return [self._text(words) for words in self.words(ids)]

    def survives(self, ids: Tensor) -> Tensor:
        """(B,) bool: typed as text and read again, these are the same ids with the same padding."""
        return (self.text_encoder.ids(self.texts(ids)) == ids).all(dim=1)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.text_encoder.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text.strip()
