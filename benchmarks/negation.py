"""What negation guards cost: the engine against all pairwise differences, its share of a PictoWorld step, a million
references streamed from a file, and an approximate index against the exact answer. Writes docs/negation.md
below its mark.

Times are CPU seconds of one thread, and the sides of every ratio alternate within one process. Memory is the most that torch's
allocator held at one time; for a million references it is the resident peak (VmHWM) of a process of its own.

    python benchmarks/negation.py --out docs        # some ten minutes on one core, 2 GB of scratch space
    python benchmarks/negation.py --out docs --parts share         # that part again, the others' numbers stay
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saferedir as sr
from saferedir.guard import Step
from saferedir.guards.negation import NegationSet, attend, gaussian_xt
from saferedir.guards.negation.build import SetWriter
from saferedir.guards.negation.reference_rows import ReferenceRows
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.spell import SPELL
from saferedir.utils.packaged import library_version

SD = (4, 64, 64)
PICTOWORLD = (4, 16, 16)
FRAME = (0.237, 0.971)  # alpha, sigma of Stable Diffusion's t = 781
KAPPA = 0.1
MIB = 1024**2
#: of a step, for Safe Denoiser with 1,000 references
BAR = 0.03
PARTS = ("engine", "share", "index", "million")
#: of docs/negation.md; what stands above it is written by hand, and kept
MARK = "<!-- measured: written by `python benchmarks/negation.py`; edit what is above -->"


def status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))


def peak_allocated(work: Callable[[], Any]) -> int:
    """Most bytes that torch's allocator had handed out at one time during `work`, above what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


# ---------------------------------------------------------------- engine against all pairs


def engine(x: Tensor, negation: NegationSet) -> Tensor:
    references = negation.references
    return attend(gaussian_xt(x, references.centre, *FRAME, KAPPA), references).mean


def all_pairs(x: Tensor, rows: Tensor) -> Tensor:
    """As in the released code: differences, squares and weighted rows are arrays (B, M, D)."""
    difference = x[:, None] - FRAME[0] * rows[None]
    weights = (-KAPPA * difference.square().sum(dim=2) / (2 * FRAME[1] ** 2)).softmax(dim=1)
    return (weights[:, :, None] * rows[None]).sum(dim=1)


def all_pairs_once(x: Tensor, rows: Tensor) -> Tensor:
    """The same with one such array only, the least that all differences can take."""
    difference = torch.sub(x[:, None], rows[None], alpha=FRAME[0])
    distance = torch.linalg.vector_norm(difference, dim=2)
    return (-KAPPA * distance.square() / (2 * FRAME[1] ** 2)).softmax(dim=1) @ rows


def sides(batch: int, count: int = 3000, shape: tuple[int, ...] = SD) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, *shape, generator=generator)
    negation = NegationSet.from_latents(rows[:2])  # calibration is not what is measured
    centre = rows.mean(dim=0).flatten()
    kept = (rows.flatten(1) - centre).half()
    references = ReferenceRows(kept, kept.float().square().sum(dim=1), centre)
    negation = NegationSet(shape, references, None, negation.calibration)
    x = torch.randn(batch, centre.numel(), generator=generator)
    flat = rows.flatten(1)
    return {
        "engine": lambda: engine(x, negation),
        "all_pairs": lambda: all_pairs(x, flat),
        "all_pairs_once": lambda: all_pairs_once(x, flat),
    }


