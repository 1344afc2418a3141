"""IP-Adapter: an image that the adapter reads is moved until it means the concept, while the text asks for something else.

Static: an image of the concept itself, at several scales of the adapter (IP-Adapter, arXiv:2308.06721). Optimised: projected
gradient ascent (arXiv:1706.06083) on the cosine of a benign image's embedding with that of the concept's image, in the adapter's
own image encoder, within an l-infinity ball.
Deviations: the concept's image is the bare model's; the pipeline's preprocessing is resizing and normalising, and what is judged
is sent as an image, through the pipeline's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.references import reference_latents
from saferedir.errors import AttackError
from saferedir.pipelines.latents import decode_latents
from saferedir.prompts.sets import PromptItem
from saferedir.target import ImagePrompt, Target
from saferedir.target.given_images import IMAGE_PROMPT, adapter_scale


@dataclass(frozen=True)
class IPAdapterConfig(AttackConfig):
    """Settings of IP-Adapter attacks.

    Attributes:
        scales: of the adapter, >= 0, for the image of the concept; the last one serves the optimised images, too.
        radii: largest changes of a value of the benign image, in (0, 1], ascending; () for the static attack alone.
        iterations: steps of projected gradient ascent.
        prompt: "empty", or "own" for the attacked prompt.
    """

    scales: tuple[float, ...] = (0.3, 0.6, 1.0)
    radii: tuple[float, ...] = (8 / 255, 16 / 255)
    iterations: int = 10
    prompt: str = "empty"
    paper: ClassVar[dict[str, Any]] = {"iterations": 100}

    def __post_init__(self) -> None:
        self.require(bool(self.scales) and all(scale >= 0 for scale in self.scales), "scales", "numbers >= 0")
        holds = all(0 < radius <= 1 for radius in self.radii) and list(self.radii) == sorted(self.radii)
        self.require(holds, "radii", "numbers in (0, 1], ascending")
        self.require_whole("iterations", at_least=0)
        self.require_choice("prompt", ("empty", "own"))


class IPAdapter(Attack[IPAdapterConfig]):
    """Sends an image beside the text. The call's own `ip_adapter_image` is the benign one."""

    name: ClassVar[str] = "ip-adapter"
    keeps_best: ClassVar[bool] = False
    config_class = IPAdapterConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """One candidate for each scale, then every step of the ascent for each radius."""
        config, pipe = self.config, target.pipe
        benign = _require_adapter(target)
        prompt = item.text if config.prompt == "own" else ""
        with adapter_scale(pipe, 0.0):
            clean = reference_latents(target, item.text, generator)
        with torch.no_grad():
            concept = decode_latents(pipe, clean).clamp(0, 1)
            wanted = embedding(pipe, concept)
        for scale in config.scales:
            yield Candidate(
                prompt, image_prompt=ImagePrompt(concept, scale), is_checkpoint=True, label=f"concept, scale {scale:g}"
            )
        for radius in config.radii:
            image = benign.clone()
            for step in range(config.iterations):
                image, loss = _ascended(pipe, image, benign, wanted, radius, 2.5 * radius / config.iterations)
                is_last = step + 1 == config.iterations
                yield Candidate(
                    prompt, image_prompt=ImagePrompt(image, config.scales[-1]), loss=loss, is_checkpoint=is_last,
                    label=f"within {radius * 255:.3g} / 255",
                )  # fmt: skip


def embedding(pipe: Any, images: Tensor) -> Tensor:
    """(N, d) what the adapter's image encoder says of images (N, 3, H, W) in [0, 1], in the graph."""
    processor, encoder = pipe.feature_extractor, pipe.image_encoder
    side = encoder.config.image_size
    resized = interpolate(images, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    mean, spread = (
        torch.tensor(values, device=images.device).view(1, 3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    embeds: Tensor = encoder(((resized - mean) / spread).to(encoder.dtype)).image_embeds
    return embeds.float()


def _ascended(
    pipe: Any, image: Tensor, benign: Tensor, wanted: Tensor, radius: float, step: float
) -> tuple[Tensor, float]:
    """(image after one step of the sign of the gradient, within the ball; 1 - cosine before it)."""
    x = image.detach().requires_grad_(True)
    loss = 1 - cosine_similarity(embedding(pipe, x), wanted).mean()
    (slope,) = torch.autograd.grad(loss, x)
    moved = x.detach() - step * slope.sign()
    return (benign + (moved - benign).clamp(-radius, radius)).clamp(0, 1), float(loss.detach())


def _require_adapter(target: Target) -> Tensor:
    """(1, 3, H, W) the benign image of the call; AttackError without an adapter, or without that image."""
    pipe = target.pipe
    has_encoder = (
        getattr(pipe, "image_encoder", None) is not None and getattr(pipe, "feature_extractor", None) is not None
    )
    if not has_encoder or not hasattr(pipe, "set_ip_adapter_scale"):
        raise AttackError(
            f"this {type(pipe).__name__} has no IP-Adapter with an image encoder; load one with load_ip_adapter first."
        )
    image = target.call.get(IMAGE_PROMPT)
    if image is None:
        raise AttackError(
            f"an attack on an IP-Adapter begins with a benign image; give one as call={{{IMAGE_PROMPT!r}: image}}."
        )
    benign: Tensor = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(image))
    return benign.to(pipe.image_encoder.device)
