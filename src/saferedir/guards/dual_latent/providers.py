"""The safe row of dual latent guards: conditioning made from the user's own and some safe words.

Implements docs/methods/dual_latent.md (1). Used by `base`. Shapes: prompt embeddings (B, L, D), pooled (B, P), masks (B, L).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import Run, Step
from saferedir.guards.dual_latent.config import DualLatentConfig
from saferedir.guards.guidance import of_length
from saferedir.pipelines.conditioning import PromptEmbeds, lengthened
from saferedir.utils.host_copies import keep, known
from saferedir.utils.writes import MadeOf

SAFE_PROMPT, SAFE_POOLED = "safe_prompt_embeds", "safe_pooled_embeds"


@dataclass
class SafeTexts:
    """What a run's provider has encoded: its own words (E, ...), and the images' prompts with the context before them."""

    words: PromptEmbeds | None = None
    prompts: tuple[str | None, ...] = field(default=(), repr=False)  # texts are private
    in_context: PromptEmbeds | None = field(default=None, repr=False)
    row: MadeOf[PromptEmbeds] | None = field(default=None, repr=False)  # (1, B, ...)


class Learned(NamedTuple):
    """safe_prompt_embeds (L, D), safe_pooled_embeds (P,): weights of the provider "learned"."""

    prompt: Tensor | None = None
    pooled: Tensor | None = None


def words_of(config: DualLatentConfig, run: Run) -> PromptEmbeds | None:
    """Words that a provider needs encoded, whatever the prompts are."""
    known = {"learned": [], "context_text": [], "anchor": [config.anchor, config.concept]}
    wanted = known.get(config.provider, [config.safe_phrase])
    return run.encode(wanted) if wanted else None


def safe_row(step: Step, config: DualLatentConfig, texts: SafeTexts, learned: Learned, method: str) -> PromptEmbeds:
    """Conditioning of the safe row, (1, B, ...): the same objects for as long as what it is made of is the same."""
    source = _source(step, config, texts, method)
    if texts.row is not None and texts.row.is_of(*source):
        return texts.row.value
    if config.provider == "learned":
        embeds = _learned(step, learned, method)
    elif config.provider in ("context_text", "phrase"):
        embeds = source
    else:
        assert texts.words is not None
        embeds = _mixed(step, config, texts.words, method)
    row = embeds.map(lambda part: part.expand(step.run.batch_size, *part.shape[1:])[None])
    if not any(part is not None and part.requires_grad for part in row):
        texts.row = MadeOf(row, *source)
    return row


def _source(step: Step, config: DualLatentConfig, texts: SafeTexts, method: str) -> PromptEmbeds:
    """What changes of that which the safe row is made of: the guard's encoded words, or the prompts' embeddings."""
    if config.provider == "context_text":
        return _in_context(step, config, texts, method)
    if config.provider != "learned" and texts.words is None:
        raise GuardError(f"guard {method!r} has no safe words in this run.")
    return texts.words if config.provider == "phrase" and texts.words is not None else step.conditioning.cond


def _learned(step: Step, learned: Learned, method: str) -> PromptEmbeds:
    e, pooled = step.prompt_embeds, step.pooled
    assert learned.prompt is not None
    if pooled is not None and learned.pooled is None:
        raise GuardError(f"guard {method!r} has no {SAFE_POOLED}, which this family of pipelines needs.")
    embeds = PromptEmbeds(learned.prompt[None].to(e), None)
    if pooled is not None and learned.pooled is not None:
        embeds = embeds._replace(pooled=learned.pooled[None].to(pooled))
    return embeds._replace(mask=torch.ones(embeds.prompt.shape[:2], dtype=torch.bool, device=e.device))


def _in_context(step: Step, config: DualLatentConfig, texts: SafeTexts, method: str) -> PromptEmbeds:
    """E("<safe phrase>, <prompt>") of every image, (B, ...); encoded once for the prompts of a run."""
    if None in step.prompts or not step.prompts:
        image = step.prompts.index(None) if step.prompts else 0
        raise GuardError(
            f"guard {method!r} does not know the prompt of image {image}, before which its context would go, so no image is "
            "returned; call with `prompt` alone instead of embeddings or prompt_2, or use another provider."
        )
    if texts.in_context is None or texts.prompts != step.prompts:
        different = list(dict.fromkeys(step.prompts))
        embeds = step.run.encode([f"{config.safe_phrase}, {prompt}" for prompt in different])
        texts.prompts = step.prompts
        texts.in_context = embeds.rows([different.index(prompt) for prompt in step.prompts])
    return texts.in_context


def _mixed(step: Step, config: DualLatentConfig, texts: PromptEmbeds, method: str) -> PromptEmbeds:
    pooled, a = step.pooled, config.amount
    masks = None if texts.mask is None else (step.prompt_mask, texts.mask)
    prompts, texts = _alike(PromptEmbeds(step.prompt_embeds, pooled, masks and masks[0]), texts, method)
    first, last = texts.rows(slice(0, 1)), texts.rows(slice(-1, None))

    def mixed(prompt: Tensor, toward: Tensor, away: Tensor) -> Tensor:
        return (1 - a) * prompt + a * toward if config.provider == "interpolate" else prompt + (toward - away)

    embeds = PromptEmbeds(mixed(prompts.prompt, first.prompt, last.prompt))
    if pooled is not None and first.pooled is not None and last.pooled is not None:
        embeds = embeds._replace(pooled=mixed(pooled, first.pooled, last.pooled))
    if masks is not None:
        embeds = embeds._replace(mask=_either(*masks, embeds.prompt.shape[1]))
    return embeds


def _either(prompts: Tensor, texts: Tensor, length: int) -> Tensor:
    """(B, L) of masks (B, L1) and (N, L2), where a prompt or a text has a token; made on the host where both are known there."""
    copies = known(prompts), known(texts)
    if copies[0] is None or copies[1] is None:
        return lengthened(prompts, length) | lengthened(texts, length).bool().any(dim=0)
    mask = lengthened(copies[0], length) | lengthened(copies[1], length).bool().any(dim=0)
    on_device = mask.to(prompts.device)
    keep(on_device, mask)
    return on_device


def _alike(prompts: PromptEmbeds, texts: PromptEmbeds, method: str) -> tuple[PromptEmbeds, PromptEmbeds]:
    """Both as long as the longer, and zero where masked: what stands there depends on an image's neighbours."""
    length = max(prompts.prompt.shape[1], texts.prompt.shape[1])
    longer = of_length(prompts, length), of_length(texts, length)
    if longer[0] is None or longer[1] is None or prompts.prompt.shape[2] != texts.prompt.shape[2]:
        raise GuardError(
            f"the safe texts of guard {method!r} give embeddings {tuple(texts.prompt.shape[1:])} where this call has "
            f"{tuple(prompts.prompt.shape[1:])}, so they cannot be mixed; use provider 'phrase'."
        )
    prompts, texts = (_unmasked(part) for part in (longer[0], longer[1]))
    return prompts, texts


def _unmasked(embeds: PromptEmbeds) -> PromptEmbeds:
    return (
        embeds
        if embeds.mask is None
        else embeds._replace(prompt=embeds.prompt * embeds.mask[..., None].to(embeds.prompt))
    )