def speed(batch: int, rounds: int) -> dict[str, Any]:
    found = sides(batch)
    times: dict[str, list[float]] = {name: [] for name in found}
    answers = {name: work() for name, work in found.items()}
    for _ in range(rounds):
        for name in random.Random(len(times["engine"])).sample(sorted(found), len(found)):
            started = time.process_time()
            found[name]()
            times[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    error = (answers["engine"] - answers["all_pairs"]).norm() / answers["all_pairs"].norm()
    return {
        "batch": batch,
        "milliseconds": {name: 1000 * value for name, value in medians.items()},
        "times_faster": {name: medians[name] / medians["engine"] for name in medians if name != "engine"},
        "relative_difference": float(error),
    }


def memory(batch: int) -> dict[str, Any]:
    return {"batch": batch, **{name: peak_allocated(work) for name, work in sides(batch).items()}}


# ---------------------------------------------------------------- share of a PictoWorld step


class Timed:
    """CPU seconds of a guard's point of intervention, call by call."""

    def __init__(self, guard: Any) -> None:
        self.seconds: list[float] = []
        inner = type(guard).on_denoised

        def on_denoised(this: Any, step: Step, x0: Tensor) -> Tensor:
            started = time.process_time()
            answer: Tensor = inner(this, step, x0)
            self.seconds.append(time.process_time() - started)
            return answer

        guard.__class__ = type("Timed", (type(guard),), {"on_denoised": on_denoised})


def real_latents(pipe: Any, count: int, seed: int = 0) -> Tensor:
    """Latents of rendered PictoWorld scenes, (count, 4, 16, 16)."""
    from saferedir.pictoworld.renderer import render
    from saferedir.pictoworld.scene import random_scene
    from saferedir.pipelines.latents import encode_pixels

    rng = random.Random(seed)
    parts = []
    for start in range(0, count, 100):
        scenes = [random_scene(rng) for _ in range(min(100, count - start))]
        parts.append(encode_pixels(pipe.vae, 2 * render(scenes) - 1))
    return torch.cat(parts)


def share(pipe: Any, latents: Tensor, batch: int, method: Any, runs: int, steps: int = 30) -> dict[str, Any]:
    """CPU time of the guard at a step it acts at, and over a run with default settings, over that of the bare pipeline.

    Medians, of calls and of runs; bare and guarded runs take turns, because other work on the machine slows both.
    """
    everywhere: dict[str, Any] = {"window": (0.0, 1.0)} | ({"gate": "always"} if method is SafeDenoiser else {})
    negation = NegationSet.from_latents(latents)
    guards = [method.from_set(negation, concept="star", **settings) for settings in (everywhere, {})]
    timed = [Timed(guard) for guard in guards]
    call = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "latent"}
    bare = []
    for number in range(runs + 1):
        started = time.process_time()
        pipe(["a red star"] * batch, **call)
        bare.append(time.process_time() - started)
        for guard in guards:
            with sr.attach(pipe, guard):
                pipe(["a red star"] * batch, **call)
        if number == 0:  # warm-up
            bare.clear()
            for one in timed:
                one.seconds.clear()
    step = statistics.median(bare) / steps
    acting = statistics.median(timed[0].seconds)
    default = statistics.median(sum(timed[1].seconds[run * steps :][:steps]) for run in range(runs)) / steps
    return {
        "method": method.method,
        "references": len(latents),
        "batch": batch,
        "step_milliseconds": 1000 * step,
        "guard_milliseconds": 1000 * acting,
        "share": acting / step,
        "share_of_run": default / step,
    }


# ---------------------------------------------------------------- a million references


def write_million(path: Path, count: int) -> None:
    writer = SetWriter(path, PICTOWORLD, count)
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(64, *PICTOWORLD, generator=generator)
    writer.put("centre", torch.zeros(PICTOWORLD))
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        which = torch.randint(64, (size,), generator=generator)
        writer.put_rows("", start, means[which] + torch.randn(size, *PICTOWORLD, generator=generator))


def million(path: Path, is_calibrating: bool) -> None:
    """In a process of its own: exact answers over a streamed set, or its calibration; prints time and peak."""
    started = time.process_time()
    if is_calibrating:
        SetWriter.calibrate(_reopened(path))
        print(json.dumps({"seconds": time.process_time() - started, "peak": status("VmHWM")}))
        return
    negation = NegationSet.open(path, stream=True)
    seconds = []
    for number in range(3):
        x = torch.randn(1, 1024, generator=torch.Generator().manual_seed(number))
        started = time.process_time()
        found = attend(gaussian_xt(x, negation.references.centre, *FRAME, KAPPA), negation.references)
        seconds.append(time.process_time() - started)
    print(json.dumps({"seconds": statistics.median(seconds), "peak": status("VmHWM"), "ess": float(found.ess)}))


