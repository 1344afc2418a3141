"""What a guard adds at the true size of Stable Diffusion 1.5: the published UNet with random weights, bfloat16, on the CPU.

Run: python benchmarks/true_size.py --bare 3              # some minutes
     python benchmarks/true_size.py --bare 3 --pairs 8    # whole runs in turn, too; hours
Runs of the pipeline from embeddings to latents, with classifier-free guidance, under a SafeRedir guard of random weights whose
thresholds make it fire in every image ("firing") or in none ("benign"). A step takes many seconds, so that a ratio of few
whole runs has the machine's noise in it. What seam and guard add is therefore measured apart, as a difference of runs with a
denoiser that returns at once, and divided by as many bare steps: "ratio". CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir, SafeRedirConfig
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir_many import SafeRedirMany, SafeRedirManyConfig

DIM, TOKENS = 768, 77


def pipeline() -> Any:
    """Stable Diffusion 1.5 without text encoder: the true UNet, a VAE of which only the factor of sizes is used."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=DIM, attention_head_dim=8).eval()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4, latent_channels=4,
    ).eval()  # fmt: skip
    torch.set_default_dtype(torch.float32)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe: Any = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(**betas, clip_sample=False, steps_offset=1), requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guards(concepts: int) -> dict[str, Any]:
    """Guards that fire in every image and in none, of one concept and of many."""
    torch.manual_seed(1)
    one = Redirector(RedirectorConfig(prompt_dim=DIM))
    names = tuple(f"concept {i}" for i in range(concepts))
    many = Redirector(RedirectorConfig(prompt_dim=DIM, rank=32, concepts=names, row_heads=True, has_joint=False))
    made: dict[str, Any] = {}
    for kind, limit in (("benign", 1e3), ("firing", -1e3)):
        settings = SafeRedirConfig(
            concept="x", network=one.config.to_dict(), prompt_threshold=limit, image_threshold=1e3, patience=100
        )
        made[f"saferedir, {kind}"] = SafeRedir(settings, one)
        limits = (limit, *(1e3,) * (concepts - 1))
        of_many = SafeRedirManyConfig(
            concept="x", network=many.config.to_dict(), prompt_thresholds=limits, image_thresholds=(1e3,) * concepts
        )
        made[f"saferedir_many of {concepts}, {kind}"] = SafeRedirMany(of_many, many)
    return made


@torch.no_grad()
def seconds(pipe: Any, guard: Any, steps: int) -> tuple[float, Tensor]:
    """(CPU seconds of one call, its latents)."""
    embeds = torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(1)).bfloat16()
    call = {
        "prompt_embeds": embeds[:1], "negative_prompt_embeds": embeds[1:], "num_inference_steps": steps,
        "guidance_scale": 7.5, "generator": torch.Generator().manual_seed(0), "output_type": "latent",
    }  # fmt: skip
    attached = None if guard is None else sr.attach(pipe, guard)
    try:
        started = time.process_time()
        latents = pipe(**call).images
        return time.process_time() - started, latents
    finally:
        if attached is not None:
            attached.detach()


def added(pipe: Any, guard: Any, steps: int, runs: int) -> list[float]:
    """CPU seconds that guard and seam add to a step, of `runs` pairs with a denoiser that returns at once."""
    real = pipe.unet.forward

    def at_once(sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (sample * 0.1,)

    pipe.unet.forward = at_once
    try:
        pairs = [(seconds(pipe, guard, steps)[0], seconds(pipe, None, steps)[0]) for _ in range(runs + 1)]
    finally:
        pipe.unet.forward = real
    return [(guarded - bare) / steps for guarded, bare in pairs[1:]]


def whole(pipe: Any, guard: Any, pairs: int, steps: int) -> list[float]:
    """Guarded over bare of whole runs, in random order inside each pair."""
    order, ratios = random.Random(0), []
    for _ in range(pairs):
        times = {kind: seconds(pipe, guard if kind else None, steps)[0] for kind in order.sample([False, True], 2)}
        ratios.append(times[True] / times[False])
    return ratios


def median_95(values: Sequence[float], of: Callable[[float], float] = float) -> str:
    """Median and its 95 % bootstrap interval."""
    order = random.Random(0)
    draws = sorted(statistics.median(order.choices(values, k=len(values))) for _ in range(2000))
    return f"{of(statistics.median(values)):.4f} [{of(draws[50]):.4f}, {of(draws[1949]):.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bare", type=int, default=3, help="bare steps that are timed")
    parser.add_argument(
        "--pairs", type=int, default=0, help="whole runs of each guard that are timed against bare ones"
    )
    parser.add_argument("--runs", type=int, default=15, help="runs with a denoiser that returns at once")
    parser.add_argument("--steps", type=int, default=20, help="steps of those")
    parser.add_argument("--concepts", type=int, default=20)
    arguments = parser.parse_args()
    pipe = pipeline()
    times = [seconds(pipe, None, 1)[0] for _ in range(arguments.bare + 1)][1:]
    bare = statistics.median(times)
    print(f"a bare step, two rows: {median_95(times)} CPU s (n = {len(times)}), {torch.get_num_threads()} threads")
    print("| guard | added a step, ms | ratio [95 %] | whole runs [95 %] |\n|---|---|---|---|")
    for name, guard in guards(arguments.concepts).items():
        extra = added(pipe, guard, arguments.steps, arguments.runs)
        runs = whole(pipe, guard, arguments.pairs, 1)
        ratio = median_95(extra, lambda value: 1 + value / bare)
        print(
            f"| {name} | {1e3 * statistics.median(extra):.1f} | {ratio} | {median_95(runs) if runs else '–'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
