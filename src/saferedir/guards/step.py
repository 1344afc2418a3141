"""What passes between the seam and a guard: the facts of a run and of each step, and answers that are more than one tensor.

Guard authors import all of it from `guard`, where the points of intervention are.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.schedules import Coefficients
from saferedir.pipelines.solver import Solver
from saferedir.pipelines.text_encoders import TextEncoder
from saferedir.utils.renamed import old_name


def _no_encoder(texts: Sequence[str]) -> PromptEmbeds:
    raise GuardError("this run has no text encoder at hand, so a guard that needs its texts encoded cannot start.")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Facts of one pipeline call, fixed from its first denoiser call on.

    Attributes:
        batch_size: B, images of this call (prompts x images per prompt).
        num_steps: sampling steps.
        num_evaluations: denoiser calls (more than steps with Heun, KDPM2, PNDM).
        timesteps: training-scale time of each evaluation, 0..1000.
        family: name of the pipeline family.
        prediction_type: what the denoiser predicts, as `schedules.prediction_type` has it.
        guided: whether classifier-free guidance is on (where its halves come one after the other: whether a half
            came yet).
        guidance_scale: weight of classifier-free guidance, None where unknown.
        device: of the denoiser's latents.
        dtype: of the denoiser's latents.
        retry_level: one level an image; above 0 the last run's image was unsafe, so act from step 0 on, more strongly the higher.
        encode: texts -> their conditioning (N, ...) by the pipeline's own text encoders, as long as the run's prompts.
        input_notes: one text an image on what was done to the caller's inputs before the run, "" for nothing; () for none.
        text_encoders: the text encoders themselves, in the order of `families`; filled only if a guard has `needs_text`.
        solver: the scheduler's update, for a latent of the guard's own; there only if a guard has `extra_latents`.

    Example:
        >>> import torch
        >>> from saferedir.guard import Run
        >>> run = Run(
        ...     batch_size=2, num_steps=30, num_evaluations=30, timesteps=(), family="sd", prediction_type="epsilon",
        ...     guided=True, guidance_scale=7.5, device=torch.device("cpu"), dtype=torch.float32,
        ... )
        >>> run.guided and run.retry_level == ()
        True
    """

    batch_size: int
    num_steps: int
    num_evaluations: int
    timesteps: tuple[float, ...]
    family: str
    prediction_type: str
    guided: bool
    guidance_scale: float | None
    device: torch.device
    dtype: torch.dtype
    retry_level: tuple[int, ...] = ()
    input_notes: tuple[str, ...] = ()
    encode: Callable[[Sequence[str]], PromptEmbeds] = dataclasses.field(default=_no_encoder, repr=False, compare=False)
    text_encoders: tuple[TextEncoder, ...] = dataclasses.field(default=(), repr=False, compare=False)
    solver: Solver | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def retry_levels(self) -> Tensor:
        """(B,) int64 on `device`: `retry_level`, zeros where that is ()."""
        if not any(self.retry_level):
            return torch.zeros(self.batch_size, dtype=torch.long, device=self.device)
        return torch.tensor(self.retry_level, device=self.device)

    @property
    def towers(self) -> tuple[TextEncoder, ...]:
        """Old name of `text_encoders`."""
        warnings.warn("Run.towers is an old name; read Run.text_encoders.", DeprecationWarning, stacklevel=2)
        return self.text_encoders

    @property
    def insist(self) -> tuple[int, ...]:
        """Old name of `retry_level`."""
        warnings.warn("Run.insist is an old name; read Run.retry_level.", DeprecationWarning, stacklevel=2)
        return self.retry_level


