"""What the seam itself costs: a PictoWorld run with a guard that does nothing, against the bare pipeline, as a ratio.

Both kinds of run alternate within one process, in random order inside each pair, on one thread; what is compared is the
process's own CPU time, which other work on the machine disturbs least. A ratio of two such runs has a noise of a few percent,
so the seam's own cost is also measured apart: the same runs with a denoiser that returns at once, guarded minus bare, as a
share of the real denoiser's run in the same process ("seam_share").

    python benchmarks/seam.py --pairs 60        # about three minutes
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.utils.packaged import library_version

PROMPTS = ["a red circle on a blue background", "a green square on a white background"]


class Idle(Guard[GuardConfig]):
    """A guard that uses no point of intervention."""

    method = "idle"


class ReadOnly(Guard[GuardConfig]):
    """A guard that looks at every point and touches nothing: the seam then also computes x0 at every step."""

    method = "read-only"

    def on_prompt(self, step: Step) -> Tensor:
        return step.prompt_embeds

    def on_step_start(self, step: Step) -> Tensor:
        return step.prompt_embeds

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        return latents


def seconds(pipe: Any, guard: Guard[Any] | None, prompts: list[str], steps: int) -> tuple[float, Tensor]:
    """(CPU time of one call, its latents)."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    settings = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "latent"}
    if guard is None:
        started = time.process_time()
        images = pipe(prompts, generator=generators, **settings).images
        return time.process_time() - started, images
    with sr.attach(pipe, guard):
        started = time.process_time()
        images = pipe(prompts, generator=generators, **settings).images
        return time.process_time() - started, images


def compare(pipe: Any, guard: Guard[Any], pairs: int, prompts: list[str], steps: int, seed: int) -> dict[str, Any]:
    """Ratio of guarded to bare time over `pairs` alternating runs, with a bootstrap interval."""
    order = random.Random(seed)
    _, bare = seconds(pipe, None, prompts, steps)
    _, guarded = seconds(pipe, guard, prompts, steps)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(pairs):
        for is_guarded in order.sample([False, True], 2):
            times[is_guarded].append(seconds(pipe, guard if is_guarded else None, prompts, steps)[0])

    def ratio(rows: list[int]) -> float:
        means = [statistics.median(times[kind][i] for i in rows) for kind in (True, False)]
        return means[0] / means[1]

    draws = sorted(ratio(order.choices(range(pairs), k=pairs)) for _ in range(2000))
    return {
        "guard": guard.method,
        "batch": len(prompts),
        "pairs": pairs,
        "bit_identical": bool(torch.equal(bare, guarded)),
        "bare_seconds": round(statistics.median(times[False]), 5),
        "guarded_seconds": round(statistics.median(times[True]), 4),
        "ratio": round(ratio(list(range(pairs))), 4),
        "interval_95": [round(draws[50], 4), round(draws[1949], 4)],
    }


def seam_share(pipe: Any, guard: Guard[Any], runs: int, prompts: list[str], steps: int, bare_seconds: float) -> float:
    """CPU seconds that the seam adds to one run, as a share of `bare_seconds`."""
    real = pipe.unet.forward

    def at_once(sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        return (sample * 0.1,)

    pipe.unet.forward = at_once
    try:
        rows = [(seconds(pipe, guard, prompts, steps)[0], seconds(pipe, None, prompts, steps)[0]) for _ in range(runs)]
    finally:
        pipe.unet.forward = real
    guarded, bare = (statistics.median(row[kind] for row in rows) for kind in (0, 1))
    return (guarded - bare) / bare_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="alternating runs of each kind")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    config = GuardConfig(concept="nothing")
    rows = []
    for guard in (Idle(config), ReadOnly(config)):
        for prompts in (PROMPTS[:1], PROMPTS * 4):
            row = compare(pipe, guard, arguments.pairs, prompts, arguments.steps, seed=0)
            if not row["bit_identical"]:
                raise SystemExit(f"{guard.method} changed the picture")
            share = seam_share(pipe, guard, 2 * arguments.pairs, prompts, arguments.steps, row["bare_seconds"])
            rows.append({**row, "seam_share": round(share, 5)})
            print(json.dumps(rows[-1]))
    if arguments.out:
        record = {"made_by": f"saferedir {library_version()}", "steps": arguments.steps, "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
