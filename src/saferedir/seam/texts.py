"""PromptTexts: which text a row of prompt embeddings was made from, by what a pipeline's `encode_prompt` answered.

Made by `hooks`, which wraps that method, while a guard with `needs_text` is attached. Whatever is not certain is None:
embeddings handed over by the user, prompts that differ between text encoders, a caption cleaned in an unusual way.
"""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saferedir.pipelines.families import Family
from saferedir.pipelines.joined import Parts, encoded_prompt, join
from saferedir.pipelines.listed import padded
from saferedir.pipelines.text_settings import named_arguments
from saferedir.utils.device import to_host

#: one answer of encode_prompt: texts, and the conditional embeddings (N, L, D) made from them
Record = tuple[tuple[str | None, ...], Tensor]
KEPT = 4
#: arguments of encode_prompt with embeddings of the prompt, or of a part of it
_EMBEDS = re.compile(r"(pooled_)?prompt_embeds(?!_mask)")


class PromptTexts:
    """The last answers of a pipeline's `encode_prompt`."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._records: deque[Record] = deque(maxlen=KEPT)
        self._first: tuple[list[str | None], Tensor] = (
            [],
            torch.empty(0),
        )  # of the call before that for the second sequence

    def known(self) -> tuple[Record, ...]:
        """What was recorded up to now, the newest last."""
        return tuple(self._records)

    def encode_prompt(self, pipe: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own answer, which is recorded."""
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        texts = _texts(
            bound.arguments, named_arguments(pipe)
        )  # before the call: Z-Image writes into the list of prompts
        answer = original(*args, **kwargs)
        parts = answer if isinstance(answer, tuple) else (answer,)
        second = self._family.second_prompt
        if self._family.listed:
            embeds = padded(parts[self._family.encoded.index("prompt")]).prompt
        elif second is not None and second.encoder_settings:
            states = parts[self._family.encoded.index("prompt")]
            if any(bound.arguments[name] != value for name, value in second.encoder_settings.items()):
                self._first = texts, states
                return answer
            (known, first), self._first = self._first, ([], states)
            texts = texts if known == texts else []
            embeds = join(second, Parts(first, states))[0] if texts else states
        else:
            embeds = encoded_prompt(self._family, parts)[0]
        if texts and len(embeds) % len(texts) == 0:
            copies = len(embeds) // len(texts)  # images per prompt
            self._records.append((tuple(text for text in texts for _ in range(copies)), embeds.detach()))
        return answer


def texts_of(rows: Tensor, records: tuple[Record, ...]) -> tuple[str | None, ...]:
    """The text of each row of embeddings (B, L, D), None where it is unknown."""
    answers: list[str | None] = [None] * len(rows)
    flags: list[Tensor] = []
    compared: list[tuple[str | None, ...]] = []
    for texts, embeds in records:
        length = min(
            embeds.shape[1], rows.shape[1]
        )  # prompts of their own lengths are padded with zeros to that of the longest
        if embeds.shape[2:] != rows.shape[2:]:
            continue
        same = embeds.to(rows)[:, :length]
        same = torch.nn.functional.pad(same, (0, 0, 0, rows.shape[1] - length))
        is_cut = embeds[:, length:].flatten().any()
        flags.append(torch.stack([(row == same).flatten(1).all(dim=1) & ~is_cut for row in rows]))  # (B, N)
        compared.append(texts)
    for texts, is_same in zip(compared, to_host(*flags), strict=True):
        for index, matches in enumerate(is_same.tolist()):
            for text, is_match in zip(texts, matches, strict=True):
                if is_match:
                    answers[index] = text
    return tuple(answers)


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