@dataclass(frozen=True, kw_only=True)
class Step:
    """One moment of the sampling: what a guard reads there.

    A guard is given one Step before the denoiser call and another after it. In each, `conditioning`, `pred` and `x0` are the
    latest when the guard is called, with the edits of the guards before it.

    Before the denoiser call (`on_prompt`, `on_step_start`) there is no prediction yet: `pred*` and `x0` are None and `x_t` is
    `model_input`, the latents as the denoiser gets them. Variance-exploding schedulers divide their latents by
    sqrt(1 + sigma^2) for the denoiser; `alpha` and `sigma` are then divided alike, so that ``x_t = alpha x0 + sigma eps`` holds
    at every point. After the call `x_t`, `alpha`, `sigma` are in the sampler's own frame.

    Texts are private: keep them out of logs and messages.

    Attributes:
        run: facts of the whole call.
        state: what the guard's `start` returned.
        index: 0-based sampling step.
        evaluation: 0-based denoiser call; several share a step with Heun, KDPM2, PNDM.
        num_steps: sampling steps.
        t: (B,) float32, training-scale time, 0..1000.
        alpha: (B, 1, ...) float32, coefficient of x0 in x_t.
        sigma: (B, 1, ...) float32, coefficient of the noise in x_t.
        x_t: (B, C, h, w), the latents.
        model_input: (B, C, h, w), the latents as the denoiser gets them.
        conditioning: embeddings of the prompts and negative prompts.
        guidance_scale: weight of classifier-free guidance, None where unknown.
        pred_cond: (B, C, h, w), prediction under the prompts, in the latents' dtype.
        pred_uncond: (B, C, h, w), prediction under the negative prompts; None without guidance.
        pred_extra: (B, C, h, w) for each extra row of this guard.
        pred_extra_uncond: (B, C, h, w), unconditional prediction at `extra_latents`; None without guidance, or without those.
        extra_latents: (B, C, h, w), latents of the extra rows where these had their own, in the sampler's frame.
        pred: (B, C, h, w), the guided prediction.
        x0: (B, C, h, w) float32, the denoised estimate of `pred`.
        x0_uncond: (B, C, h, w) float32, the denoised estimate of `pred_uncond`.
        x0_previous: (B, C, h, w) float32, `x0` of the evaluation before.
        frame: `alpha` and `sigma` of all images, on the CPU; there in every step that the seam makes.
        prompts: (B,) texts of the images, None where the caller gave embeddings; filled only if a guard has `needs_text`.
        is_encoded: (B,) whether the prompts' embeddings, pooled ones with them, were made from text, as the pipeline gave them;
            filled only if a guard has `needs_text`.
        is_negative_encoded: (B,) the same of the negative prompts.

    Example:
        >>> from saferedir.guard import Guard, Step
        >>> class Halved(Guard):
        ...     def on_prediction(self, step: Step):
        ...         return 0.5 * (step.pred_cond + step.pred)
        >>> Halved.on_prediction is not Guard.on_prediction
        True
    """

    run: Run
    state: Any
    index: int
    evaluation: int
    num_steps: int
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    x_t: Tensor
    model_input: Tensor
    conditioning: Conditioning
    guidance_scale: float | None
    pred_cond: Tensor | None = None
    pred_uncond: Tensor | None = None
    pred_extra: tuple[Tensor, ...] = ()
    pred_extra_uncond: Tensor | None = None
    extra_latents: Tensor | None = None
    pred: Tensor | None = None
    x0: Tensor | None = None
    x0_uncond: Tensor | None = None
    x0_previous: Tensor | None = None
    prompts: tuple[str | None, ...] = dataclasses.field(default=(), repr=False)
    is_encoded: tuple[bool, ...] = dataclasses.field(default=(), repr=False)
    is_negative_encoded: tuple[bool, ...] = dataclasses.field(default=(), repr=False)
    frame: Coefficients | None = dataclasses.field(default=None, repr=False)

    @property
    def numbers(self) -> tuple[float, float]:
        """alpha and sigma as numbers, the same for all images; read from `frame`, so that nothing waits for the device."""
        if self.frame is not None:
            return self.frame.numbers
        return float(self.alpha.flatten()[0]), float(self.sigma.flatten()[0])

    @property
    def prompt_embeds(self) -> Tensor:
        """(B, L, D): `conditioning.cond.prompt`."""
        return self.conditioning.cond.prompt

    @property
    def negative_prompt_embeds(self) -> Tensor | None:
        """(B, L, D): `conditioning.uncond.prompt`, None where there is none."""
        uncond = self.conditioning.uncond
        return None if uncond is None else uncond.prompt

    @property
    def pooled(self) -> Tensor | None:
        """(B, P): `conditioning.cond.pooled`."""
        return self.conditioning.cond.pooled

    @property
    def prompt_mask(self) -> Tensor:
        """(B, L) bool: `conditioning.cond.mask`, all true where the denoiser is given no mask."""
        prompt, _, mask = self.conditioning.cond
        return torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device) if mask is None else mask.bool()


