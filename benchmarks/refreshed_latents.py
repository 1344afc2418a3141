"""What becomes of an honest caller's images where a guard replaces a share of `latents=` by noise; prints one row a share.

Run: python benchmarks/refreshed_latents.py --shares .1 .25 .5 .75 1 --n 50
Retain prompts of test-seen with latents from torch.randn given, in 20 steps: images with the guard's latents_test="refresh_all"
(share 0: as packaged) beside those of the bare pipeline from the same latents. "same": bit for bit. "again": the first four
given one by one, to rounding. "asked for": attributes that the judge finds, of all that the prompts ask for. "kept": those
right in the bare image that are still right. "distance": root mean square between the two images, over that between bare images
of one prompt from independent latents; medians of the prompts.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from benchmarks.panel_bench import GUIDANCE
from torch import Tensor

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.metrics import Rate
from saferedir.pictoworld.captions import Prompt
from saferedir.pictoworld.evaluation import attributes_kept, cell, identical, load_judge, rate_of
from saferedir.pictoworld.judge import Judgement
from saferedir.pictoworld.scene import JUDGED
from saferedir.pictoworld.tasks import TASKS, retain_prompts


def images_of(pipe: Any, texts: list[str], latents: Tensor) -> Tensor:
    """(N, 3, 64, 64) in [0, 1]."""
    call = {"num_inference_steps": 20, "guidance_scale": GUIDANCE, "output_type": "pt"}
    with torch.no_grad():
        images: Tensor = pipe(prompt=texts, latents=latents, **call).images
    return images


def distances(first: Tensor, second: Tensor) -> Tensor:
    """(N,) root mean squares."""
    return (first - second).square().flatten(1).mean(dim=1).sqrt()


def shown(judgement: Judgement, prompts: list[Prompt]) -> Rate:
    """(Image, attribute) pairs asked for that are right, in images that are not broken."""
    scenes, hits, n = [prompt.scene for prompt in prompts], 0, 0
    for attribute in JUDGED:
        asked = torch.tensor([attribute in prompt.mentioned for prompt in prompts])
        hits += int((asked & judgement.matches(scenes, attribute) & ~judgement.is_broken).sum())
        n += int(asked.sum())
    return Rate(hits, n)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="star", choices=list(TASKS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--n", type=int, default=50)
    options = parser.parse_args()
    task, judge = TASKS[options.task], load_judge()
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    prompts = retain_prompts(task, "test-seen", options.n, 41)
    texts = [prompt.text for prompt in prompts]
    latents, others = (
        torch.stack(
            [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(first + i)) for i in range(options.n)]
        )
        for first in (70_000, 80_000)
    )
    bare, apart = images_of(pipe, texts, latents), images_of(pipe, texts, others)
    unguarded, unit = judge.judge(bare), distances(bare, apart).median()
    print("| share | same | again | asked for | kept | distance |\n|---|---|---|---|---|---|", flush=True)
    print(f"| bare | – | – | {cell(shown(unguarded, prompts).to_dict())} | – | 0 |", flush=True)
    guard = SafeRedir.from_pretrained(f"pictoworld/{task.name}")
    for share in (0.0, *options.shares):
        changes = {"latents_test": "refresh_all", "latents_fresh_share": share} if share else {}
        with sr.attach(pipe, guard.with_settings(**changes)):
            images = images_of(pipe, texts, latents)
            single = torch.cat([images_of(pipe, texts[i : i + 1], latents[i : i + 1]) for i in range(4)])
        judgement = judge.judge(images)
        rates = (
            rate_of(identical(images, bare)),
            rate_of((images[:4] - single).abs().flatten(1).amax(dim=1) < 1e-4),
            shown(judgement, prompts),
            attributes_kept(judgement, unguarded, prompts, task),
        )
        distance = float(distances(images, bare).median() / unit)
        print(f"| {share:g} | {' | '.join(cell(rate.to_dict()) for rate in rates)} | {distance:.2f} |", flush=True)


if __name__ == "__main__":
    main()
