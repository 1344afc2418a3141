"""The terms of a redirector's training loss, as pure functions.

Implements docs/methods/saferedir.md (10) to (13), which are ours: arXiv:2601.08623 has no public code of its training.
Shapes: e, e_hat, e_safe (B, L, D); mask targets (B, L); label y (B,) with 1 = asks for the concept; pooled (B, P).
Deviation: safe embeddings are taken position by position, so that a perfect redirection equals the safe prompt itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits, cosine_similarity

from saferedir.guards.saferedir.anchors import without_padding
from saferedir.guards.saferedir.layers import masked_mean
from saferedir.guards.saferedir.network import Redirector, redirect, redirect_pooled
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.training.saferedir.dataset import moved_tokens


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; 0 leaves it out."""

    classification: float = 1.0
    mse: float = 1.0
    cosine: float = 1.0
    mask: float = 0.5
    pooled: float = 1.0
    align: float = 1.0
    minimal: float = 0.1

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)

    @property
    def moves_prompts(self) -> bool:
        """Whether any term about the redirection counts; without one only the verdicts are trained."""
        return any(value for name, value in self.to_dict().items() if name != "classification")


def relative_square(value: Tensor, target: Tensor, start: Tensor | None = None) -> Tensor:
    """|value - target|² / |target|² over the last axis, (B, L); over |start|² where the target is zero (Wan's padding)."""
    size = target.square().sum(-1)
    if start is not None:
        size = torch.where(size > 0, size, start.square().sum(-1))
    return (value - target).square().sum(-1) / size.clamp(min=1e-6)


def masked_mean_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """(1/M) sum_i m*_i v_i with M = max(1, sum_i m*_i): (B, L), (B, L) -> (B,)."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def mask_term(predicted: Tensor, target: Tensor, real: Tensor | None) -> Tensor:
    """Binary cross-entropy of masks (B, L), mean over all tokens, or over the real ones."""
    each = predicted.clamp(1e-6, 1 - 1e-6)
    if real is None:
        return binary_cross_entropy(each, target)
    return binary_cross_entropy(each, target, real.float(), reduction="sum") / real.sum().clamp(min=1)


def redirection_terms(
    network: Redirector,
    given: PromptEmbeds,
    wanted: PromptEmbeds,
    label: Tensor,
    teacher_forcing: bool,
    mask_target: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms about the redirection, each a scalar; in benign rows (label 0) `wanted` is `given`, so no token moves.

    Under masks only the real tokens of `given` count, for an image keeps the mask of its own prompt: a shorter safe prompt
    is wanted with its last token repeated, of a longer one the beginning. `mask_target`: (B, L) in place of the tokens in which
    `given` and `wanted` differ, where `given` was moved by an attack.
    """
    e, e_safe, real = given.prompt, without_padding(wanted), given.mask
    mask_target = moved_tokens(e, e_safe, real) if mask_target is None else mask_target
    predicted = network.redirection(e, real, given.pooled)
    config = network.config
    used = replace(predicted, mask=mask_target[:, None].expand_as(predicted.mask)) if teacher_forcing else predicted
    active = torch.ones_like(predicted.mask[:, :, 0])
    e_hat = redirect(e, used, active, 1.0, config.max_shift, prompt_mask=real, exempt_bos=config.exempt_bos)
    unsafe = label.bool()
    count = label.sum().clamp(min=1)
    delta = predicted.delta[:, 0]
    direction = 1 - cosine_similarity(delta, e_safe - e, dim=-1)
    align = 1 - cosine_similarity(masked_mean(e_hat, real), masked_mean(e_safe, real), dim=-1)
    shift = relative_square(e_hat, e)
    stay = shift.mean(1) if real is None else masked_mean_tokens(shift, real.float())
    terms = {
        "mse": (masked_mean_tokens(relative_square(e_hat, e_safe, e), mask_target) * label).sum() / count,
        "cosine": (masked_mean_tokens(direction, mask_target) * label).sum() / count,
        "mask": mask_term(predicted.mask[:, 0].float(), mask_target, real),
        "align": (align * label).sum() / count,
        "minimal": stay[~unsafe].mean() if bool((~unsafe).any()) else stay.sum() * 0,
    }
    if given.pooled is not None and wanted.pooled is not None:
        pooled = redirect_pooled(given.pooled, predicted, active, 1.0, config.max_shift)
        terms["pooled"] = (relative_square(pooled, wanted.pooled) * label).sum() / count
    return terms


def classification_term(*logits_and_labels: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of binary cross-entropies of (logits (B, 1), labels (B,)) pairs."""
    return torch.stack(
        [binary_cross_entropy_with_logits(logits[:, 0].float(), label) for logits, label in logits_and_labels]
    ).sum()


def total(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Weighted sum of named terms."""
    return torch.stack([weights.to_dict()[name] * value for name, value in terms.items()]).sum()