class SkipFeatures(NamedTuple):
    """Features that a UNet's skip connection brings to one layer of its up blocks, in this denoiser call.

    Attributes:
        cond: (B, C, h, w), of the prompts' rows.
        uncond: (B, C, h, w), of the negative prompts' rows; None without guidance.
        extra: (B, C, h, w) for each extra row of this guard.
        stage: 0 in the widest layers (1280 hidden channels in Stable Diffusion), 1 at the next width (640), and so on.

    Example:
        >>> import torch
        >>> from saferedir.guard import SkipFeatures
        >>> SkipFeatures(torch.zeros(1, 4, 8, 8), None, (), stage=0).cond.shape
        torch.Size([1, 4, 8, 8])
    """

    cond: Tensor
    uncond: Tensor | None
    extra: tuple[Tensor, ...]
    stage: int


class AttentionFeatures(NamedTuple):
    """What attention to the prompt brings to the image in one layer of the denoiser, before the layer's output projection.

    Attributes:
        cond: (B, N, D), N image tokens of the prompts' rows.
        uncond: (B, N, D), of the negative prompts' rows; None without guidance, and where they come in a call of their own.
        extra: (B, N, D) for each extra row of this guard.
        layer: 0-based count of such layers in this denoiser call.

    Example:
        >>> import torch
        >>> from saferedir.guard import AttentionFeatures
        >>> AttentionFeatures(torch.zeros(1, 64, 32), None, (), layer=0).cond.shape
        torch.Size([1, 64, 32])
    """

    cond: Tensor
    uncond: Tensor | None
    extra: tuple[Tensor, ...]
    layer: int


class Embeds(NamedTuple):
    """The older form of a guard's answer, still taken: parts to put in place of those of a `Conditioning`; None leaves one.

    Attributes:
        prompt: (B, L, D) of the conditional half.
        negative: (B, L, D) of the unconditional half; ignored, with the two below, where there is none.
        pooled: (B, P) of the conditional half.
        negative_pooled: (B, P).
        negative_mask: (B, L).
    """

    prompt: Tensor | None = None
    negative: Tensor | None = None
    pooled: Tensor | None = None
    negative_pooled: Tensor | None = None
    negative_mask: Tensor | None = None

    def onto(self, given: Conditioning) -> Conditioning:
        """These parts as a whole conditioning, in place of `given`."""
        prompt = given.cond.prompt if self.prompt is None else self.prompt
        known = None if given.uncond is None else given.uncond.prompt
        negative = known if self.negative is None else self.negative
        uncond = None if negative is None else PromptEmbeds(negative, self.negative_pooled, self.negative_mask)
        return Conditioning(PromptEmbeds(prompt, self.pooled), uncond)


#: what a guard may answer where it is asked for conditioning; a Tensor stands for the prompts' embeddings (B, L, D) alone
Conditioned = Tensor | Conditioning | Embeds


class SecondLatents(NamedTuple):
    """Latents of a guard's own, sampled beside the image's.

    Attributes:
        latents: (B, C, h, w), in the sampler's frame.
        rows: (B,) bool, the images that have some.

    Example:
        >>> import torch
        >>> from saferedir.guard import SecondLatents
        >>> second = SecondLatents(torch.zeros(2, 4, 8, 8), torch.tensor([True, False]))
        >>> int(second.rows.sum())
        1
    """

    latents: Tensor
    rows: Tensor


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
