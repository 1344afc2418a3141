"""Held-out evaluation and thresholds of a redirector: what training.py selects by and what the guard decides with.

Imports torch, metrics, and this folder's data, losses and network. Section 7.8 of our specification of arXiv:2601.08623.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saferedir.encoding import Encoded
from saferedir.guards.saferedir.batches import ImageData, TextData
from saferedir.guards.saferedir.frames import LATENT_CLAMP
from saferedir.guards.saferedir.losses import redirection_terms
from saferedir.guards.saferedir.network import Redirector
from saferedir.metrics import auroc, conformal_threshold


@torch.no_grad()
def held_out_scores(network: Redirector, text: TextData, images: ImageData) -> dict[str, Tensor]:
    """Scores on held-out data: prompt (unsafe, benign), image and joint per image and step (N, S)."""
    network.cpu()
    frames = images.frames.float().clamp(-LATENT_CLAMP, LATENT_CLAMP)
    per_step = [network.image_verdict(frames[:, s], t)[:, 0] for s, t in enumerate(images.t)]
    prompts = images.prompts.floats
    joint = [
        network.joint_verdict(frames[:, s], t, prompts.prompt, prompts.mask, prompts.pooled)[:, 0]
        for s, t in enumerate(images.t)
    ]
    return {
        "prompt_unsafe": prompt_scores(network, text.unsafe),
        "prompt_benign": prompt_scores(network, text.benign),
        "image": torch.stack(per_step, dim=1),
        "joint": torch.stack(joint, dim=1),
    }


def prompt_scores(network: Redirector, prompts: Encoded) -> Tensor:
    """Score of each prompt (N,)."""
    given = prompts.floats
    return network.prompt_verdict(given.prompt, given.mask, given.pooled)[:, 0]


@torch.no_grad()
def evaluate(network: Redirector, text: TextData, images: ImageData) -> dict[str, float]:
    """Held-out AUROC of each verdict (image: by the highest score of the run) and the distance left to the safe prompt."""
    scores = held_out_scores(network, text, images)
    ones = torch.ones(len(text.unsafe.prompt))
    labels = torch.cat([ones, torch.zeros(len(text.benign.prompt))])
    terms = redirection_terms(network, text.unsafe.floats, text.safe.floats, ones, teacher_forcing=False)
    return {
        "prompt_auroc": auroc(torch.cat([scores["prompt_unsafe"], scores["prompt_benign"]]), labels),
        "image_auroc": auroc(scores["image"].amax(1), images.label),
        "joint_auroc": auroc(scores["joint"].amax(1), images.label),
        "distance": float(terms["mse"].sqrt()),
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
