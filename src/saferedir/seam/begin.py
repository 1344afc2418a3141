"""The facts of a run, read at its first denoiser call: rows, guidance, timesteps, channels.

Reads a live pipeline and changes nothing. Used by `seam.seam`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from saferedir.errors import GuardError
from saferedir.guards.base import Run
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.denoiser_call import Call
from saferedir.pipelines.encoding import encode_to_length
from saferedir.pipelines.families import Family, is_compiled
from saferedir.pipelines.families.facts import Part
from saferedir.pipelines.guiders import scale_of
from saferedir.pipelines.schedules import (
    evaluation_steps,
    prediction_type,
    read_schedule,
    scheduler_kind,
    training_times,
)
from saferedir.pipelines.text_encoders import make_text_encoders
from saferedir.pipelines.text_settings import encoder_arguments
from saferedir.utils.host_copies import on_host
from saferedir.utils.host_values import knowing_host_values


def run_of(
    pipe: Any,
    family: Family,
    call: Call,
    settings: Mapping[str, Any],
    asked: Sequence[tuple[int, ...]],
    begins: Tensor | float | None,
    with_text_encoders: bool,
) -> tuple[Run, int, tuple[Part, ...]]:
    """(run, index of its first evaluation in the scheduler's timesteps, blocks of rows of a call) from its first denoiser call.

    `settings`: the variables of the pipeline's own call. `asked`: retry levels, a tuple of images' levels for each
    attachment that has some. `begins`: timestep of the run's first evaluation, if known.
    """
    latents, scheduler = call.latents, pipe.scheduler
    is_double = is_guided(pipe, family, settings)
    parts = parts_of(pipe, family, settings, is_guided=is_double)
    if is_double and call.kwargs.get("guess_mode"):
        raise GuardError("guess_mode hides the negative prompt from the ControlNet; guarded, leave it off.")
    # a pipeline may start late (img2img) or stop early (SDXL's denoising_end); it says so before its first call
    count = getattr(pipe, "_num_timesteps", None)
    is_asked = isinstance(begins, Tensor) and getattr(scheduler, "begin_index", None) is None
    read = read_schedule(scheduler, *([begins] if is_asked and isinstance(begins, Tensor) else []))
    first = float(read[0]) if read else None if isinstance(begins, Tensor) else begins
    offset, timesteps = evaluation_span(scheduler, count, first)
    if not all(map(math.isfinite, timesteps)):
        raise GuardError(
            f"{type(scheduler).__name__} has no timesteps for this run (NaN); ask for more steps than one, or make it with "
            "shift_terminal=None."
        )
    rows = latents.shape[0]
    if not timesteps or rows % len(parts):
        raise GuardError(f"cannot follow this run: {rows} rows, {len(timesteps)} timesteps, blocks of rows {parts}.")
    batch, length = rows // len(parts), call.embeds.prompt.shape[1]
    if any(len(levels) != batch for levels in asked):
        raise GuardError(f"retry_level has another length than the run's {batch} images; run the pipeline as before.")

    spoken = encoder_arguments(pipe, settings) if family.has_text else {}

    def encode(texts: Sequence[str]) -> PromptEmbeds:
        if not family.has_text:
            raise GuardError(f"a {type(pipe).__name__} reads no text, so there is nothing to encode words with.")
        if family.encoder_reads_image:
            raise GuardError(words_need_no_image(pipe))
        if latents.device.type == "cpu" or _has_compiled_encoder(pipe, family):
            return encode_to_length(pipe, texts, length, spoken)
        with knowing_host_values() as known:
            embeds = encode_to_length(pipe, texts, length, spoken)
            known.remember(embeds.mask)
        return embeds

    run = Run(
        batch_size=batch,
        num_steps=evaluation_steps(scheduler, timesteps)[-1] + 1,
        num_evaluations=len(timesteps),
        timesteps=times_of(scheduler, family, offset, timesteps),
        family=family.name,
        prediction_type=prediction_type(scheduler),
        guided=is_double,
        guidance_scale=guidance_scale_of(pipe, family, settings),
        device=latents.device,
        dtype=latents.dtype,
        retry_level=tuple(max(levels) for levels in zip(*asked, strict=True)) if asked else (0,) * batch,
        encode=encode,
        text_encoders=make_text_encoders(pipe, family, length) if with_text_encoders else (),
    )
    return run, offset, parts


def _has_compiled_encoder(pipe: Any, family: Family) -> bool:
    """Whether something beside the denoisers is compiled: following host values would be traced together with it."""
    others = (family.denoiser, *family.more_denoisers, *family.conditioned_modules, "vae")
    return any(is_compiled(part) for name, part in pipe.components.items() if name not in others)


def words_need_no_image(pipe: Any) -> str:
    """Why a guard's own words cannot be encoded on a pipeline whose text encoder reads the input image, too."""
    return (
        f"the text encoder of a {type(pipe).__name__} reads the input image beside the prompt, so a guard's own words cannot be "
        "encoded there; use a guard without words of its own (saferedir, duo, safe_denoiser)."
    )


def times_of(scheduler: Any, family: Family, offset: int, timesteps: tuple[float, ...]) -> tuple[float, ...]:
    """Time of each evaluation on the training scale."""
    if family.time_from_sigma and scheduler_kind(scheduler) == "flow":
        return tuple((1000.0 * on_host(scheduler.sigmas)[offset : offset + len(timesteps)].float()).tolist())
    return training_times(scheduler, timesteps)


def is_guided(pipe: Any, family: Family, settings: Mapping[str, Any]) -> bool:
    """Whether this denoiser call has the rows of both halves of guidance."""
    if family.is_sequential or family.cfg_layout == "none":
        return False
    if family.truncates_guidance and settings.get("apply_cfg") is False:
        return False  # it has ended before the first step (Z-Image's cfg_truncation=0 on image to image), and does not come back
    name = "do_classifier_free_guidance"
    if hasattr(type(pipe), name):
        return bool(getattr(pipe, name))
    if name in settings:  # PixArt keeps it to itself
        return bool(settings[name])
    if not family.has_text:  # a class-conditional pipeline compares its own argument with 1
        return float(settings.get("guidance_scale", 1.0)) > 1
    raise GuardError(
        f"a {type(pipe).__name__} does not say whether it guides; its row in pipelines/families cannot be right."
    )


def parts_of(pipe: Any, family: Family, settings: Mapping[str, Any], *, is_guided: bool) -> tuple[Part, ...]:
    """Blocks of rows of a denoiser call, in its order; raises GuardError where the negative prompt would shape the image."""
    parts = family.parts(is_guided=is_guided)
    if "blank" in parts:
        text, image = (float(settings.get(name) or 0.0) for name in ("guidance_scale", "image_guidance_scale"))
        if image > text:
            raise GuardError(
                f"image_guidance_scale={image:g} above guidance_scale={text:g} makes the negative prompt shape the image, past "
                "the guards; use a guidance_scale that is not below it."
            )
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        parts = (*parts, "perturbed")
    return parts


def is_unguided_now(pipe: Any) -> bool:
    """Whether the pipeline says that its guidance is off; a callback may have switched it off in the middle of a run."""
    return not getattr(pipe, "do_classifier_free_guidance", True)


def guidance_scale_of(pipe: Any, family: Family, settings: Mapping[str, Any]) -> float | None:
    """Weight of classifier-free guidance; distilled guidance (FLUX's `guidance_scale`) is another thing."""
    values = [settings.get("true_cfg_scale")]
    values += (
        [1.0] if family.distilled_guidance else [getattr(pipe, "guidance_scale", None), settings.get("guidance_scale")]
    )
    if family.guiders:
        values.append(scale_of(settings.get("guider")))
    known = [float(value) for value in values if isinstance(value, int | float)]
    return known[0] + family.guidance_offset if known else None


def latent_channels(denoiser: nn.Module, family: Family, latents: Tensor) -> int:
    """Channels of the sampler's latents: what the denoiser both takes and returns."""
    packing = family.packing
    config: Any = denoiser.config
    # a control LoRA widens what the denoiser takes, in its config, too; what it returns stays in its attribute
    known = [config.get("in_channels"), config.get(family.latent_channels) or getattr(denoiser, "out_channels", None)]
    if packing and packing.ndim == 3 and isinstance(known[1], int):  # those of a pixel of a token
        known[1] *= int(config.get("patch_size") or 1) ** 2
    channels = min([latents.shape[-1 if packing else 1], *(n for n in known if isinstance(n, int))])
    return channels // packing.channels if packing else channels


def evaluation_span(scheduler: Any, count: int | None, first: float | None) -> tuple[int, tuple[float, ...]]:
    """(offset, timesteps): where the run begins in `scheduler.timesteps`, and the timestep of each evaluation.

    `count`: evaluations the pipeline announces, fewer than the scheduler's where it starts late (img2img) or stops
    early (SDXL's denoising_end); None if it announces nothing. `first`: timestep of the first evaluation, if known.
    The start is the scheduler's `begin_index`; schedulers without one say nothing, and then it is the place where
    `first` stands, of several such places the one from which `count` evaluations reach the end.
    """
    every = [float(value) for value in on_host(scheduler.timesteps).tolist()]
    offset = getattr(scheduler, "begin_index", None)
    if offset is None:
        late = len(every) - (count or len(every))
        if first is None or first not in every:
            offset = 0
        else:
            offset = late if 0 <= late and every[late] == first else every.index(first)
    return offset, tuple(every[offset:][: count or None])
