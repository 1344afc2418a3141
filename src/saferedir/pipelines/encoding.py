"""encode_prompts(pipe, texts): prompt embeddings as the pipeline itself would make them, for every family.

Used by `seam` (extra prompts) and by trainers.
"""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import family_of
from saferedir.pipelines.joined import Parts, encoded_prompt, join
from saferedir.pipelines.listed import padded
from saferedir.pipelines.text_settings import named_arguments
from saferedir.utils.renamed import old_name


def encode_prompts(
    pipe: Any, texts: Sequence[str], call: Mapping[str, Any] | None = None, batch: int = 64
) -> PromptEmbeds:
    """Conditional embeddings of `texts`, in the pipeline's dtype and on its device; gradients flow where they can.

    Settings that `encode_prompt` shares with the pipeline's call (maximal length, cleaning, system prompt) have
    the call's defaults, or the values in `call`. Prompts with lengths of their own come under a mask; those that are as long
    as the longest of their batch are all as long as the longest of `texts`.
    """
    family = family_of(pipe)
    encode = prompt_encoder(pipe)
    names = inspect.signature(encode).parameters
    defaults = named_arguments(pipe)
    empty = inspect.Parameter.empty
    settings: dict[str, Any] = {name: None for name, entry in names.items() if entry.default is empty}
    for name in names.keys() & defaults.keys():
        if defaults[name].default not in (empty, None):
            settings[name] = defaults[name].default
    settings |= {**(call or {}), **family.encoder_settings}
    settings |= {"num_images_per_prompt": 1, "num_videos_per_prompt": 1, "do_classifier_free_guidance": False}
    settings |= {"device": pipe._execution_device}
    settings = {name: value for name, value in settings.items() if name in names and name != "prompt"}
    parts = []
    for start in range(0, len(texts), batch):
        some = list(texts[start : start + batch])
        if "batch_size" in names:
            settings["batch_size"] = len(some)
        answer = encode(prompt=some, **settings)
        answer = answer if isinstance(answer, tuple) else (answer,)
        values = dict(zip(family.encoded, answer, strict=False))
        if family.listed:
            parts += [padded([prompt]) for prompt in values["prompt"]]
            continue
        if family.second_prompt and family.second_prompt.encoder_settings:
            second = encode(prompt=some, **{**settings, **family.second_prompt.encoder_settings})[0]
            prompt, mask = join(family.second_prompt, Parts(values["prompt"], second))
        else:
            prompt, mask = encoded_prompt(family, answer)
        part = PromptEmbeds(prompt, values.get("pooled"), mask)
        if family.prompt_lengths == "own" and part.mask is None:  # left out where it hides nothing in this batch
            part = part._replace(mask=torch.ones(part.prompt.shape[:2], dtype=torch.bool, device=part.prompt.device))
        parts.append(part)
    if family.prompt_lengths == "longest":
        length = max(part.prompt.shape[1] for part in parts)
        parts = [
            part
            if part.prompt.shape[1] == length
            else _beside_filler(pipe, texts[n * batch : (n + 1) * batch], length, call)
            for n, part in enumerate(parts)
        ]
    return parts[0].cat(*parts[1:])


def prompt_encoder(pipe: Any) -> Callable[..., Any]:
    """The method that encodes prompts; InstructPix2Pix has the old `_encode_prompt` alone."""
    method: Callable[..., Any] = getattr(pipe, "encode_prompt", None) or pipe._encode_prompt
    return method


def encode_to_length(
    pipe: Any, texts: Sequence[str], length: int, call: Mapping[str, Any] | None = None
) -> PromptEmbeds:
    """Conditioning of texts with L = `length` where the pipeline can choose it: as long as the prompts of a run under way.

    Where prompts have lengths of their own, these have theirs.
    """
    embeds, lengths = encode_prompts(pipe, texts, call), family_of(pipe).prompt_lengths
    missing = length - embeds.prompt.shape[1]
    if lengths == "own":
        return embeds
    if lengths == "longest":
        return _beside_filler(pipe, texts, length, call) if missing > 0 else embeds
    name = "max_sequence_length"
    parameter = inspect.signature(prompt_encoder(pipe)).parameters.get(name)
    default = named_arguments(pipe).get(name, parameter)
    if not missing or default is None or name in family_of(pipe).encoder_settings:
        return embeds
    given = (call or {}).get(name, default.default)
    return encode_prompts(pipe, texts, {**(call or {}), name: given + missing})


def _beside_filler(pipe: Any, texts: Sequence[str], length: int, call: Mapping[str, Any] | None) -> PromptEmbeds:
    """Embeddings of `texts` in a batch with a text of L = `length`, padded as the pipeline pads them.

    Where a word is two tokens, the text ends in a word of one token more.
    """
    words = range(1, length + 1)
    count = bisect.bisect_left(words, length, key=lambda n: encode_prompts(pipe, ["a " * n], call).prompt.shape[1])
    count = words[min(count, length - 1)]
    for filler in ("a " * count, "a " * (count - 2) + "aa"):
        embeds = encode_prompts(pipe, [*texts, filler], call, batch=len(texts) + 1)
        if embeds.prompt.shape[1] == length:
            break
    return embeds.rows(slice(0, len(texts)))


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
