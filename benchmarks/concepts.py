"""What a guard of 1, 10, 100 and 1,000 concepts costs a step, at the sizes of Stable Diffusion 1.5; prints a table.

Run: python benchmarks/concepts.py
Random weights: the time does not depend on them. In a step the guard scores the denoised estimate for all concepts and ranks
those that act; once a run it scores the prompt and makes the directions of what acts. A step of a run of 50 is the first and a
fiftieth of the second. CPU seconds; the numbers of concepts take turns, so that whatever else the machine does meets them
alike; the ratio to one concept has a bootstrap interval over rounds. `--unet` adds the true denoiser with random weights, which
is what a step costs beside.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from saferedir.guards.saferedir.network import Redirector, RedirectorConfig, redirect
from saferedir.guards.saferedir.rows import strongest

COUNTS = (1, 10, 100, 1000)
RANK, MOST, STEPS = 16, 4, 50


def network(count: int) -> Redirector:
    """A redirector of `count` concepts at the sizes of Stable Diffusion 1.5."""
    names = tuple(f"concept {i}" for i in range(count))
    config = RedirectorConfig(prompt_dim=768, rank=RANK, concepts=names, row_heads=True, has_joint=False)
    torch.manual_seed(0)
    return Redirector(config).eval().requires_grad_(False)


def each_step(model: Redirector, x0: Tensor) -> Tensor:
    """What the network does in every step: the scores of all concepts, and which act."""
    score = model.image_logits(x0, 500.0)
    return strongest((score > 0).float(), score, MOST)[1]


def once(model: Redirector, embeds: Tensor) -> Tensor:
    """What it does once a run, of images that are redirected: prompt scores, and embeddings redirected from one concept."""
    score = model.prompt_logits(embeds)
    chosen, acts = strongest((score > -1e9).float(), score, 1)
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
    calls: dict[int, Callable[[], object]] = {}
    for place, model in enumerate(models.values()):
        calls[2 * place], calls[2 * place + 1] = partial(each_step, model, x0), partial(once, model, embeds)
    seconds = interleaved(calls, arguments.rounds)
    steps, runs = seconds[:, ::2], seconds[:, 1::2]
    whole = steps + runs / STEPS
    beside = unet_seconds(arguments.batch) if arguments.unet else 0.0
    print(f"batch {arguments.batch}, {arguments.rounds} rounds, {torch.get_num_threads()} threads")
    print(
        "| concepts | ms a step | ms once a run | ratio to one | rows in float16 | with the denoiser |\n|---|---|---|---|---|---|"
    )
    for place, count in enumerate(COUNTS):
        middle, low, high = interval(whole[:, place] / whole[:, 0])
        megabytes = 2 * sum(p.numel() for p in models[count].heads.parameters()) / 1e6
        guards = np.median(whole, axis=0)
        together = "–" if not beside else f"{(beside + guards[place]) / (beside + guards[0]):.4f}"
        print(
            f"| {count} | {1e3 * np.median(steps[:, place]):.2f} | {1e3 * np.median(runs[:, place]):.2f} | "
            f"{middle:.3f} [{low:.3f}, {high:.3f}] | {megabytes:.1f} MB | {together} |"
        )


if __name__ == "__main__":
    main()
