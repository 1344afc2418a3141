"""Images to latents in the sampler's own frame, (z - shift) * scale with the VAE's own constants, for every family.

Used by `fingerprint` (the constants name a latent space) and `guards/negation/build`. Latents are (N, C, h, w), for
video VAEs (N, C, 1, h, w): as guards see them, so nothing is packed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.families import family_of
from saferedir.pipelines.text_settings import named_arguments
from saferedir.utils.images import to_rgb

#: of all images in one call of an encoder: 8 of 512 pixels, 2 of 1024; in float32 the latter take some 5 GB each
PIXELS_AT_ONCE = 8 * 512 * 512
#: where pipelines keep how many frames a frame of latents stands for
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")


class LatentConstants(NamedTuple):
    """shift and scale, one number each or one a channel: a latent is (z - shift) * scale."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]


class PixelSpace(nn.Module):
    """Stands for the autoencoder of a pipeline that has none: its sampler's frame is pixels in [-1, 1]."""

    config: ClassVar[Mapping[str, Any]] = {}
    encoder = None

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(
            torch.zeros(()), requires_grad=False
        )  # gives a dtype and a device, as an autoencoder does

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        """`pixels` themselves, as the `latent` of an autoencoder's answer."""
        return SimpleNamespace(latent=pixels)


class UnshiftedVAE(nn.Module):
    """An autoencoder whose `shift_factor` its pipeline leaves out (Kandinsky 5, with FLUX's); else as it is."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__["_modules"]
        return modules[name] if name in modules else getattr(modules["vae"], name)

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the autoencoder, without the shift."""
        return {**self.vae.config, "shift_factor": None}


def vae_of(pipe: Any) -> Any:
    """The autoencoder of a pipeline, or `PixelSpace` where its kind has none (`DDPMPipeline`)."""
    name = next((name for name in ("vae", "movq") if hasattr(pipe, name)), None)
    if name is None:
        return PixelSpace()
    vae = getattr(pipe, name)
    is_shifted = vae is not None and vae.config.get("shift_factor")
    return UnshiftedVAE(vae) if is_shifted and family_of(pipe).omits_shift else vae


def latent_constants(vae: Any) -> LatentConstants:
    """The constants in a VAE's config: scaling_factor, shift_factor, and per channel latents_mean and latents_std.

    The last two may be buffers instead (LTX-Video).
    """
    config = vae.config
    kept = dict(vae.named_buffers(recurse=False)) if isinstance(vae, nn.Module) else {}
    mean, std = (config.get(name, kept.get(name)) for name in ("latents_mean", "latents_std"))
    scale = float(config.get("scaling_factor") or 1.0)
    if mean is not None and std is not None:
        return LatentConstants(tuple(float(v) for v in mean), tuple(scale / float(v) for v in std))
    return LatentConstants((float(config.get("shift_factor") or 0.0),), (scale,))


def encodes_videos(vae: Any) -> bool:
    """Whether a VAE's pixels and latents have an axis of frames in time."""
    return "CausalConv3d" in type(getattr(vae.encoder, "conv_in", None)).__name__ or "Wan" in type(vae).__name__


def has_frames(vae: Any) -> bool:
    """Whether the sampler's latents have the VAE's axis of frames; Qwen-Image's VAE of videos is given images one by one."""
    return encodes_videos(vae) and "QwenImage" not in type(vae).__name__


def is_patched(vae: Any) -> bool:
    """Whether the sampler's latents are 2x2 patches of what the VAE encodes to, normalised channel by channel (FLUX.2)."""
    return hasattr(vae, "bn")


def _refuse_patched(vae: Any) -> None:
    if is_patched(vae):
        raise UnsupportedPipelineError(
            f"a {type(vae).__name__}'s latents are normalised patches, into which images cannot be put here; use a guard that "
            "works on prompts, or an image verifier."
        )


@torch.no_grad()
def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """Latents (N, C, h, w) float32 on the CPU from pixels (N, 3, H, W) in [-1, 1]; the mode of the posterior, in float32.

    A VAE that is kept in half precision is lent to float32 for the call, as diffusers' own upcasting does.
    """
    _refuse_patched(vae)
    parameter = next(vae.parameters())
    dtype, device = parameter.dtype, parameter.device
    values = pixels.to(device, torch.float32)
    values = values[:, :, None] if encodes_videos(vae) else values
    if dtype == torch.float32:
        encoded = vae.encode(values)
    else:
        try:
            encoded = nn.Module.to(vae, torch.float32).encode(values)  # diffusers' own `to` warns
        finally:
            nn.Module.to(vae, dtype)
    if hasattr(encoded, "latent_dist"):
        z: Tensor = encoded.latent_dist.mode()
    elif hasattr(encoded, "latent"):  # AutoencoderDC has no posterior
        z = encoded.latent
    else:
        raise UnsupportedPipelineError(
            f"{type(vae).__name__} encodes to {type(encoded).__name__}, which has neither latent_dist nor latent; "
            "supported: AutoencoderKL, AutoencoderDC, AutoencoderKLWan."
        )
    z = z[:, :, 0] if z.ndim == 5 and not has_frames(vae) else z
    shift, scale = (torch.tensor(v, device=device).view(1, -1, *(1,) * (z.ndim - 2)) for v in latent_constants(vae))
    return ((z - shift) * scale).cpu()


