"""Two sequences of prompt embeddings as the one that guards are given, and the way back.

HunyuanImage's denoiser is given a prompt and the words in it that are to be painted, HiDream's the states of T5 and those of
every layer of Llama. `Family.second_prompt` says how the two are put together. Used by `seam.hooks`, so that nothing else meets
the second sequence, and by `encoding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.pipelines.conditioning import cat_widths, flat_layers, lengthened
from saferedir.pipelines.families.facts import Family, SecondPrompt
from saferedir.utils.device import is_readable, refuse
from saferedir.utils.writes import are_objects, have_values, writes_of


class Parts(NamedTuple):
    """What a denoiser is given of its prompts.

    Attributes:
        prompt: (R, L, D).
        second: (R, M, E), or (K, R, M, E).
        mask: (R, L) of the prompt.
        second_mask: (R, M).
    """

    prompt: Tensor
    second: Tensor
    mask: Tensor | None = None
    second_mask: Tensor | None = None


def join(fact: SecondPrompt, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """(embeddings, mask) of both sequences as one."""
    prompt, second = parts.prompt, parts.second
    if fact.layers:
        second = second.movedim(0, 2).flatten(2)
    if fact.position == "channels":
        length = max(prompt.shape[1], second.shape[1])
        return torch.cat([lengthened(prompt, length), lengthened(second, length)], dim=2), parts.mask
    if parts.mask is None or parts.second_mask is None:
        return cat_widths([second, prompt]), None
    return cat_widths([second, prompt]), torch.cat([parts.second_mask.to(parts.mask), parts.mask], dim=1)


def cut(fact: SecondPrompt, prompt: Tensor, mask: Tensor | None, like: Parts) -> Parts:
    """Inverse of `join`: the two sequences of embeddings of any number of rows; `like` has their lengths and widths."""
    tokens, (length, width) = like.second.shape[-2], like.prompt.shape[1:]
    if fact.position == "channels":
        first, second = prompt[:, :length, :width], prompt[:, :tokens, width:]
    else:
        first, second = prompt[:, tokens:, :width], prompt[:, :tokens, : like.second.shape[-1]]
    if fact.layers:
        second = second.unflatten(2, (len(like.second), -1)).movedim(2, 0)
    first, second = first.to(like.prompt.dtype).contiguous(), second.to(like.second.dtype).contiguous()
    if mask is None or like.second_mask is None:
        return Parts(first, second, mask)
    second_mask = mask[:, :tokens].to(like.second_mask.dtype).contiguous()
    return Parts(first, second, mask[:, tokens:].contiguous(), second_mask)


def encoded_prompt(family: Family, answer: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """(embeddings, mask) as guards are given them, of what `encode_prompt` returned."""
    values = dict(zip(family.encoded, answer, strict=False))
    prompt, mask = flat_layers(values["prompt"]), values.get("mask")
    if family.second_prompt is None:
        return prompt, mask
    whole, mask = join(family.second_prompt, Parts(prompt, values["second"], mask, values.get("second_mask")))
    return whole.to(prompt.dtype), mask


class _Known(NamedTuple):
    """Prompts that were joined.

    Attributes:
        parts: as the denoiser was given them.
        prompt: both sequences as one.
        mask: of `prompt`.
        writes: to `parts`, up to then.
    """

    parts: Parts
    prompt: Tensor
    mask: Tensor | None
    writes: tuple[int, ...]


class Joined:
    """The prompts of one family's denoiser; the same prompts are joined once, so that guards know them again.

    Prompts that were written to since are others. `pipe` says how long the second sequence is.
    """

    def __init__(self, family: Family, pipe: Any) -> None:
        self._family, self._pipe, self._fact = family, pipe, family.second_prompt
        self._known: list[_Known] = []  # of the prompts, and of the negative ones

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to join, and nothing to check."""
        return self._fact is None and not (self._family.mask_kwarg and self._family.first_token_is_read)

    def flat(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keyword arguments with both sequences as one in the place of the prompt; `kwargs` themselves where there is one."""
        self._check_first_token(kwargs)
        if self._fact is None:
            return kwargs
        parts = self._parts(self._fact, kwargs)
        known = next((each for each in self._known if are_objects(parts, each.parts)), None)
        others = [each for each in self._known if each is not known]
        if known is None or not self._is_unwritten(self._fact, known):
            self._check_length(self._fact, parts)
            known = _Known(parts, *join(self._fact, parts), writes_of(parts))
        self._known = [*others[-1:], known]
        given = {**kwargs, self._family.prompt_arg[1]: known.prompt}
        return given | ({} if self._family.mask_kwarg is None else {self._family.mask_kwarg: known.mask})

    def forget(self) -> None:
        """Let the prompts go: a run has ended."""
        self._known = []

    def _is_unwritten(self, fact: SecondPrompt, known: _Known) -> bool:
        """Whether the parts still hold what was joined: by values, or where reading waits, by the counts of writes, too."""
        if not is_readable(known.prompt) and writes_of(known.parts) != known.writes:
            return False
        with torch.no_grad():
            return have_values(join(fact, known.parts), (known.prompt, known.mask))

    def apart(
        self, answer: tuple[tuple[Any, ...], dict[str, Any]] | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Inverse of `flat` for what is to be written into the call that `flat` was last given."""
        if answer is None or self._fact is None:
            return answer
        args, kwargs = answer
        like, prompt, mask, _ = self._known[-1]
        names = self._names(self._fact)
        new_prompt, new_mask = kwargs[names[0]], kwargs.get(names[2]) if names[2] else None
        is_same = new_prompt is prompt and new_mask is mask
        parts = like if is_same else cut(self._fact, new_prompt, new_mask, like)
        return args, kwargs | {name: part for name, part in zip(names, parts, strict=True) if name}

    def _names(self, fact: SecondPrompt) -> tuple[str, str, str | None, str | None]:
        """Keywords of what `Parts` has."""
        return self._family.prompt_arg[1], fact.argument, self._family.mask_kwarg, fact.mask

    def _parts(self, fact: SecondPrompt, kwargs: Mapping[str, Any]) -> Parts:
        values = [kwargs.get(name) if name else None for name in self._names(fact)]
        missing = [
            name
            for name, value in zip(self._names(fact), values, strict=True)
            if name and not isinstance(value, Tensor)
        ]
        if missing:
            raise GuardError(
                f"the denoiser of {self._family.name} was called without {missing[0]}, so guards cannot read its prompts."
            )
        return Parts(*values)  # type: ignore[arg-type]

    def _check_length(self, fact: SecondPrompt, parts: Parts) -> None:
        length = None if fact.length is None else getattr(self._pipe, fact.length)
        if length is not None and parts.second.shape[-2] != length:
            raise GuardError(
                f"{fact.argument} has {parts.second.shape[-2]} tokens where this pipeline's own encoder gives {length} "
                f"({fact.length}), so a guard's words would not stand beside them; give as many, the rest masked."
            )

    def _check_first_token(self, kwargs: Mapping[str, Any]) -> None:
        name = self._family.mask_kwarg
        mask = kwargs.get(name) if name and self._family.first_token_is_read else None
        if not isinstance(mask, Tensor):
            return
        refuse(
            mask[:, 0] == 0,
            lambda: GuardError(
                "a prompt's mask hides its first token, which this denoiser reads none the less, so no guard would judge it; "
                "pass the mask that encode_prompt returns."
            ),
        )
