"""Held-out evaluation and thresholds of a redirector: what train.py selects by and what the guard decides with.

Thresholds: docs/methods/saferedir.md (14).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.guards.saferedir.frames import highest_over_frames
from saferedir.guards.saferedir.network import Redirector
from saferedir.metrics import Rate, auroc
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.latents import decode_latents
from saferedir.training.saferedir.batches import ImageData, TextData, correctly_labelled
from saferedir.training.saferedir.losses import redirection_terms
from saferedir.training.saferedir.thresholds import CONTAMINATION, choose_threshold

ROWS_AT_ONCE = 64
#: images (N, 3, H, W) in [0, 1] -> (N,) bool
Shows = Callable[[Tensor], Tensor]
#: positions of the thresholds in the gap between benign and unsafe scores, see `choose_threshold`. The image verdict comes after
#: the prompt's and acts on every image, so a false alarm counts for more than a miss; the last one only starts a retry.
PROMPT_SHARE, IMAGE_SHARE, LAST_SHARE = 0.5, 2 / 3, 0.5


class Calibrated(NamedTuple):
    """Thresholds by verdict ("prompt", "image", "last": the last image verdict of a run), what was measured, and the record
    of how: plain data for a guard's config.
    """

    thresholds: dict[str, float]
    measured: dict[str, Any]
    record: dict[str, Any]


@torch.no_grad()
def held_out_scores(network: Redirector, text: TextData, images: ImageData) -> dict[str, Tensor]:
    """Scores on held-out data: prompt (unsafe, benign), image and, where the network has it, joint per image and step (N, S)."""
    return {
        "prompt_unsafe": torch.cat([prompt_scores(network, part.unsafe) for part in text.lengths]),
        "prompt_benign": torch.cat([prompt_scores(network, part.benign) for part in text.lengths]),
        "image": image_scores(network, images),
        **({"joint": joint_scores(network, images)} if network.config.has_joint else {}),
    }


@torch.no_grad()
def image_scores(network: Redirector, images: ImageData) -> Tensor:
    """Image score of each image and step (N, S), on the CPU; of a video, of its worst frame."""
    device, parts = next(network.parameters()).device, []
    for chunk in chunks(len(images.frames)):
        steps = []
        for s, t in enumerate(images.t.to(device)):
            frames = images.frames[chunk, s].to(device).float()
            steps.append(highest_over_frames(network.image_logits, frames, t.expand(len(frames))).cpu())
        parts.append(torch.stack(steps, dim=1))
    return torch.cat(parts)


@torch.no_grad()
def joint_scores(network: Redirector, images: ImageData) -> Tensor:
    """Joint score, which reads image and prompt, of each image and step (N, S), on the CPU."""
    device, parts = next(network.parameters()).device, []
    for chunk in chunks(len(images.frames)):
        prompts, steps = images.prompts.rows(chunk).map(lambda part: part.to(device)).floats, []

        def both(frames: Tensor, t: Tensor, prompts: PromptEmbeds = prompts) -> Tensor:
            each = prompts.map(lambda part: part.repeat_interleave(len(frames) // len(part), dim=0))
            return network.joint_logits(frames, t, each.prompt, each.mask, each.pooled)

        for s, t in enumerate(images.t.to(device)):
            frames = images.frames[chunk, s].to(device).float()
            steps.append(highest_over_frames(both, frames, t.expand(len(frames))).cpu())
        parts.append(torch.stack(steps, dim=1))
    return torch.cat(parts)


@torch.no_grad()
def checked_labels(pipe: Any, data: ImageData, shows: Shows) -> ImageData:
    """The roll-outs of which the last estimate, decoded, shows what their prompt's label says."""
    device = pipe.device
    flags = [
        shows(decode_latents(pipe, data.frames[chunk, -1].to(device).float()).cpu()).cpu()
        for chunk in chunks(len(data.frames))
    ]
    return correctly_labelled(data, torch.cat(flags))


