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
        num_steps: sampling steps; num_evaluations: denoiser calls (more with Heun, KDPM2, PNDM).
        timesteps: training-scale time of each evaluation, 0..1000.
        family: name of the pipeline family; prediction_type: as `schedules.prediction_type` has it.
        guided: whether classifier-free guidance is on (where its halves come one after the other: whether a half
            came yet); guidance_scale: its weight, None where unknown.
        retry_level: one level an image; above 0 the last run's image was unsafe, so act from step 0 on, more strongly the higher.
        device, dtype: of the denoiser's latents.
        encode: texts -> their conditioning (N, ...) by the pipeline's own text encoders, as long as the run's prompts.
        text_encoders: the text encoders themselves, in the order of `families`; filled only if a guard has `needs_text`.
        solver: the scheduler's update, for a latent of the guard's own; there only if a guard has `extra_latents`.
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
    encode: Callable[[Sequence[str]], PromptEmbeds] = dataclasses.field(default=_no_encoder, repr=False, compare=False)
    text_encoders: tuple[TextEncoder, ...] = dataclasses.field(default=(), repr=False, compare=False)
    solver: Solver | None = dataclasses.field(default=None, repr=False, compare=False)

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
    """One moment of the sampling as a guard may know it. Shapes are those of docs/architecture.md.

    A guard is given one for the time before the denoiser call and another for the time after it. In each, `conditioning`,
    `pred` and `x0` are the latest when it is asked, with the edits of the guards before it.

    Before the denoiser call (`on_prompt`, `on_step_start`) there is no prediction yet: `pred*` and `x0` are
    None and `x_t` is `model_input`, the latents as the denoiser gets them. Variance-exploding schedulers
    divide their latents by sqrt(1 + sigma^2) for the denoiser; `alpha` and `sigma` are then divided alike,
    so that ``x_t = alpha x0 + sigma eps`` holds at every point. After the call `x_t`, `alpha`, `sigma` are
    in the sampler's own frame. `pred`, `pred_cond`, `pred_uncond` have the latents' dtype; `x0*` are float32.

    Where extra rows had latents of their own, these are `extra_latents` in the sampler's frame, and `pred_extra_uncond` is
    the unconditional prediction for them (None without guidance).

    `prompts`, the images' texts (None where unknown: the caller gave embeddings), is filled only if a guard has
    `needs_text`. Texts are private: keep them out of logs and messages.
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
    """What a UNet hands round its middle to one layer of its up blocks, in this denoiser call.

    cond, uncond (None without guidance), and one of `extra` for each extra row of this guard: (B, C, h, w). stage: 0 in the
    widest layers (1280 hidden channels in Stable Diffusion), 1 at the next width (640), and so on.
    """

    cond: Tensor
    uncond: Tensor | None
    extra: tuple[Tensor, ...]
    stage: int


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
        """The same as a whole conditioning, in place of `given`."""
        prompt = given.cond.prompt if self.prompt is None else self.prompt
        known = None if given.uncond is None else given.uncond.prompt
        negative = known if self.negative is None else self.negative
        uncond = None if negative is None else PromptEmbeds(negative, self.negative_pooled, self.negative_mask)
        return Conditioning(PromptEmbeds(prompt, self.pooled), uncond)


#: what a guard may answer where it is asked for conditioning; a Tensor stands for the prompts' embeddings (B, L, D) alone
Conditioned = Tensor | Conditioning | Embeds


class SecondLatents(NamedTuple):
    """Latents of a guard's own, beside the image's.

    Attributes:
        latents: (B, C, h, w), in the sampler's frame.
        rows: (B,) bool, the images that have some.
    """

    latents: Tensor
    rows: Tensor


def __getattr__(name: str) -> Any:
    return old_name(__name__, name)
