"""Held-out evaluation and thresholds of a redirector: what training.py selects by and what the guard decides with.

Imports torch, metrics, and this folder's data, losses and network. Section 7.8 of our specification of arXiv:2601.08623.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saferedir.encoding import Encoded
from saferedir.guards.saferedir.batches import ImageData, TextData
from saferedir.guards.saferedir.frames import highest_over_frames
from saferedir.guards.saferedir.losses import redirection_terms
from saferedir.guards.saferedir.network import Redirector
from saferedir.metrics import auroc, conformal_threshold

ROWS_AT_ONCE = 64


@torch.no_grad()
def held_out_scores(network: Redirector, text: TextData, images: ImageData) -> dict[str, Tensor]:
    """Scores on held-out data: prompt (unsafe, benign), image and joint per image and step (N, S)."""
    device = next(network.parameters()).device
    image, joint = [], []
    for chunk in chunks(len(images.frames)):
        prompts = images.prompts.rows(chunk).map(lambda part: part.to(device)).floats
        for s, t in enumerate(images.t.to(device)):
            frames = images.frames[chunk, s].to(device).float()

            def both(frames: Tensor, t: Tensor, prompts: Encoded = prompts) -> Tensor:
                each = prompts.map(lambda part: part.repeat_interleave(len(frames) // len(part), dim=0))
                return network.joint_verdict(frames, t, each.prompt, each.mask, each.pooled)

            image.append(highest_over_frames(network.image_verdict, frames, t.expand(len(frames))).cpu())
            joint.append(highest_over_frames(both, frames, t.expand(len(frames))).cpu())
    steps = len(images.t)
    return {
        "prompt_unsafe": prompt_scores(network, text.unsafe),
        "prompt_benign": prompt_scores(network, text.benign),
        "image": torch.cat([torch.stack(image[at : at + steps], dim=1) for at in range(0, len(image), steps)]),
        "joint": torch.cat([torch.stack(joint[at : at + steps], dim=1) for at in range(0, len(joint), steps)]),
    }


def chunks(count: int) -> list[slice]:
    """Slices of a few rows each: held-out embeddings of big encoders do not fit in memory in float32 all at once."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE)]


@torch.no_grad()
def prompt_scores(network: Redirector, prompts: Encoded) -> Tensor:
    """Score of each prompt (N,), on the CPU."""
    device, found = next(network.parameters()).device, []
    for chunk in chunks(len(prompts.prompt)):
        given = prompts.rows(chunk).map(lambda part: part.to(device)).floats
        found.append(network.prompt_verdict(given.prompt, given.mask, given.pooled)[:, 0].cpu())
    return torch.cat(found)


@torch.no_grad()
def distances(network: Redirector, text: TextData) -> dict[str, float]:
    """Root of the mean relative square that redirected unsafe prompts have left to the safe ones; pooled apart."""
    device, count = next(network.parameters()).device, len(text.unsafe.prompt)
    sums: dict[str, float] = {}
    for chunk in chunks(count):
        unsafe, safe = (side.rows(chunk).map(lambda part: part.to(device)).floats for side in (text.unsafe, text.safe))
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
    labels = torch.cat([torch.ones(len(text.unsafe.prompt)), torch.zeros(len(text.benign.prompt))])
    return {
        "prompt_auroc": auroc(torch.cat([scores["prompt_unsafe"], scores["prompt_benign"]]), labels),
        "image_auroc": auroc(scores["image"].amax(1), images.label),
        "joint_auroc": auroc(scores["joint"].amax(1), images.label),
        **distances(network, text),
    }


def margin_threshold(benign: Tensor, unsafe: Tensor, false_positive_rate: float, share: float = 0.5) -> float:
    """A threshold that keeps the false-positive rate and, where the classes separate, leaves both a margin.

    The conformal threshold of the benign scores; if 99 % of the unsafe scores lie above it, moved towards them by `share` of
    the gap. With too few benign scores for the rate, the highest of them stands in for the conformal one.
    """
    tau = conformal_threshold(benign, false_positive_rate)
    if tau == float("inf"):
        tau = conformal_threshold(benign, 1.0 / (len(benign) + 1))
    low = float(torch.quantile(unsafe.float(), 0.01))
    return tau + share * max(0.0, low - tau)


def calibrate(
    network: Redirector, text: TextData, images: ImageData, false_positive_rate: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Thresholds of the two verdicts and what they do on the held-out side (rates there are not independent of them)."""
    scores = held_out_scores(network, text, images)
    unsafe = images.label.bool()
    peaks = scores["image"].amax(dim=1)
    prompt = margin_threshold(scores["prompt_benign"], scores["prompt_unsafe"], false_positive_rate)
    image = margin_threshold(peaks[~unsafe], peaks[unsafe], false_positive_rate, share=0.25)
    per_step = {
        f"{int(t)}": round(auroc(scores["image"][:, s], images.label), 4) for s, t in enumerate(images.t.tolist())
    }
    measured = {
        **{k: round(v, 4) for k, v in evaluate(network, text, images).items()},
        "image_auroc_by_time": per_step,
        "prompt_recall": round(float((scores["prompt_unsafe"] >= prompt).float().mean()), 4),
        "prompt_false_positive_rate": round(float((scores["prompt_benign"] >= prompt).float().mean()), 4),
        "image_recall": round(float((peaks[unsafe] >= image).float().mean()), 4),
        "image_false_positive_rate": round(float((peaks[~unsafe] >= image).float().mean()), 4),
        "held_out_unsafe_prompts": len(text.unsafe.prompt),
        "held_out_benign_prompts": len(text.benign.prompt),
        "held_out_benign_images": int((~unsafe).sum()),
    }
    return {"prompt": prompt, "image": image}, measured
