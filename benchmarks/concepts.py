"""What a guard of 1, 10, 100 and 1,000 concepts costs a step, at the sizes of Stable Diffusion 1.5; prints a table.

Run: python benchmarks/concepts.py
Random weights: the time does not depend on them. A step is all that the guard's network does in one: image scores of all
concepts, prompt scores, and directions of the four strongest (a real run makes the last two once). CPU seconds; the numbers of
concepts take turns, so that whatever else the machine does meets them alike; the ratio to one concept has a bootstrap interval
over rounds. `--unet` adds the true denoiser with random weights, which is what a step costs beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from saferedir.guards.saferedir.network import Redirector, RedirectorConfig, redirect
from saferedir.guards.saferedir.rows import strongest

COUNTS = (1, 10, 100, 1000)
RANK, MOST = 16, 4


def network(count: int) -> Redirector:
    """A redirector of `count` concepts at the sizes of Stable Diffusion 1.5."""
    names = tuple(f"concept {i}" for i in range(count))
    config = RedirectorConfig(
        prompt_dim=768, latent_strides=(2, 2, 2), rank=RANK, concepts=names, row_heads=True, has_joint=False
    )
    torch.manual_seed(0)
    return Redirector(config).eval().requires_grad_(False)


def step(model: Redirector, embeds: Tensor, x0: Tensor) -> Tensor:
    """All that the network does in one step that fires."""
    score = torch.maximum(model.image_logits(x0, 500.0), model.prompt_logits(embeds))
    chosen, acts = strongest((score > 0).float(), score, MOST)
    return redirect(embeds, model.redirection(embeds, chosen=chosen), acts)


def interleaved(calls: dict[int, Callable[[], object]], rounds: int) -> np.ndarray:
    """CPU seconds (rounds, calls); the order turns from round to round."""
    names, seconds = list(calls), np.zeros((rounds, len(calls)))
    for turn in range(-1, rounds):  # the first round warms up
        for place in np.roll(np.arange(len(names)), turn):
            start = time.process_time()
            calls[names[place]]()
            if turn >= 0:
                seconds[turn, place] = time.process_time() - start
    return seconds


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median of ratios and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    return float(np.median(ratios)), *(float(q) for q in np.quantile(medians, (0.025, 0.975)))


def unet_seconds(batch: int) -> float:
    """Median seconds of one guided step of Stable Diffusion 1.5's denoiser, random weights, bfloat16."""
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).eval().bfloat16()
    latents, embeds = torch.randn(2 * batch, 4, 64, 64).bfloat16(), torch.randn(2 * batch, 77, 768).bfloat16()
    seconds = interleaved({0: lambda: unet(latents, 500, embeds)}, 3)
    return float(np.median(seconds))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--unet", action="store_true", help="also time the true denoiser (3.4 GB)")
    arguments = parser.parse_args()
    embeds, x0 = torch.randn(arguments.batch, 77, 768), torch.randn(arguments.batch, 4, 64, 64)
    models = {count: network(count) for count in COUNTS}
    calls = {count: (lambda model=model: step(model, embeds, x0)) for count, model in models.items()}
    seconds = interleaved(calls, arguments.rounds)
    beside = unet_seconds(arguments.batch) if arguments.unet else 0.0
    print(f"batch {arguments.batch}, {arguments.rounds} rounds, {torch.get_num_threads()} threads")
    print("| concepts | ms a step | ratio to one | rows in float16 | a whole step to one's |\n|---|---|---|---|---|")
    for place, count in enumerate(COUNTS):
        middle, low, high = interval(seconds[:, place] / seconds[:, 0])
        megabytes = 2 * sum(p.numel() for p in models[count].heads.parameters()) / 1e6
        whole = (
            "–"
            if not beside
            else f"{(beside + np.median(seconds[:, place])) / (beside + np.median(seconds[:, 0])):.4f}"
        )
        print(
            f"| {count} | {1e3 * np.median(seconds[:, place]):.2f} | {middle:.3f} [{low:.3f}, {high:.3f}] | "
            f"{megabytes:.1f} MB | {whole} |"
        )


if __name__ == "__main__":
    main()
