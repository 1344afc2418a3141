"""Arguments of a denoiser in another form than tensors (R, L, D), and the way back: lists and layers.

Z-Image's transformer takes and returns lists with one tensor a row: latents, a list of (C, 1, h, w), are (R, C, h, w); prompts, a
list of (L_i, D), are (R, L, D) under a mask (R, L). Krea 2's takes K states a token: prompts (R, L, K, D) are (R, L, K * D).
Used by `seam.hooks`, so that nothing else meets them, and by `encoding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saferedir.errors import GuardError
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families.facts import Family
from saferedir.utils.device import is_readable
from saferedir.utils.host_copies import keep, on_host, read_once
from saferedir.utils.writes import are_objects, have_values, writes_of

#: rows of a denoiser's output
Rows = list[Tensor]


def padded(prompts: Sequence[Tensor]) -> PromptEmbeds:
    """Embeddings of prompts (L_i, D), zero beyond their ends."""
    prompt = pad_sequence(list(prompts), batch_first=True)
    known = torch.arange(prompt.shape[1], device="cpu") < torch.tensor([[len(row)] for row in prompts], device="cpu")
    mask = known.to(prompt.device)
    keep(mask, known)
    return PromptEmbeds(prompt, None, mask)


def unpadded(prompt: Tensor, *masks: Tensor) -> Rows:
    """Inverse of `padded`: the tokens of each row that are not masked.

    Args:
        prompt: (N, L, D).
        masks: (N_i, L_i), of the first rows and of those below, N in all; L_i may be below L. Each is read once at most.
    """
    read_once(masks)
    rows = [row for mask in masks for row in on_host(mask).bool()]
    return [_kept(tokens, is_kept) for tokens, is_kept in zip(prompt, rows, strict=True)]


def _kept(tokens: Tensor, is_kept: Tensor) -> Tensor:
    """Tokens (L', D) of (L, D); `is_kept` (L or fewer,) on the CPU."""
    places = is_kept.nonzero()[:, 0]
    count = len(places)
    return tokens[:count] if bool(is_kept[:count].all()) else tokens[places.to(tokens.device)]


class Layers:
    """The prompts of one family's denoiser; the same prompts are flattened once, so that guards know them again.

    Where that takes a copy, prompts that were written to since are others.
    """

    def __init__(self, family: Family) -> None:
        self._name = family.prompt_arg[1] if family.prompt_layers else ""
        #: (R, L, K, D), (R, L, K * D) and the writes to the former: of the prompts, and of the negative ones
        self._known: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []
        self._layers = 1

    def flat(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keyword arguments with prompts (R, L, K * D); `kwargs` themselves in families without layers."""
        prompt = kwargs.get(self._name) if self._name else None
        if not isinstance(prompt, Tensor) or prompt.ndim != 4:
            return kwargs
        self._layers = prompt.shape[2]
        known = next((each for each in self._known if each[0] is prompt), None)
        if known is None or not self._is_unwritten(*known):
            others = [each for each in self._known if each is not known]
            known = (prompt, prompt.flatten(2), writes_of((prompt,)))
            self._known = [*others[-1:], known]
        return {**kwargs, self._name: known[1]}

    def forget(self) -> None:
        """Let the prompts go: a run has ended."""
        self._known = []

    def _is_unwritten(self, prompt: Tensor, flat: Tensor, writes: tuple[int, ...]) -> bool:
        """Whether `flat` shows what `prompt` holds now."""
        if not is_readable(prompt) and writes_of((prompt,)) != writes:
            return False
        return have_values((prompt.detach().flatten(2),), (flat,))

    def apart(
        self, answer: tuple[tuple[Any, ...], dict[str, Any]] | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Inverse of `flat` for what is to be written into a call."""
        if answer is None or not self._name:
            return answer
        args, kwargs = answer
        return args, {**kwargs, self._name: kwargs[self._name].unflatten(2, (self._layers, -1))}


class Lists:
    """The arguments of one family's denoiser; the same prompts are padded once. Those that were written to since are others."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self.forget()

    def forget(self) -> None:
        """Let the prompts go: a run has ended."""
        self._given: list[Tensor] = []
        self._lengths: list[int] = []
        self._writes: tuple[int, ...] = ()
        self._padded = PromptEmbeds(torch.empty(0, 0, 0))

    def tensors(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name, lists as tensors."""
        family = self._family
        given = {**dict(zip(family.listed, args, strict=False)), **kwargs}
        latents, prompts = (self._rows(given.get(name)) for _, name in (family.latents_arg, family.prompt_arg))
        if any(each.ndim != 4 or each.shape[1] != 1 or each.shape != latents[0].shape for each in latents):
            raise GuardError(
                f"the latents of {family.name} must be images of one size; call the pipeline once for each size."
            )
        if not are_objects(prompts, self._given) or not self._are_unwritten():
            self._given, self._lengths = list(prompts), [len(each) for each in prompts]
            self._padded, self._writes = padded(prompts), writes_of(prompts)
        given[family.latents_arg[1]] = torch.stack(latents).squeeze(2)
        given[family.prompt_arg[1]] = self._padded.prompt
        if family.mask_kwarg is not None:
            given[family.mask_kwarg] = self._padded.mask
        return given

    def _are_unwritten(self) -> bool:
        """Whether the prompts still hold what was padded: by values, or where reading waits, by the counts of writes, too."""
        if not is_readable(self._given[0]) and writes_of(self._given) != self._writes:
            return False
        rows = [row[:length] for row, length in zip(self._padded.prompt, self._lengths, strict=True)]
        return have_values(self._given, rows)

    def _rows(self, value: Any) -> Rows:
        if not isinstance(value, list) or not value or not all(isinstance(each, Tensor) for each in value):
            raise GuardError(
                f"the denoiser of {self._family.name} was called without a list of one tensor a row, so guards cannot read it; "
                "reference images beside the latents are not supported."
            )
        return value

    def lists(self, given: Mapping[str, Any], args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inverse of `tensors`: (args, kwargs), further positional arguments as in `args`."""
        family = self._family
        assert family.mask_kwarg is not None
        kwargs = {name: value for name, value in given.items() if name != family.mask_kwarg}
        (_, latents), (_, prompt) = family.latents_arg, family.prompt_arg
        kwargs[latents] = list(given[latents].unsqueeze(2).unbind(0))
        if given[family.mask_kwarg] is self._padded.mask:  # lengths are known, and nothing waits for a mask on a device
            kwargs[prompt] = [row[: len(tokens)] for row, tokens in zip(given[prompt], self._given, strict=True)]
        else:
            masks = given[family.mask_kwarg]
            kwargs[prompt] = unpadded(given[prompt], *([masks] if isinstance(masks, Tensor) else masks))
        more = args[len(family.listed) :]
        first = tuple(kwargs.pop(name) for name in family.listed) if more else ()
        return (*first, *more), kwargs
