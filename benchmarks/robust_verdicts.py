"""How far the image verdict of SafeRedir guards can be silenced by moving an image's latents; the denoiser is not asked.

Run: python benchmarks/robust_verdicts.py --task star --guards pictoworld/star-usual runs/hardened/star-final
Last estimates of guard-validation roll-outs that the CNN judge finds the concept in (of calibrate_guards.py; thresholds were
chosen on these images, weights were not), moved by 20 steps of projected gradient descent within a root mean square. Printed: the
share whose score stays at or above the last threshold, and at or above the image threshold at some time of a 4-step run; and both
error rates of the calibration.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.pictoworld.evaluation import cell, load_judge, rate_of
from saferedir.pictoworld.tasks import TASKS
from saferedir.pipelines.latents import decode_latents

SIZES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2)
TIMES = (751.0, 501.0, 251.0, 1.0)


def moved(guard: SafeRedir, clean: Tensor, size: float, times: tuple[float, ...], count: int = 20) -> Tensor:
    """(N,) the highest score over the times after a move of `size` that makes it small."""

    def peak(latents: Tensor) -> Tensor:
        scores = [guard.image_score(latents, torch.full((len(latents),), t)) for t in times]
        return torch.stack(scores).amax(dim=0)

    move = torch.zeros_like(clean)
    for _ in range(count if size else 0):
        move.requires_grad_(True)
        (gradient,) = torch.autograd.grad(peak(clean + move).sum(), move)
        unit = gradient / gradient.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-12).view(-1, 1, 1, 1)
        move = (move - size / 5 * unit).detach()
        length = move.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-12).view(-1, 1, 1, 1)
        move = move * (size / length).clamp(max=1)
    with torch.no_grad():
        return peak(clean + move)


@torch.no_grad()
def shown_latents(task: str, folder: Path, most: int) -> Tensor:
    """(N, C, h, w) last estimates of 20-step roll-outs that show the concept by the CNN judge."""
    pipe, judge, kept = sr.load_pipeline("pictoworld"), load_judge(), []
    for path in sorted(folder.glob("rollout-*.safetensors")):
        part = load_file(path)
        if len(part["t"]) != 20:
            continue
        latents = part["frames"][:, -1].float()
        kept.append(latents[judge.judge(decode_latents(pipe, latents).clamp(0, 1)).shows(dict(TASKS[task].forget))])
    return torch.cat(kept)[:most]


def main() -> None:
    """Print one row a guard and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="star", choices=list(TASKS))
    parser.add_argument("--guards", nargs="+", default=["pictoworld/star-usual"])
    parser.add_argument("--rollouts", type=Path, default=Path("runs/calibrated"))
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES)
    parser.add_argument("--out", type=Path, default=Path("runs/robust.json"))
    options = parser.parse_args()
    clean = shown_latents(options.task, options.rollouts / f"{options.task}.work", options.n)
    print(
        f"{options.task}: n = {len(clean)}, mean square of the latents {float(clean.square().mean()):.2f}", flush=True
    )
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for place in options.guards:
        guard = SafeRedir.from_pretrained(place)
        config = guard.config
        last = config.image_threshold if config.last_threshold is None else config.last_threshold
        for size in options.sizes:
            rates = {
                "last": rate_of(moved(guard, clean, size, TIMES[-1:]) >= last).to_dict(),
                "image": rate_of(moved(guard, clean, size, TIMES) >= config.image_threshold).to_dict(),
            }
            record[f"{options.task} {place} {size}"] = rates
            print(place, size, *(f"{name}: {cell(rate)}" for name, rate in rates.items()), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