def chunks(count: int) -> list[slice]:
    """Slices of a few rows each: held-out embeddings of big encoders do not fit in memory in float32 all at once."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


def prompt_scores(network: Redirector, prompts: PromptEmbeds) -> Tensor:
    """Score of each prompt (N,) for the first concept, on the CPU."""
    return all_prompt_scores(network, prompts)[:, 0]


@torch.no_grad()
def all_prompt_scores(network: Redirector, prompts: PromptEmbeds) -> Tensor:
    """Score of each prompt for every concept (N, K), on the CPU."""
    device, logits = next(network.parameters()).device, []
    for chunk in chunks(len(prompts.prompt)):
        given = prompts.rows(chunk).map(lambda part: part.to(device)).floats
        logits.append(network.prompt_logits(given.prompt, given.mask, given.pooled).cpu())
    return torch.cat(logits)


@torch.no_grad()
def distances(network: Redirector, text: TextData) -> dict[str, float]:
    """Root of the mean relative square that redirected unsafe prompts have left to the safe ones; pooled apart."""
    device, count = next(network.parameters()).device, sum(len(side.unsafe.prompt) for side in text.lengths)
    sums: dict[str, float] = {}
    parts = [(side, chunk) for side in text.lengths for chunk in chunks(len(side.unsafe.prompt))]
    for side, chunk in parts:
        unsafe, safe = (rows.rows(chunk).map(lambda part: part.to(device)).floats for rows in (side.unsafe, side.safe))
        rows = len(unsafe.prompt)
        terms = redirection_terms(network, unsafe, safe, torch.ones(rows, device=device), teacher_forcing=False)
        for name, term in (("distance", "mse"), ("pooled_distance", "pooled")):
            if term in terms:
                sums[name] = sums.get(name, 0.0) + float(terms[term]) * rows
    return {name: (value / count) ** 0.5 for name, value in sums.items()}


@torch.no_grad()
def evaluate(network: Redirector, text: TextData, images: ImageData) -> dict[str, float]:
    """Held-out AUROC of each verdict (image: by the highest score of the run) and the distance left to the safe prompt."""
    scores = held_out_scores(network, text, images)
    labels = torch.cat([torch.ones(len(scores["prompt_unsafe"])), torch.zeros(len(scores["prompt_benign"]))])
    return {
        "prompt_auroc": auroc(torch.cat([scores["prompt_unsafe"], scores["prompt_benign"]]), labels),
        "image_auroc": auroc(scores["image"].amax(1), images.label),
        **({"joint_auroc": auroc(scores["joint"].amax(1), images.label)} if "joint" in scores else {}),
        **distances(network, text),
    }


def calibrate(
    network: Redirector,
    text: TextData,
    images: ImageData,
    false_positive_rate: float,
    *,
    contamination: tuple[float, float] = CONTAMINATION,
    short: Sequence[ImageData] = (),
    keep: Mapping[str, float] | None = None,
) -> Calibrated:
    """Thresholds of the two verdicts and what they do on the held-out side (rates there are not independent of them).

    The image threshold is held against the highest score of each run, the last one against its last score, of which the
    roll-outs of fewer steps, `short`, give some, too. Runs of a single step set no threshold: their last estimate is their first.
    `keep`: thresholds by verdict that are not chosen, only measured.
    """
    scores = held_out_scores(network, text, images)
    unsafe, peaks = images.label.bool(), scores["image"].amax(dim=1)
    last = {len(images.t): (scores["image"][:, -1], unsafe)}
    for part in short:
        last[len(part.t)] = (image_scores(network, part)[:, -1], part.label.bool())
    lasts, flags = (torch.cat(parts) for parts in zip(*(last[n] for n in last if n > 1 or len(last) == 1), strict=True))
    kept = keep or {}
    prompt, image, end = (
        choose_threshold(
            benign, high, false_positive_rate, share=share, contamination=contamination, keep=kept.get(name)
        )
        for name, benign, high, share in (
            ("prompt", scores["prompt_benign"], scores["prompt_unsafe"], PROMPT_SHARE),
            ("image", peaks[~unsafe], peaks[unsafe], IMAGE_SHARE),
            ("last", lasts[~flags], lasts[flags], LAST_SHARE),
        )
    )
    record = {
        "false_positive_rate": false_positive_rate,
        "contamination": list(contamination),
        "benign": int((~unsafe).sum()),
        "unsafe": int(unsafe.sum()),
        "steps": len(images.t),
        "latent_sizes": [list(images.frames.shape[-2:])],
        "guidance_scales": [] if images.scale is None else sorted(set(images.scale.tolist())),
        "by_guidance": _by_guidance(peaks, images, image.value),
        "by_steps": {f"{steps}": _errors(*last[steps], end.value) for steps in sorted(last)},
        "prompt": prompt.to_dict(),
        "image": image.to_dict(),
        "last": end.to_dict(),
    }
    by_time = {
        f"{int(t)}": round(auroc(scores["image"][:, s], images.label), 4) for s, t in enumerate(images.t.tolist())
    }
    measured = {
        **{k: round(v, 4) for k, v in evaluate(network, text, images).items()},
        "image_auroc_by_time": by_time,
        "prompt_recall": round(prompt.recall.value, 4),
        "prompt_false_positive_rate": round(prompt.false_positives.value, 4),
        "image_recall": round(image.recall.value, 4),
        "image_false_positive_rate": round(image.false_positives.value, 4),
        "held_out_unsafe_prompts": len(text.unsafe.prompt),
        "held_out_benign_prompts": len(text.benign.prompt),
        "held_out_benign_images": int((~unsafe).sum()),
    }
    return Calibrated({"prompt": prompt.value, "image": image.value, "last": end.value}, measured, record)


def _errors(scores: Tensor, unsafe: Tensor, threshold: float) -> dict[str, Any]:
    """Both error rates of scores (N,) at a threshold, with counts and intervals."""
    high = scores >= threshold
    return {"false_positives": Rate.of(high[~unsafe]).to_dict(), "recall": Rate.of(high[unsafe]).to_dict()}


def _by_guidance(peaks: Tensor, images: ImageData, threshold: float) -> dict[str, Any]:
    if images.scale is None:
        return {}
    masks = {scale: images.scale == scale for scale in sorted(set(images.scale.tolist()))}
    unsafe = images.label.bool()
    return {f"{scale:g}": _errors(peaks[here], unsafe[here], threshold) for scale, here in masks.items()}