def _reopened(path: Path) -> SetWriter:
    """A writer on a file that is there already."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        count = file.get_slice("rows").get_shape()[0]
    writer = SetWriter(path.with_suffix(".header"), PICTOWORLD, count)
    writer.path.unlink()
    writer.path = path
    return writer


# ---------------------------------------------------------------- approximate index


def index_quality(latents: Tensor, queries: Tensor, candidates: int) -> list[dict[str, Any]] | None:
    try:
        from saferedir.guards.negation.index import CandidateIndex, attend_near

        negation = NegationSet.from_latents(latents)
        started = time.process_time()
        index = CandidateIndex.build(negation.references)
        built = time.process_time() - started
    except sr.GuardError:
        return None
    rows = []
    for u in (0.3, 0.5, 0.7, 0.824, 0.93):
        alpha, sigma = 1 - u, u
        noise = torch.randn(queries.shape, generator=torch.Generator().manual_seed(1))
        x = (alpha * queries + sigma * noise).flatten(1)
        kappa, _ = negation.calibration.at(u)
        query = gaussian_xt(x, negation.references.centre, alpha, sigma, kappa)
        started = time.process_time()
        exact = attend(query, negation.references)
        middle = time.process_time()
        near = attend_near(query, x / alpha, index, candidates)
        ended = time.process_time()
        products = torch.cdist(x / alpha, negation.latents().flatten(1))
        nearest, found = products.topk(10, largest=False).indices, index.search(x / alpha, candidates)
        recall = (nearest[:, :, None] == found[:, None, :]).any(dim=2).float().mean()
        spread = (exact.mean - negation.references.centre).norm(dim=1)
        rows.append(
            {
                "u": u,
                "recall_at_10": float(recall),
                "ess": float(exact.ess.median()),
                "relative_error": float(((near.mean - exact.mean).norm(dim=1) / spread).median()),
                "exact_milliseconds": 1000 * (middle - started) / len(queries),
                "index_milliseconds": 1000 * (ended - middle) / len(queries),
                "build_seconds": built,
            }
        )
    return rows


# ---------------------------------------------------------------- report


def child(*arguments: object) -> Any:
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """`record` with the wanted parts measured anew."""
    record = {**record, "made_by": f"saferedir {library_version()}", "torch": torch.__version__}
    if "engine" in arguments.parts:
        record["speed"] = [speed(batch, arguments.rounds) for batch in (1, 4)]
        record["memory"] = [memory(batch) for batch in (1, 4)]
    if "share" in arguments.parts or "index" in arguments.parts:
        pipe = sr.load_pipeline("pictoworld")
        pipe.set_progress_bar_config(disable=True)
        count = arguments.index_references + 64 if "index" in arguments.parts else 1000
        latents = real_latents(pipe, count)
    if "share" in arguments.parts:
        record["share"] = [
            share(pipe, latents[:1000], batch, method, arguments.runs)
            for method in (SafeDenoiser, SPELL)
            for batch in (1, 2, 8)
        ]
    if "index" in arguments.parts:
        record["index"] = {
            "references": arguments.index_references,
            "candidates": 256,
            "rows": index_quality(latents[:-64], latents[-64:], 256),
        }
    if "million" not in arguments.parts:
        return record
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as room:
        path = Path(room) / "million.safetensors"
        write_million(path, arguments.million)
        record["million"] = {"references": arguments.million, "bytes": path.stat().st_size}
        record["million"]["calibration"] = child("--calibrate", path)
        record["million"]["attend"] = child("--stream", path)
    return record


def report(record: dict[str, Any]) -> str:
    lines = [
        "## What they cost",
        "",
        "Made by `python benchmarks/negation.py --out docs`; the raw numbers are in `negation.json`. Times are CPU time of one",
        "thread on a shared machine; only ratios within one run are compared. Memory is the most that torch held at one time",
        "above the references themselves.",
        "",
        "### The engine against all pairwise differences",
        "",
        "3,000 references of Stable Diffusion's size (4x64x64), kept as float16. *All pairs* materialises (batch, references,",
        "latent) arrays as the released code does, *one array* is the leanest form of that; both get float32 rows for nothing.",
        "",
        "| batch | engine, ms | all pairs, ms | one array, ms | faster | engine, MiB | all, MiB | one, MiB | leaner |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for fast, lean in zip(record["speed"], record["memory"], strict=True):
        ms, times = fast["milliseconds"], fast["times_faster"]
        mib = {name: lean[name] / MIB for name in ("engine", "all_pairs", "all_pairs_once")}
        lines.append(
            f"| {fast['batch']} | {ms['engine']:.1f} | {ms['all_pairs']:.0f} | {ms['all_pairs_once']:.0f} | "
            f"{times['all_pairs']:.0f}x and {times['all_pairs_once']:.0f}x | {mib['engine']:.1f} | {mib['all_pairs']:.0f} | "
            f"{mib['all_pairs_once']:.0f} | {lean['all_pairs'] / max(lean['engine'], 1):.0f}x and "
            f"{lean['all_pairs_once'] / max(lean['engine'], 1):.0f}x |"
        )
    lines += [
        "",
        f"The answers differ by {record['speed'][0]['relative_difference']:.1e} of their length (float16 rows).",
        "",
        "### Share of a PictoWorld step",
        "",
        "1,000 references. The guard's time is that of `on_denoised` at a step it acts at, the step's that of the bare pipeline",
        "with guidance. The last column is a whole run of 30 steps without benign references: Safe Denoiser then acts in its",
        "window of noise only. At batch 1 the two matrix products read 4 MB of references each, which is over half of the",
        "guard's time",
        "and 2 % of a step by itself; the rest is some thirty small operations, on cold caches each three times what it takes",
        "on warm ones. Larger batches share both. The bar of 3 % of a step "
        + (
            "holds"
            if all(row["share"] <= BAR for row in record["share"] if row["method"] == SafeDenoiser.method)
            else "is missed"
        )
        + " for Safe Denoiser: "
        + ", ".join(
            f"{100 * row['share']:.1f} % at batch {row['batch']}"
            for row in record["share"]
            if row["method"] == SafeDenoiser.method
        )
        + ".",
        "",
        "| guard | batch | step, ms | guard, ms | share of a step | share of a run |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["share"]:
        lines.append(
            f"| {row['method']} | {row['batch']} | {row['step_milliseconds']:.1f} | {row['guard_milliseconds']:.2f} | "
            f"{100 * row['share']:.1f} % | {100 * row['share_of_run']:.1f} % |"
        )
    many = record["million"]
    lines += [
        "",
        "### A million references from a file",
        "",
        f"{many['references']:,} references of PictoWorld's size (4x16x16), {many['bytes'] / MIB:,.0f} MiB on disk, streamed "
        "exactly, one image. The peak is that of the whole process, torch included.",
        "",
        "| | CPU seconds | peak resident, MiB |",
        "| --- | ---: | ---: |",
        f"| one step | {many['attend']['seconds']:.2f} | {many['attend']['peak'] / MIB:,.0f} |",
        f"| calibration, once | {many['calibration']['seconds']:.0f} | {many['calibration']['peak'] / MIB:,.0f} |",
        "",
        "### An approximate index",
        "",
    ]
    index = record["index"]
    if index["rows"] is None:
        lines.append("Not measured: faiss is not installed (`pip install 'saferedir[index]'`).")
    else:
        lines += [
            f"faiss over {index['references']:,} latents of rendered scenes, {index['candidates']} candidates an image, then",
            "exact weights over those. The error is that of the mean E_u, relative to its distance from the set's centre.",
            "",
            "| noise fraction u | recall of the 10 nearest | ESS, exact | error of E_u | exact, ms | index, ms |",
            "| ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {row['u']} | {row['recall_at_10']:.2f} | {row['ess']:.1f} | {row['relative_error']:.3f} | "
            f"{row['exact_milliseconds']:.2f} | {row['index_milliseconds']:.2f} |"
            for row in index["rows"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for negation.md and negation.json")
    parser.add_argument("--scratch", type=Path, help="where 2 GB may be written for a while; default: the system's")
    parser.add_argument("--rounds", type=int, default=7, help="alternating timings of the engine and its rivals")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--runs", type=int, default=11, help="pipeline runs of each kind")
    parser.add_argument("--million", type=int, default=1_000_000, help="references to stream")
    parser.add_argument("--index-references", type=int, default=10_000, help="references of the index")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--calibrate", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if arguments.stream or arguments.calibrate:
        million(arguments.stream or arguments.calibrate, arguments.calibrate is not None)
    else:
        earlier = arguments.out / "negation.json" if arguments.out else None
        known = json.loads(earlier.read_text()) if earlier and earlier.is_file() else {}
        record = measure(arguments, known)
        print(json.dumps(record, indent=1))
        print(report(record))
        if arguments.out:
            (arguments.out / "negation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            page = arguments.out / "negation.md"
            above = page.read_text(encoding="utf-8").partition(MARK)[0] if page.is_file() else ""
            page.write_text(f"{above}{MARK}\n\n{report(record)}", encoding="utf-8")


if __name__ == "__main__":
    main()
