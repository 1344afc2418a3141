"""train_verifier: images of the bare pipeline, a network that tells them apart under noise and small attacks, a threshold.

Labels are those of the prompts, some of which the model does not obey; `choose_threshold` allows for that.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate

from saferedir.errors import GuardConfigError
from saferedir.guards.base import Guard
from saferedir.guards.image_verifier import ImageVerifier, ImageVerifierConfig
from saferedir.guards.storage import find_guard
from saferedir.metrics import Rate, auroc
from saferedir.pipelines.fingerprint import backbone_fingerprint, check_backbone
from saferedir.pipelines.guiders import guided_call
from saferedir.pipelines.safety_checker import without_safety_checker
from saferedir.training.lora import versions
from saferedir.training.saferedir.dataset import Pair, hash_pairs, read_pairs
from saferedir.training.saferedir.rollouts import Prompts, rollout_prompts
from saferedir.training.saferedir.thresholds import choose_threshold
from saferedir.training.work_folder import claim
from saferedir.utils.calls import for_each_prompt
from saferedir.utils.checks import is_number
from saferedir.utils.files import save_tensors
from saferedir.utils.images import output_images, to_rgb
from saferedir.utils.locks import output_lock
from saferedir.utils.progress import SILENT, Progress

LEAST_IMAGES = 40
#: below either on held-out images a verifier is not written
LEAST_AUROC, LEAST_RECALL = 0.9, 0.6
_CHUNK = 16
_SEED = 50_000_000  # of the first image's noise: far from what guards are trained on


@dataclass(frozen=True)
class VerifierTrainConfig:
    """How to train an image verifier.

    Attributes:
        images: how many to generate, half of them from prompts for the concept.
        steps: sampling steps, of which the images take turns: few steps leave other traces.
        guidance_scales: the same of guidance; None: the guard's own, and 7.5.
        optimiser_steps, batch, learning_rate: of AdamW.
        held_out: share of the images, generated last, that sets the threshold and is measured.
        attack: largest root mean square, in pixel values (0 to 1), of the gradient step against the network that a training image
            takes: none in the first third of the steps, growing in the second; 0 for none at all.
        false_positive_rate: wanted of held-out benign images, where the sides do not separate.
        size, width: of the network.
        call: more arguments of the pipeline's call, such as height and width.
    """

    images: int = 800
    steps: tuple[int, ...] = (30, 10, 30, 4)
    guidance_scales: tuple[float, ...] | None = None
    optimiser_steps: int = 500
    batch: int = 32
    learning_rate: float = 2e-3
    held_out: float = 0.25
    attack: float = 0.02
    false_positive_rate: float = 0.005
    size: int = 64
    width: int = 24
    seed: int = 0
    call: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, low in (("images", LEAST_IMAGES), ("optimiser_steps", 1), ("batch", 2), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise GuardConfigError(
                    f"VerifierTrainConfig.{name} is {value!r}; expected a whole number, at least {low}."
                )
        ImageVerifierConfig(concept="", size=self.size, width=self.width)
        if not is_number(self.learning_rate) or self.learning_rate <= 0:
            raise GuardConfigError(
                f"VerifierTrainConfig.learning_rate is {self.learning_rate!r}; expected a number > 0."
            )
        scales = self.guidance_scales
        if scales is not None and (not scales or any(not is_number(scale) or scale < 0 for scale in scales)):
            raise GuardConfigError(
                f"VerifierTrainConfig.guidance_scales is {scales!r}; expected numbers >= 0, or None."
            )
        if not self.steps or any(not isinstance(count, int) or count < 1 for count in self.steps):
            raise GuardConfigError(f"VerifierTrainConfig.steps is {self.steps!r}; expected whole numbers >= 1.")
        for name, least, most in (("held_out", 0.05, 0.5), ("attack", 0.0, 0.5), ("false_positive_rate", 0.0, 0.5)):
            value = getattr(self, name)
            if not is_number(value) or not least <= value <= most:
                raise GuardConfigError(
                    f"VerifierTrainConfig.{name} is {value!r}; expected a number from {least:g} to {most:g}."
                )


def train_verifier(
    pipe: Any,
    guard: str | Path,
    pairs: str | Path | Sequence[Pair],
    *,
    config: VerifierTrainConfig | None = None,
    progress: Progress = SILENT,
    overwrite: bool = False,
) -> ImageVerifier:
    """Train an image verifier for a guard, in the guard's folder; goes on from `<guard>.verifier.work` when that exists.

    Args:
        pipe: a supported pipeline without guards, on which the guard serves.
        guard: the guard's folder.
        pairs: prompts for the concept, their counterparts and benign ones, or their file; best not those of the guard's training.
        config: the settings; default: `VerifierTrainConfig()`.
        progress: shows how far it is.
        overwrite: whether an image verifier that is there may be replaced.

    Returns:
        The image verifier, with threshold and what it measured on held-out images.

    Raises:
        GuardConfigError: too few prompts of a side, an image verifier that is there, an unfinished run of other settings, or one
            that cannot tell held-out images apart (AUROC below `LEAST_AUROC`, recall below `LEAST_RECALL`); then none is written.
        BackboneMismatchError: the guard is for another architecture than the pipeline's.
        OutputError: another run is writing to the folder.

    Example:
        >>> import saferedir as sr  # skipped: minutes of computing
        >>> pipe = sr.load_pipeline("pictoworld")  # doctest: +SKIP
        >>> verifier = sr.train_verifier(pipe, "runs/star", "star.jsonl")  # doctest: +SKIP
    """
    config = config or VerifierTrainConfig()
    rows = read_pairs(Path(pairs).expanduser()) if isinstance(pairs, (str, Path)) else list(pairs)
    with output_lock(find_guard(guard), nested=True) as folder:
        chosen: Guard[Any] = Guard.from_pretrained(folder)
        if chosen.image_verifier is not None and not overwrite:
            raise GuardConfigError(f"{folder} has an image verifier already; pass overwrite=True to replace it.")
        backbone = backbone_fingerprint(pipe)
        check_backbone(chosen.config.backbone or {}, backbone, chosen.method)
        prompts = _prompts(rows, config)
        work = folder.with_name(folder.name + ".verifier.work")
        claim(work, {"config": asdict(config), "prompts": hash_pairs(rows), "backbone": backbone})
        images, labels = _images(pipe, prompts, _scales(chosen, config), config, work, progress)
        verifier = fit_verifier(images, labels, chosen.config.concept, config, progress)
        auc, recall = verifier.config.measured["auroc"], verifier.config.measured["recall"]["rate"]
        if auc < LEAST_AUROC or recall < LEAST_RECALL:
            raise GuardConfigError(
                f"this verifier cannot tell the concept on held-out images (AUROC {auc:.2f}, recall {recall:.2f}; wanted "
                f"{LEAST_AUROC:g} and {LEAST_RECALL:g}), so it is not written; delete {work} and train on more images, or longer."
            )
        given = {**asdict(config), "images": len(images), "prompts_sha256": hash_pairs(rows), "backbone": backbone}
        facts = json.loads(json.dumps({**given, "versions": versions()}))
        verifier.config = replace(verifier.config, training=facts)
        verifier.save(folder)
        for part in work.iterdir():
            part.unlink()
        work.rmdir()
    return verifier


def _prompts(rows: Sequence[Pair], config: VerifierTrainConfig) -> Prompts:
    prompts = rollout_prompts(rows, config.images, config.seed + 1)
    short = min(map(len, prompts))
    if short < LEAST_IMAGES // 2:
        raise GuardConfigError(
            f"there are only {short} prompts of one side to generate images from; give at least {LEAST_IMAGES // 2} of each."
        )
    return Prompts(*(side[:short] for side in prompts))  # as many of both sides


def _scales(guard: Guard[Any], config: VerifierTrainConfig) -> tuple[float, ...]:
    if config.guidance_scales is not None:
        return config.guidance_scales
    trained = getattr(guard.config, "training", {}).get("guidance_scale", 7.5)
    scale = float(trained) if is_number(trained) else 7.5
    return (scale,) if scale <= 1 else tuple(dict.fromkeys((scale, 7.5)))


def _images(
    pipe: Any, prompts: Prompts, scales: Sequence[float], config: VerifierTrainConfig, work: Path, progress: Progress
) -> tuple[Tensor, Tensor]:
    """((N, 3, size, size) bytes, (N,) labels) in a random order of chunks; each chunk is kept as soon as it is made."""
    both = [(text, 1.0) for text in prompts.unsafe] + [(text, 0.0) for text in prompts.benign]
    random.Random(config.seed).shuffle(both)
    parts = []
    with progress.task("generating images", len(both)) as advance, without_safety_checker(pipe), torch.no_grad():
        for number, start in enumerate(range(0, len(both), _CHUNK)):
            chunk, path = both[start : start + _CHUNK], work / f"images-{number:05}.safetensors"
            if not path.exists():
                settings = {
                    "num_inference_steps": config.steps[number % len(config.steps)],
                    "guidance_scale": scales[number // len(config.steps) % len(scales)],
                    **(config.call or {}),
                }
                save_tensors({"images": _generated(pipe, [text for text, _ in chunk], start, settings, config)}, path)
            parts.append(load_file(path)["images"])
            advance(len(chunk))
    return torch.cat(parts), torch.tensor([label for _, label in both])


def _generated(
    pipe: Any, texts: list[str], start: int, settings: dict[str, Any], config: VerifierTrainConfig
) -> Tensor:
    noise = [torch.Generator().manual_seed(_SEED + 1_000_000 * config.seed + start + row) for row in range(len(texts))]
    call = for_each_prompt({**settings, "prompt": texts, "generator": noise, "output_type": "pil"}, len(texts))
    with guided_call(pipe, call) as given:
        images = [np.array(to_rgb(image)) for image in output_images(pipe(**given))]
    pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).float()
    size = (config.size, config.size)
    if pixels.shape[-2:] != size:
        pixels = interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def fit_verifier(
    images: Tensor, labels: Tensor, concept: str, config: VerifierTrainConfig, progress: Progress = SILENT
) -> ImageVerifier:
    """Fit a network on images (N, 3, size, size) in bytes and labels (N,), the last `held_out` of which set its threshold."""
    count = len(images) - round(len(images) * config.held_out)
    shown, shown_labels, held, held_labels = images[:count], labels[:count], images[count:], labels[count:]
    for what, part in (("training", shown_labels), ("held-out", held_labels)):
        if not 0 < part.sum() < len(part):
            raise GuardConfigError(f"the {what} images are all of one side; generate more.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        verifier = ImageVerifier(ImageVerifierConfig(concept=concept, size=config.size, width=config.width)).train()
    optimiser = torch.optim.AdamW(verifier.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.optimiser_steps + 1, pct_start=0.1
    )
    with progress.task("training the image verifier", config.optimiser_steps) as advance:
        for step in range(config.optimiser_steps):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            rows = torch.randint(count, (config.batch,), generator=generator)
            wanted = shown_labels[rows]
            x = disturbed(shown[rows].float() / 255, generator)
            largest = config.attack * min(1.0, max(0.0, 3 * step / config.optimiser_steps - 1))  # plain images first
            if largest:
                x = attacked(verifier, x, wanted, largest, generator)
            loss = binary_cross_entropy_with_logits(verifier(x), 0.02 + 0.96 * wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            advance(1, f"loss {loss.item():.3f}")
    verifier.half().float().eval().requires_grad_(False)  # as it will be stored
    with torch.no_grad():
        logits = torch.cat([verifier(part.float() / 255) for part in held.split(64)])
    unsafe = held_labels > 0
    threshold = choose_threshold(logits[~unsafe], logits[unsafe], config.false_positive_rate)
    measured = {
        "recall": Rate.of(logits[unsafe] >= threshold.value).to_dict(),
        "false_positives": Rate.of(logits[~unsafe] >= threshold.value).to_dict(),
        "auroc": round(auroc(logits, held_labels), 4),
        "rule": threshold.rule,
    }
    verifier.config = replace(verifier.config, threshold=threshold.value, measured=measured)
    return verifier


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as they may come: brighter or darker, noisy, blurred, shifted."""
    batch = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)

    out = images * uniform(0.8, 1.2) + uniform(-0.1, 0.1)
    blurred = torch.rand(batch, 1, 1, 1, generator=generator) < 0.25
    out = torch.where(blurred, avg_pool2d(out, 3, 1, 1, count_include_pad=False), out)
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    out = torch.roll(out, shift, dims=(2, 3))
    noise = torch.randn(out.shape, generator=generator) * uniform(0, 0.1)
    return (out + noise).clamp(0, 1)


def attacked(
    verifier: ImageVerifier, images: Tensor, labels: Tensor, largest: float, generator: torch.Generator
) -> Tensor:
    """Images moved against the network along the gradient, each by a random root mean square of up to `largest`."""
    x = images.clone().requires_grad_(True)
    loss = binary_cross_entropy_with_logits(verifier(x), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    rms = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
    amount = largest * torch.rand(len(x), 1, 1, 1, generator=generator)
    return (images + amount * gradient / rms).clamp(0, 1).detach()