def decode_latents(pipe: Any, latents: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] of latents (N, C, h, w) in the sampler's frame, in the graph.

    Raises UnsupportedPipelineError for a VAE of videos.
    """
    vae = vae_of(pipe)
    _refuse_patched(vae)
    if hasattr(vae, "quantize"):
        raise UnsupportedPipelineError(f"a {type(vae).__name__} is decoded by its pipeline only.")
    if isinstance(vae, PixelSpace):
        return (latents / 2 + 0.5).clamp(0, 1)
    if has_frames(vae):
        raise UnsupportedPipelineError(f"a {type(vae).__name__} decodes videos; only images can be decoded here.")
    shift, scale = (
        torch.tensor(v, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1) for v in latent_constants(vae)
    )
    z = (latents / scale + shift).to(vae.dtype)
    pixels: Tensor
    if encodes_videos(vae):
        pixels = vae.decode(z[:, :, None], return_dict=False)[0][:, :, 0]
    else:
        pixels = vae.decode(z, return_dict=False)[0]
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def fit_image(image: Image.Image, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height, width, 3) bytes: as `utils.images.to_rgb` has it, cropped at the centre to the aspect ratio, and resized."""
    return np.array(ImageOps.fit(to_rgb(image), (width, height), Image.Resampling.LANCZOS))


def encode_images(vae: Any, images: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]) -> Tensor:
    """Latents (N, C, h, w) of images (H, W, 3), all of one size."""
    pixels = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2)
    count = max(1, PIXELS_AT_ONCE // pixels[0, 0].numel())
    return torch.cat([encode_pixels(vae, part.float() / 127.5 - 1.0) for part in pixels.split(count)])


def default_size(pipe: Any) -> tuple[int, int]:
    """(height, width) in pixels that the pipeline generates by default; raises where nothing says it.

    A number in the call's signature (Sana, AuraFlow, Wan) wins over the configs, as it does in the pipeline.
    """
    height, width = (_call_default(pipe, name) for name in ("height", "width"))
    if height and width:
        return height, width
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    sample = None if denoiser is None else getattr(denoiser, "_orig_mod", denoiser).config.get("sample_size")
    sample = sample if sample is not None else getattr(pipe, "default_sample_size", None)
    factor = _pixels_per_latent(pipe)
    if sample is None or factor is None:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} does not say at which size it generates; give the height and width of your images."
        )
    height, width = sample if isinstance(sample, list | tuple) else (sample, sample)
    return int(height) * int(factor), int(width) * int(factor)


def call_size(pipe: Any, call: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels of what a call generates; sides that it leaves out are `default_size`'s."""
    height, width = call.get("height"), call.get("width")
    is_scaled = family_of(pipe).keeps_area
    if not (height and width) or is_scaled:
        default = default_size(pipe)
        height, width = height or default[0], width or default[1]
    if not is_scaled:
        return int(height), int(width)
    side = 2 * int(_pixels_per_latent(pipe) or 8)
    scale = math.sqrt(default[0] * default[1] / (width * height))
    return int(height * scale // side * side), int(width * scale // side * side)


def latent_shape(pipe: Any, call: Mapping[str, Any] | None = None) -> tuple[int, int, int, int]:
    """(channels, frames, height, width) of the latents of one image or video of a call, as guards see them; 1 frame for images.

    Raises UnsupportedPipelineError where neither `call` nor the pipeline says the size.
    """
    asked = dict(call or {})
    height, width = call_size(pipe, asked)
    factor = int(_pixels_per_latent(pipe) or getattr(pipe, "vae_scale_factor_spatial", None) or 8)
    frames = asked.get("num_frames") or _call_default(pipe, "num_frames") or 1
    temporal = next((n for name in _TEMPORAL if (n := getattr(pipe, name, None))), 1)
    vae = vae_of(pipe)
    if isinstance(vae, PixelSpace):
        return int(pipe.unet.config.in_channels), 1, int(height), int(width)
    config = vae.config
    channels, patch = channels_of(config) or 16, 2 if is_patched(vae) else 1
    factor *= patch
    return channels * patch**2, (int(frames) - 1) // int(temporal) + 1, int(height) // factor, int(width) // factor


def channels_of(config: Mapping[str, Any]) -> int | None:
    """C of an autoencoder's latents by its config, before patches of them are put together; None where it does not say it."""
    channels = config.get("latent_channels") or config.get("z_dim")
    return int(channels) if channels else None


def _pixels_per_latent(pipe: Any) -> int | None:
    """How many pixels, each way, a latent stands for, where the pipeline or its autoencoder says it; 1 without autoencoder."""
    vae = vae_of(pipe)
    if isinstance(vae, PixelSpace):
        return 1
    if ratio := getattr(pipe, "vae_spatial_compression_ratio", None):  # LTX-Video
        return int(ratio)
    levels = getattr(getattr(vae, "config", None), "block_out_channels", None)
    if not hasattr(pipe, "vae_scale_factor") and levels:
        return int(2 ** (len(levels) - 1))
    factor: int | None = getattr(pipe, "vae_scale_factor", None)
    return factor


def _call_default(pipe: Any, name: str) -> int | None:
    """A whole number that the pipeline's call has as the default of an argument; None for anything else."""
    parameter = named_arguments(pipe).get(name)
    default = None if parameter is None else parameter.default
    return default if isinstance(default, int) and not isinstance(default, bool) else None
