"""Text encoders: each text encoder of a pipeline as a guard may use it, token ids in and states in its own space out.

Facts about them are rows of `families`; `make_text_encoders` binds these to a live pipeline. The seam gives them to
guards that need them (`Run.text_encoders`). Shapes: ids (N, L) int64; states (N, L, d), pooled (N, d), in float32. One is given
its pipeline's own tokenizer and encoder, called as the pipeline calls them, so that offloading goes on working; its
states, put in their place, are the pipeline's prompt embeddings.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saferedir.pipelines.families import Family, TextEncoderFacts
from saferedir.pipelines.text_settings import named_arguments


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder.

    Attributes:
        facts: its row of the family.
        length: L, tokens of a prompt.
        tokens, channels: place of its states in the prompt embeddings (B, L, D); both None if it makes the pooled
            embeddings and nothing else.
        layer: hidden state that is taken; -1 is the last one after the final norm.
        has_final_norm: whether the final norm is applied to an earlier one too (Stable Diffusion's `clip_skip`).
        clean: what the pipeline does to a text before it is tokenized.
    """

    facts: TextEncoderFacts
    tokenizer: Any
    encoder: Any
    length: int
    tokens: slice | None
    channels: slice | None
    layer: int
    has_final_norm: bool
    clean: Callable[[str], str]
    device: torch.device

    @property
    def mask_id(self) -> int:
        """Token that stands for "no particular word": 0 in CLIP, a real item of its vocabulary; T5's unknown token."""
        return 0 if self.facts.kind == "clip" else int(self.tokenizer.unk_token_id)

    @property
    def first_word(self) -> int:
        """Number of opening tokens."""
        return int(self.facts.kind == "clip")

    def ids(self, texts: Sequence[str], keep_end: bool = True, device: torch.device | str | None = None) -> Tensor:
        """(N, L): padded, and cut to L tokens; with `keep_end` the last of them is then the closing token.

        `device`: where to, the encoder's own by default.
        """
        rows = self.tokenizer(
            [self.clean(text) for text in texts], padding="max_length", max_length=self.length, truncation=keep_end
        ).input_ids
        return torch.tensor([row[: self.length] for row in rows], dtype=torch.long, device=device or self.device)

    def words(self, ids: Tensor) -> Tensor:
        """(N, L) bool: tokens of the text, without the opening and the closing one and padding."""
        words = ~self._tail(ids)
        words[:, : self.first_word] = False
        return words

    def attended(self, ids: Tensor) -> Tensor:
        """(N, L) bool: everything up to the closing token, that one included."""
        return torch.arange(ids.shape[1], device=ids.device) <= self._end(ids)[:, None]

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(states, pooled) of ids; of CLIP the pooled state is that of the closing token, of T5 the mean without padding."""
        given = {"attention_mask": self._mask(ids)} if self._is_masked else {}
        if self.layer == -1:
            states = self.encoder(ids, **given)[0]
        else:
            states = self.encoder(ids, output_hidden_states=True, **given).hidden_states[self.layer]
            if self.has_final_norm:
                states = getattr(self.encoder, "text_model", self.encoder).final_layer_norm(states)
        states = states.float().to(ids.device)
        if self.facts.is_zeroed:
            states = states * self.attended(ids)[..., None]
        return states, self.pool(states, ids)

    def pool(self, states: Tensor, ids: Tensor) -> Tensor:
        """(N, d) of states (N, L, d)."""
        pooled: Tensor
        if self.facts.kind == "clip":
            pooled = states[torch.arange(len(ids), device=ids.device), self._end(ids)]
        else:
            weights = self.attended(ids).to(states)[..., None]
            pooled = (states * weights).sum(1) / weights.sum(1)
        return pooled

    @property
    def _is_masked(self) -> bool:
        return self.facts.is_masked or bool(getattr(self.encoder.config, "use_attention_mask", False))

    def _mask(self, ids: Tensor) -> Tensor:
        """The encoder's mask, (N, L), or of T5 (N, 1, 1, L) in the form of its attention.

        transformers takes the latter as it is; of (N, L) it reads whether it hides a token at all, which waits for a device.
        """
        attended = self.attended(ids)
        attention = getattr(self.encoder.config, "_attn_implementation", None)
        if self.facts.kind != "t5" or attention not in ("eager", "sdpa"):
            return attended.long()
        attended = attended[:, None, None, :]
        if attention == "sdpa":
            return attended
        dtype = self.encoder.dtype
        return torch.zeros_like(attended, dtype=dtype).masked_fill(~attended, torch.finfo(dtype).min)

    def _tail(self, ids: Tensor) -> Tensor:
        """(N, L) bool: the closing token and the padding after it. A closing token typed by the user is a word."""
        closes: Tensor = (ids == self.tokenizer.eos_token_id).long()
        if self.tokenizer.pad_token_id == self.tokenizer.eos_token_id:
            return closes.flip(1).cumprod(1).flip(1).bool()
        left: Tensor = closes.flip(1).cumsum(1).flip(1)  # closing tokens from here on
        return (left == 0) & (left[:, :1] > 0) | (left == 1) & closes.bool()

    def _end(self, ids: Tensor) -> Tensor:
        """(N,): place of the closing token; of the highest id, as CLIP has it, if it was cut off."""
        tail = self._tail(ids)
        return torch.where(tail.any(1), tail.long().argmax(1), ids.argmax(1))


def make_text_encoders(pipe: Any, family: Family, length: int) -> tuple[TextEncoder, ...]:
    """The text encoders that this pipeline has, for prompt embeddings of `length` tokens; () for a family without facts."""
    encoders: list[TextEncoder] = []
    start, width, skip = 0, 0, getattr(pipe, "clip_skip", None)
    for facts in family.text_encoder_facts:
        tokenizer, encoder = getattr(pipe, facts.tokenizer, None), getattr(pipe, facts.encoder, None)
        if tokenizer is None or encoder is None:
            continue
        is_clip, size = facts.kind == "clip", int(encoder.config.hidden_size)
        if facts.position == "tokens":
            start, width = (encoders[-1].length if encoders else 0), 0
        own_length = int(tokenizer.model_max_length) if is_clip else length - start
        is_placed = facts.position != "pooled"
        layer = facts.layer - (skip or 0) if is_clip and is_placed else facts.layer
        encoders.append(
            TextEncoder(
                facts=facts,
                tokenizer=tokenizer,
                encoder=encoder,
                length=own_length,
                tokens=slice(start, start + own_length) if is_placed else None,
                channels=slice(width, width + size) if is_placed else None,
                layer=layer,
                has_final_norm=facts.layer == -1 and layer != -1,
                clean=_cleaner(pipe, tokenizer),
                device=torch.device(pipe._execution_device),
            )
        )
        width += size if is_placed else 0
    return tuple(encoders)


def _cleaner(pipe: Any, tokenizer: Any) -> Callable[[str], str]:
    """What the pipeline does to a prompt: words of textual inversion, T5 captions' cleaning, Wan's."""
    modules = [sys.modules.get(base.__module__) for base in type(pipe).__mro__]
    tidy = next((module.__dict__["prompt_clean"] for module in modules if hasattr(module, "prompt_clean")), None)
    caption = named_arguments(pipe).get("clean_caption")

    def clean(text: str) -> str:
        if hasattr(pipe, "maybe_convert_prompt"):
            text = pipe.maybe_convert_prompt(text, tokenizer)
        if caption is not None and hasattr(pipe, "_text_preprocessing"):
            text = pipe._text_preprocessing(text, clean_caption=caption.default)[0]
        return text if tidy is None else str(tidy(text))

    return clean
