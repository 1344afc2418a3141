"""Classifier-free guidance from a guard's side: its weight, whether a call has any, concept phrases, and who was edited when.

Pure functions and two small records, shared by the guards that replace guidance (negative prompt, SLD, dual latent).
Rows of one call: 0 unconditional, p prompt, n or S the concept's phrases; m_k is the output of row k, g the guidance
scale, m = m_0 + g (m_p - m_0). Shapes: predictions (B, C, h, w).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardError
from saferedir.guards.base import GuardConfig, Run, Step
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import FAMILIES
from saferedir.utils.broadcast import per_sample
from saferedir.utils.device import refuse, to_host

WITHOUT_GUIDANCE = ("raise", "ignore")


@dataclass(frozen=True, kw_only=True)
class WordsConfig(GuardConfig):
    """Settings of a guard that steers away from words.

    Attributes:
        phrases: what to steer away from, joined by commas; () stands for (concept,), and ("",) for nothing at all.
    """

    phrases: tuple[str, ...] = ()

    def validate(self) -> None:
        is_texts = isinstance(self.phrases, tuple) and all(isinstance(phrase, str) for phrase in self.phrases)
        self.require(is_texts, "phrases", "a list of texts")

    @property
    def text(self) -> str:
        """All phrases, as they are encoded."""
        return ", ".join(self.phrases or (self.concept,)).strip()


@dataclass(frozen=True, kw_only=True)
class PhrasesConfig(WordsConfig):
    """Settings of a guard that steers away from words by means of classifier-free guidance.

    Attributes:
        without_guidance: what happens in a call without classifier-free guidance (scale 1, distilled models), where such
            a guard can do nothing: "raise" (no image), or "ignore" (the image comes out as if unguarded; its decision
            says so).
    """

    without_guidance: str = "raise"

    def validate(self) -> None:
        super().validate()
        self.require_choice("without_guidance", WITHOUT_GUIDANCE)


def may_be_guided(step: Step) -> bool:
    """Whether this call has, or may turn out to have, classifier-free guidance: in the very first call of a sequential one
    nobody knows yet.
    """
    return step.run.guided or (step.evaluation == 0 and FAMILIES[step.run.family].is_sequential)


class Tally:
    """Which images of a run were edited, in how many denoiser calls, since when."""

    def __init__(self, run: Run) -> None:
        self.calls = torch.zeros(run.batch_size, dtype=torch.long, device=run.device)
        self.first = torch.full_like(self.calls, -1)
        self.was_guided = False
        self.idle_message = ""

    def count(self, rows: Tensor, step: Step) -> None:
        """Note that `rows` (B,) bool were edited in this call."""
        self.first = torch.where(rows & (self.first < 0), step.index, self.first)
        self.calls = self.calls + rows

    def read(self, *others: Tensor) -> list[Tensor]:
        """Bring the counts to the CPU, at the end of a run; `others` come in the same copy."""
        self.calls, self.first, *rest = to_host(self.calls, self.first, *others)
        return rest

    def decisions(
        self, method: str, config: GuardConfig, action: str, message: str, thresholds: Mapping[str, float] | None = None
    ) -> list[Decision]:
        """One record per image; `message` of those that were edited."""
        all_calls, all_first = to_host(self.calls, self.first)
        return [
            Decision(
                guard=method,
                concept=config.concept,
                image=image,
                fired=calls > 0,
                action=action if calls else "none",
                first_fired_step=first if calls else None,
                steps_redirected=calls,
                thresholds=dict(thresholds or {}),
                message=message if calls else self.idle_message,
            )
            for image, (calls, first) in enumerate(zip(all_calls.tolist(), all_first.tolist(), strict=True))
        ]


def has_guidance(step: Step, tally: Tally, method: str, without_guidance: str) -> bool:
    """Whether this call has unconditional rows; raises if it has none and none came before, unless the setting is "ignore".

    A run whose guidance ends early (Lumina's `cfg_trunc_ratio`) is not refused.
    """
    if step.pred_uncond is not None:
        tally.was_guided = True
        return True
    if without_guidance == "raise" and not tally.was_guided:
        raise GuardError(
            f"guard {method!r} works through classifier-free guidance and this call has none, so no image is returned; "
            "call with guidance_scale above 1 (FLUX: true_cfg_scale above 1 and a negative_prompt), or set "
            "without_guidance='ignore' to let such calls pass unguarded."
        )
    if not tally.was_guided:
        tally.idle_message = "Left alone: this call had no classifier-free guidance."
    return False


def guidance_weight(step: Step) -> Tensor:
    """(B, 1, ...) float32: the factor b of the conditional row in `step.pred` = a m_0 + b (m_p - m_0); 1 without guidance.

    That is the scale the pipeline declares, wherever it explains `pred`. Elsewhere (PixArt, FLUX with true CFG keep
    it to themselves; `guidance_rescale` and the like change it) b is measured, each sample for itself: with d = m_p - m_0
    and d' its part orthogonal to m_0, b = <pred, d'> / <d', d'>. So an edit of b's size keeps the proportions that the
    pipeline gave the prompt. Guards that edit `pred` some other way must act after those that ask for b.
    """
    cond, uncond, pred = step.pred_cond, step.pred_uncond, step.pred
    assert cond is not None and pred is not None
    if uncond is None:
        return per_sample(pred.new_ones(len(pred), dtype=torch.float32), pred)
    eps = torch.finfo(pred.dtype).eps
    m, u = pred.float().flatten(1), uncond.float().flatten(1)
    d = cond.float().flatten(1) - u
    turned = d - u * (d * u).sum(1, keepdim=True) / (u * u).sum(1, keepdim=True).clamp(min=1e-12)
    size = (turned * turned).sum(1)
    is_lost = size <= max(1e-6, eps / 4) ** 2 * (u * u).sum(1)
    measured = (m * turned).sum(1) / torch.where(is_lost, 1.0, size)
    if step.guidance_scale is None:
        explains = torch.zeros_like(is_lost)
        declared = torch.zeros_like(measured)
    else:
        declared = torch.full_like(measured, float(step.guidance_scale))
        error = torch.linalg.vector_norm(m - u - declared[:, None] * d, dim=1)
        scale = torch.linalg.vector_norm(u, dim=1) + declared.abs() * torch.linalg.vector_norm(d, dim=1)
        explains = error <= 8 * eps * scale
    refuse(
        is_lost & ~explains,
        lambda: GuardError(
            "the weight of classifier-free guidance cannot be computed, because prompt and negative prompt give the same "
            "prediction, so no image is returned; use another negative prompt."
        ),
    )
    return per_sample(torch.where(explains, declared, measured), pred)


def guided_alike(step: Step, cond: Tensor, uncond: Tensor | None) -> Tensor:
    """(B, ...) float32: other rows m_p', m_0' guided as `step.pred` is, a m_0' + b (m_p' - m_0'); m_p' itself without guidance.

    a is 1 but for `guidance_rescale` and the like, and then measured: with r = pred - b (m_p - m_0), a = <r, m_0> / <m_0, m_0>.
    """
    assert step.pred is not None and step.pred_cond is not None
    if uncond is None or step.pred_uncond is None:
        return cond.float()
    unconditional, b = step.pred_uncond.float(), guidance_weight(step)
    rest = step.pred.float() - b * (step.pred_cond.float() - unconditional)
    size = (unconditional * unconditional).flatten(1).sum(1)
    a = (rest * unconditional).flatten(1).sum(1) / size.clamp(min=1e-12)
    is_one = ((a - 1).abs() <= 8 * torch.finfo(step.pred.dtype).eps) | (size <= 1e-12)
    return per_sample(torch.where(is_one, 1.0, a), rest) * uncond.float() + b * (cond.float() - uncond.float())


def encode_phrases(run: Run, text: str, method: str) -> PromptEmbeds:
    """Conditioning of `text`, one row for each image (B, ...); warns if the text fills the encoder's window to its end."""
    embeds = run.encode([text])
    if len(text.encode()) + 2 >= embeds.prompt.shape[1]:  # no tokenizer makes more tokens than bytes
        longer = run.encode([f"{text}, and"]).prompt
        if longer.shape == embeds.prompt.shape and torch.allclose(embeds.prompt, longer, rtol=1e-3, atol=1e-3):
            warnings.warn(
                f"the phrases of guard {method!r} fill the text encoder's window of {embeds.prompt.shape[1]} tokens, so their "
                "tail may be lost; use fewer or shorter phrases.",
                stacklevel=2,
            )
    return embeds.map(lambda part: part.expand(run.batch_size, *part.shape[1:]))


def of_length(embeds: PromptEmbeds, length: int) -> PromptEmbeds | None:
    """`embeds` (N, L, D) with L = `length`, by padding under the mask; None without a mask, or if it is longer.

    Only Lumina's prompts have lengths of their own.
    """
    missing = length - embeds.prompt.shape[1]
    if missing == 0:
        return embeds
    if missing < 0 or embeds.mask is None:
        return None
    return embeds._replace(prompt=F.pad(embeds.prompt, (0, 0, 0, missing)), mask=F.pad(embeds.mask, (0, missing)))
