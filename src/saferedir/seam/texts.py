"""PromptTexts: which text a row of embeddings was made from, if any, by what a pipeline's `encode_prompt` answered.

Made by `hooks`, which wraps that method, while a guard with `needs_text` is attached. A text that is not certain is None:
embeddings handed over by the user, prompts that differ between text encoders, a caption cleaned in an unusual way. Whether a
row was made from text at all, whichever it was, is asked apart.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.families import Family
from saferedir.pipelines.joined import Parts, encoded_prompt, join
from saferedir.pipelines.listed import padded
from saferedir.pipelines.text_settings import named_arguments
from saferedir.utils.device import to_host

KEPT = 4
#: arguments of encode_prompt with embeddings of the prompt, or of a part of it
_EMBEDS = re.compile(r"(pooled_)?prompt_embeds(?!_mask)")
_NEGATIVE_EMBEDS = re.compile(r"negative_(pooled_)?prompt_embeds(?!_mask)")


class Record(NamedTuple):
    """One answer of `encode_prompt`, or its half of negative prompts, in copies: the caller may write into the answer.

    Attributes:
        texts: (N,), None where one is not certain.
        embeds: (N, L, D), made from them.
        pooled: (N, P), None where there is none.
        is_negative: whether they came as negative prompts.
    """

    texts: tuple[str | None, ...]
    embeds: Tensor
    pooled: Tensor | None = None
    is_negative: bool = False


class RowTexts(NamedTuple):
    """What is known of the rows of one denoiser call.

    Attributes:
        prompts: (B,), the text of each prompt, None where it is unknown.
        is_encoded: (B,), whether the prompt's embeddings, pooled ones with them, were made from a text, known or not.
        is_negative_encoded: (B,), the same of the negative prompt; () where there is none.
    """

    prompts: tuple[str | None, ...] = ()
    is_encoded: tuple[bool, ...] = ()
    is_negative_encoded: tuple[bool, ...] = ()


class PromptTexts:
    """The last answers of a pipeline's `encode_prompt`."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._records: deque[Record] = deque(maxlen=KEPT)
        self._negatives: deque[Record] = deque(maxlen=KEPT)
        self._first: tuple[list[str | None], Tensor] = (
            [],
            torch.empty(0),
        )  # of the call before that for the second sequence

    def known(self) -> tuple[Record, ...]:
        """What was recorded up to now: prompts, then negative prompts, the newest of each last."""
        return (*self._records, *self._negatives)

    def encode_prompt(self, pipe: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own answer, which is recorded."""
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        texts = _texts(
            bound.arguments, named_arguments(pipe)
        )  # before the call: Z-Image writes into the list of prompts
        answer = original(*args, **kwargs)
        parts = answer if isinstance(answer, tuple) else (answer,)
        self._note_negatives(bound.arguments, parts)
        second, pooled = self._family.second_prompt, None
        if self._family.listed:
            embeds = padded(parts[self._family.encoded.index("prompt")]).prompt
        elif second is not None and second.encoder_settings:
            states = parts[self._family.encoded.index("prompt")]
            if any(bound.arguments[name] != value for name, value in second.encoder_settings.items()):
                self._first = texts, _copied(states)
                return answer
            (known, first), self._first = self._first, ([], torch.empty(0))
            texts = texts if known == texts else []
            embeds = join(second, Parts(first, states))[0] if texts else states
        else:
            embeds = encoded_prompt(self._family, parts)[0]
            pooled = dict(zip(self._family.encoded, parts, strict=False)).get("pooled")
        if texts and len(embeds) % len(texts) == 0:
            copies = len(embeds) // len(texts)  # images per prompt
            every = tuple(text for text in texts for _ in range(copies))
            self._records.append(Record(every, _copied(embeds), None if pooled is None else _copied(pooled)))
        return answer

    def _note_negatives(self, given: Mapping[str, Any], parts: tuple[Any, ...]) -> None:
        """Record the negative prompts of an answer that has them beside the prompts, unless their embeddings were given."""
        values = dict(zip(self._family.encoded, parts, strict=False))
        embeds, pooled = values.get("negative"), values.get("negative_pooled")
        if not isinstance(embeds, Tensor) or not self._family.encodes_negatives:
            return
        if any(_NEGATIVE_EMBEDS.match(name) for name, value in given.items() if value is not None):
            return
        texts = (None,) * len(embeds)
        pooled = _copied(pooled) if isinstance(pooled, Tensor) else None
        self._negatives.append(Record(texts, _copied(embeds), pooled, is_negative=True))


def _copied(embeds: Tensor) -> Tensor:
    return embeds.detach().clone()


def texts_of(given: Conditioning, records: tuple[Record, ...]) -> RowTexts:
    """What is known of each row of `given`: read together, in one copy.

    A prompt is compared with prompts; a negative prompt with both kinds, since some pipelines encode it as a prompt.
    """
    halves = [(given.cond, [record for record in records if not record.is_negative])]
    if given.uncond is not None:
        halves.append((given.uncond, list(records)))
    compared = [(number, rows, record) for number, (rows, known) in enumerate(halves) for record in known]
    compared = [each for each in compared if each[2].embeds.shape[2:] == each[1].prompt.shape[2:]]
    flags = to_host(*(_matches(rows, record) for _, rows, record in compared))
    encoded = [[False] * len(rows.prompt) for rows, _ in halves]
    prompts: list[str | None] = [None] * len(given.cond.prompt)
    for (number, _, record), is_same in zip(compared, flags, strict=True):
        for index, matches in enumerate(is_same.tolist()):
            texts = [text for text, is_match in zip(record.texts, matches, strict=True) if is_match]
            encoded[number][index] |= bool(texts)
            if texts and number == 0:
                prompts[index] = texts[-1]
    return RowTexts(tuple(prompts), *(tuple(half) for half in encoded))


def _matches(rows: PromptEmbeds, record: Record) -> Tensor:
    """(B, N) bool: which of the record's N rows each of B rows is."""
    prompt, embeds = rows.prompt, record.embeds
    length = min(embeds.shape[1], prompt.shape[1])  # prompts of their own lengths are padded with zeros to the longest
    same = embeds.to(prompt)[:, :length]
    same = torch.nn.functional.pad(same, (0, 0, 0, prompt.shape[1] - length))
    is_cut = embeds[:, length:].flatten().any()
    is_same = torch.stack([(row == same).flatten(1).all(dim=1) & ~is_cut for row in prompt])
    if rows.pooled is None or record.pooled is None or record.pooled.shape[1:] != rows.pooled.shape[1:]:
        return is_same
    return is_same & (rows.pooled[:, None] == record.pooled.to(rows.pooled)).flatten(2).all(dim=2)


def _texts(given: Mapping[str, Any], call: Mapping[str, inspect.Parameter]) -> list[str | None]:
    """Texts of one call of encode_prompt; () where embeddings were given, None where the text encoders got different ones."""
    if given.get("prompt") is None or any(_EMBEDS.match(name) for name, value in given.items() if value is not None):
        return []
    texts = _listed(given["prompt"])
    others = [_listed(given[name]) for name in ("prompt_2", "prompt_3", "prompt_4") if given.get(name)]
    if "clean_caption" in call and given.get("clean_caption") != call["clean_caption"].default:
        return [None] * len(texts)
    return [text if all(other[i : i + 1] == [text] for other in others) else None for i, text in enumerate(texts)]


def _listed(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
