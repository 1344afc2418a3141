"""What the seam itself costs: a PictoWorld run with a guard that does nothing, against the bare pipeline, as a ratio.

Both kinds of run alternate within one process, in random order inside each pair, on one thread; what is compared is the
process's own CPU time, which other work on the machine disturbs least. A ratio of two such runs has a noise of a few percent,
so the seam's own cost is also measured apart: the same runs with a denoiser that returns at once, guarded minus bare, as a
share of the real denoiser's run in the same process ("seam_share").

    python benchmarks/seam.py --pairs 60                   # about three minutes
    python benchmarks/seam.py --against ../before          # the seam of another checkout beside this one's, run by run

    python benchmarks/seam.py --calls                      # Python functions called for guards, in a step and in a run

The second form keeps one process for each checkout and lets them take turns, in random order inside each pair: microseconds of
the seam in one evaluation of one image, and their ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
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


class Editing(ReadOnly):
    """A guard that edits the prompt, the prediction and the latents of every evaluation, a little."""

    method = "editing"

    def on_step_start(self, step: Step) -> Tensor:
        return 0.99 * step.prompt_embeds

    def on_prediction(self, step: Step) -> Tensor:
        assert step.pred is not None
        return 0.99 * step.pred

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        return 0.99 * latents


GUARDS = (Idle, ReadOnly, Editing)


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


def seam_seconds(pipe: Any, guard: Guard[Any], runs: int, prompts: list[str], steps: int) -> float:
    """CPU seconds that the seam adds to one run."""
    real = pipe.unet.forward

    pipe.unet.forward = without_denoiser
    try:
        rows = [(seconds(pipe, guard, prompts, steps)[0], seconds(pipe, None, prompts, steps)[0]) for _ in range(runs)]
    finally:
        pipe.unet.forward = real
    guarded, bare = (statistics.median(row[kind] for row in rows) for kind in (0, 1))
    return guarded - bare


def without_denoiser(sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    """In the place of a denoiser's `forward`: answers at once."""
    return (sample * 0.1,)


def calls(pipe: Any, guard: Guard[Any] | None, steps: int) -> int:
    """Python functions that are called in one run, the denoiser's aside; a run before it fills what is remembered."""
    counted = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event == "call"

    def run() -> None:
        generator = torch.Generator().manual_seed(0)
        pipe(PROMPTS[0], generator=generator, num_inference_steps=steps, guidance_scale=4.0, output_type="latent")

    real, pipe.unet.forward = pipe.unet.forward, without_denoiser
    try:
        with nullcontext() if guard is None else sr.attach(pipe, guard):
            run()
            is_collecting = gc.isenabled()
            gc.disable()  # what a collection calls is nobody's step
            sys.setprofile(note)
            try:
                run()
            finally:
                sys.setprofile(None)
                if is_collecting:
                    gc.enable()
    finally:
        pipe.unet.forward = real
    return counted


def count_calls(pipe: Any) -> list[dict[str, Any]]:
    """Guard by guard the calls of a step, and what a run adds to them once."""
    rows = []
    bare = [calls(pipe, None, steps) for steps in (3, 4)]
    for kind in GUARDS:
        short, long = (calls(pipe, kind(GuardConfig(concept="nothing")), steps) for steps in (3, 4))
        step = long - short - (bare[1] - bare[0])
        rows.append({"guard": kind.method, "calls_a_step": step, "calls_a_run": short - bare[0] - 3 * step})
    return rows


def load() -> Any:
    torch.set_num_threads(1)
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def serve(steps: int) -> None:
    """Measure once for each line that comes in; a line is a guard's place in `GUARDS`."""
    pipe, guards = load(), [kind(GuardConfig(concept="nothing")) for kind in GUARDS]
    print("ready", flush=True)
    for line in sys.stdin:
        print(seam_seconds(pipe, guards[int(line)], 3, PROMPTS[:1], steps), flush=True)


def start(checkout: Path, steps: int) -> subprocess.Popen[str]:
    """A process that measures the seam of a checkout."""
    command = [sys.executable, __file__, "--serve", "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"the seam of {checkout} cannot be measured: run {' '.join(command)} there.")
    return process


def measure(process: subprocess.Popen[str], guard: int) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{guard}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def against(other: Path, pairs: int, steps: int) -> list[dict[str, Any]]:
    """Microseconds of both seams an evaluation, guard by guard, and the ratio of this one to the other."""
    processes = [start(checkout.resolve(), steps) for checkout in (Path(__file__).parents[1], other)]
    order, rows = random.Random(0), []
    try:
        for place, kind in enumerate(GUARDS):
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(pairs):
                for side in order.sample([0, 1], 2):
                    times[side].append(1e6 * measure(processes[side], place) / steps)
            here, there = (statistics.median(side) for side in times)
            ratios = sorted(mine / theirs for mine, theirs in zip(*times, strict=True))
            spread = [round(ratios[len(ratios) * share // 100], 3) for share in (25, 75)]
            row = {"guard": kind.method, "pairs": pairs, "here_us": round(here, 1), "there_us": round(there, 1)}
            rows.append({**row, "ratio": round(here / there, 3), "ratios_quartiles": spread})
            print(json.dumps(rows[-1]), flush=True)
    finally:
        for process in processes:
            process.terminate()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="alternating runs of each kind")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images at once")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, help="another checkout, whose seam takes turns with this one's")
    parser.add_argument("--calls", action="store_true", help="count Python calls in place of seconds")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.steps)
    if arguments.calls:
        rows = count_calls(load())
        print(json.dumps(rows))
    elif arguments.against:
        rows = against(arguments.against, arguments.pairs, arguments.steps)
    else:
        rows = compare_with_bare(arguments.pairs, arguments.steps, arguments.batches)
    if arguments.out:
        record = {"made_by": f"saferedir {library_version()}", "steps": arguments.steps, "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def compare_with_bare(pairs: int, steps: int, batches: Sequence[int]) -> list[dict[str, Any]]:
    pipe, config, rows = load(), GuardConfig(concept="nothing"), []
    for guard in (Idle(config), ReadOnly(config)):
        for batch in batches:
            prompts = (PROMPTS * batch)[:batch]
            row = compare(pipe, guard, pairs, prompts, steps, seed=0)
            if not row["bit_identical"]:
                raise SystemExit(f"{guard.method} changed the image")
            share = seam_seconds(pipe, guard, 2 * pairs, prompts, steps) / row["bare_seconds"]
            rows.append({**row, "seam_share": round(share, 5)})
            print(json.dumps(rows[-1]))
    return rows


if __name__ == "__main__":
    main()
