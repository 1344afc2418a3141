"""A toy world with a planted concept: a denoiser that is the posterior mean of a Gaussian, moved by what the prompt says.

x0 ~ N(mu(prompt), SPREAD^2), mu = s CONCEPT + (1 - s) OTHER, s a sigmoid of a probe of the prompt embeddings; the judge
correlates the image with CONCEPT. An image for the IP-Adapter, where one is given, raises s to the adapter's scale times a
sigmoid of how much it means CONCEPT. Everything is differentiable, and a run of a few steps takes some ten milliseconds. No
network draws anything here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from PIL import Image
from tests.conftest import make_pipeline
from tests.contract.pipeline_features import ip_adapter_state
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from saferedir.attacks.latents.ip_adapter import embedding
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.guards.gates import Gate

SPREAD = 0.7
CALL = {"num_inference_steps": 5, "guidance_scale": 1.5}
CONCEPT_PROMPT = "star"
#: benign prompts, whose probe is low
BENIGN = ("tree", "house", "cup of milk")
BENIGN_IMAGE = Image.new("RGB", (32, 32), (128, 128, 128))


def pattern(seed: int) -> Tensor:
    """(1, 4, 8, 8) of -1 and 1."""
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).sign()


CONCEPT, OTHER = 1.5 * pattern(0), pattern(1)


def make_planted() -> Any:
    """The pipeline."""
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    direction, middle, scale = _probe(pipe)
    # parameters, so that a control with random weights has random patterns
    pipe.unet.concept, pipe.unet.other = nn.Parameter(CONCEPT.clone()), nn.Parameter(OTHER.clone())
    alphas = pipe.scheduler.alphas_cumprod
    brightness = 0.3 * pipe.vae.config.scaling_factor
    add_adapter(pipe)
    wanted, middle_of_images, scale_of_images = _image_probe(pipe)

    def of_image(more: Any) -> Any:
        """(B, 1, 1, 1) how much the adapter's image means the concept; 0 without one."""
        embeds = (more.get("added_cond_kwargs") or {}).get("image_embeds")
        if embeds is None:
            return 0.0
        like = cosine_similarity(embeds[0].flatten(1), wanted)
        adapter = next(
            processor.scale[0] for processor in pipe.unet.attn_processors.values() if hasattr(processor, "scale")
        )
        return adapter * torch.sigmoid(scale_of_images * (like - middle_of_images)).reshape(-1, 1, 1, 1)

    def forward(
        sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool = True, **more: Any
    ) -> Any:
        level = alphas[torch.as_tensor(timestep).long().reshape(-1)].reshape(-1, 1, 1, 1).to(sample)
        alpha, sigma = level.sqrt(), (1 - level).sqrt()
        share = torch.sigmoid(scale * (encoder_hidden_states.mean(1) @ direction - middle)).reshape(-1, 1, 1, 1)
        share = share + (1 - share) * of_image(more)
        mu = share * pipe.unet.concept + (1 - share) * pipe.unet.other
        x0 = mu + alpha * SPREAD**2 / (level * SPREAD**2 + sigma**2) * (sample - alpha * mu)
        eps = (sample - alpha * x0) / sigma
        return UNet2DConditionOutput(sample=eps) if return_dict else (eps,)

    def decode(z: Tensor, *args: Any, **more: Any) -> Any:
        return interpolate(z[:, :3] * brightness, scale_factor=4, mode="nearest")

    pipe.unet.forward = forward
    pipe.vae.decoder.forward = decode
    pipe.vae.post_quant_conv.forward = lambda z: z
    return pipe


def add_adapter(pipe: Any) -> None:
    """An IP-Adapter with a tiny image encoder."""
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, image_size=32, patch_size=8,
        projection_dim=16,
    )  # fmt: skip
    pipe.image_encoder = CLIPVisionModelWithProjection(config).eval()
    size = {"height": 32, "width": 32}
    pipe.feature_extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    pipe.unet._load_ip_adapter_weights([ip_adapter_state(pipe.unet)])


@torch.no_grad()
def _image_probe(pipe: Any) -> tuple[Tensor, float, float]:
    shown = interpolate(0.3 * CONCEPT[:, :3] / 1.5 + 0.5, scale_factor=4, mode="nearest").clamp(0, 1)
    wanted, grey = embedding(pipe, shown), embedding(pipe, torch.full_like(shown, 0.5))
    low = float(cosine_similarity(wanted, grey))
    return wanted, (1 + low) / 2, 12 / (1 - low)


def _probe(pipe: Any) -> tuple[Tensor, float, float]:
    def states(text: str) -> Tensor:
        with torch.no_grad():
            return pipe.encode_prompt(text, "cpu", 1, False)[0].mean(1)[0]

    concept, benign = states(CONCEPT_PROMPT), torch.stack([states(text) for text in (*BENIGN, "")])
    direction = concept - benign.mean(0)
    high, low = float(concept @ direction), float((benign @ direction).max())
    return direction, (high + low) / 2, 12 / (high - low)


def shows(images: Tensor) -> Tensor:
    """(B,) bool: the correlation of an image with the concept is above .6."""
    values = interpolate(images, size=(8, 8), mode="nearest").flatten(1) - 0.5
    wanted = CONCEPT[:, :3].flatten(1)
    return torch.cosine_similarity(values, wanted) > 0.6


class NoOp(Guard[GuardConfig]):
    """Attached, and does nothing."""

    method = "no-op"

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return x0


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig(GuardConfig):
    threshold: float = 0.5
    is_soft: bool = False


class Projector(Guard[ProjectorConfig]):
    """Takes the concept's pattern out of x0 where there is much of it, by a hard gate."""

    method = "projector"
    config_class = ProjectorConfig

    def start(self, run: Any) -> dict[str, Tensor]:
        return {}

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        unit = CONCEPT / CONCEPT.norm()
        share = (x0 * unit).sum((1, 2, 3)) / CONCEPT.norm()
        step.state["score"] = share
        hard = (share >= self.config.threshold).to(x0)
        if self.config.is_soft:
            soft = torch.sigmoid((share - self.config.threshold) / 0.1)
            hard = hard + soft - soft.detach()
        return x0 - (hard * share).reshape(-1, 1, 1, 1) * CONCEPT

    def gates(self, state: dict[str, Tensor]) -> dict[str, Gate]:
        return {"pattern": Gate(state["score"], self.config.threshold)} if state else {}

    def differentiable(self) -> Projector:
        return Projector(ProjectorConfig(concept=self.config.concept, threshold=self.config.threshold, is_soft=True))
