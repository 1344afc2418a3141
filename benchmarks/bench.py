"""What the bench itself costs, how it scales over Ray workers, and whether ten kills change anything. All on PictoWorld.

- overhead: CPU time of this process for a run of the bench (plan at hand, models loaded) against a bare loop that generates
  the same prompts in the same batches, seeds, precision and guards and keeps nothing; repetitions of both alternate in random
  order. Once without the judges, which no bare loop has ("own"), once with all that a run does ("with judges").
- ray: cells per second of one worker and of two, one core each, workers started and models loaded before the clock runs.
- counting: CPU time to count a folder of made-up scores, to count it again, and after one shard has changed.
- kills: a run killed ten times with SIGKILL and gone on with, against one left alone: cells byte for byte.

    OMP_NUM_THREADS=1 python benchmarks/bench.py --out docs/bench.json        # an idle machine with two cores
    OMP_NUM_THREADS=1 python benchmarks/bench.py --tiny                       # does it work?
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from saferedir.attach import attach
from saferedir.bench.executors import Executor, InProcess, Job
from saferedir.bench.generation.resources import Resources
from saferedir.bench.planning import plan as plan_module
from saferedir.bench.planning.config import Matrix
from saferedir.bench.planning.plan import Plan, make_plan
from saferedir.bench.runner import run
from saferedir.bench.storage.store import Store
from saferedir.utils.packaged import library_version

CALL = {"num_inference_steps": 30, "guidance_scale": 4.0}


def matrix(prompts: int, steps: int, attacks: list[str], guards: list[str]) -> dict[str, Any]:
    """One concept; `prompts` of each kind."""
    known = {"saferedir": {"load": "pictoworld/{concept}-usual"}, "sld-max": {"recipe": "pictoworld/sld-max"}}
    return {
        "title": "benchmark",
        "attacks": attacks,
        "prompts": dict.fromkeys(("forget", "rephrased", "retain", "neighbours", "look_alikes"), prompts),
        "model": {"pictoworld": {"load": "pictoworld", "batch": 8, "call": {**CALL, "num_inference_steps": steps}}},
        "concept": {
            "star": {
                "prompts": "pictoworld/star",
                "judge": {"name": "pictoworld", "preset": "star"},
                "second_judges": [{"name": "pictoworld-template", "preset": "star"}],
            }
        },
        "guard": {name: known[name] for name in guards},
    }


def bare_loop(plan: Plan, resources: Resources) -> None:
    """The least that generates the same images: no checksums, no files, no judges."""
    for spec in plan.image_sets.values():
        pipe = resources.pipeline(spec.model)
        guards = resources.guards(spec.model, spec.guards)
        with resources.precision(spec.model, pipe), torch.no_grad():
            for start in range(0, len(spec), spec.model.batch):
                rows = range(start, min(start + spec.model.batch, len(spec)))
                with attach(pipe, list(guards)) if guards else contextlib.nullcontext():
                    pipe(
                        **spec.model.call,
                        prompt=[spec.texts[row] for row in rows],
                        generator=[torch.Generator().manual_seed(spec.seeds[row]) for row in rows],
                        output_type="pt",
                    )


@contextlib.contextmanager
def fresh_folder() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        store.prepare(0)
        with store.lock():
            yield store


def whole_run(plan: Plan, executor: Executor) -> None:
    with fresh_folder() as store:
        if any(record.error for record in run(plan, store, executor)):
            raise SystemExit("a cell has no number")


class Unjudged(InProcess):
    """Generates with judges that were asked before: their time is left out, their scores are kept and counted as ever.

    The first run asks them and remembers; later ones get a copy of what they said.
    """

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self.said: dict[Any, Any] = {}

    def run(self, jobs: Any) -> Iterator[Any]:
        jobs = list(jobs)
        for job in jobs:
            if job.shard not in self.said:
                (whole,) = super().run([job])
                self.said[job.shard] = whole.images.judged
            plain = Job(dataclasses.replace(job.spec, judges=()), job.shard)
            (outcome,) = super().run([plain])
            images = dataclasses.replace(outcome.generated, judged=self.said[job.shard])
            yield dataclasses.replace(outcome, job=job, images=images)


def cpu_seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def overhead(sizes: dict[str, int], chance: random.Random) -> dict[str, Any]:
    """Median ratios of CPU time to the bare loop's, each repetition against the bare loop beside it."""
    resources = Resources()
    plan = make_plan(
        Matrix.model_validate(matrix(sizes["prompts"], sizes["steps"], ["none"], ["saferedir"])), resources
    )
    unjudged = Unjudged(resources)
    kinds: dict[str, Callable[[], None]] = {
        "bare": lambda: bare_loop(plan, resources),
        "own": lambda: whole_run(plan, unjudged),
        "with_judges": lambda: whole_run(plan, InProcess(resources)),
    }
    for work in kinds.values():  # warm, and ask the judges once
        work()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(sizes["repetitions"]):
        for kind in chance.sample(list(kinds), len(kinds)):
            times[kind].append(cpu_seconds(kinds[kind]))
    out: dict[str, Any] = {"images": plan.n_images, "cells": len(plan.cells), **sizes}
    out["bare_seconds"] = round(statistics.median(times["bare"]), 3)
    for kind in ("own", "with_judges"):
        ratios = [ours / bare for ours, bare in zip(times[kind], times["bare"], strict=True)]
        generates = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
        out[kind] = {
            "ratio": round(statistics.median(ratios), 4),
            "interval_95": [round(generates[50], 4), round(generates[1949], 4)],
        }
    return out


def scaling(sizes: dict[str, int], chance: random.Random) -> dict[str, Any]:
    """Cells per second of one and of two Ray workers, alternating."""
    from saferedir.bench.executors.ray_executor import RayExecutor

    resources = Resources()
    guards = ["saferedir", "sld-max"]
    plan = make_plan(Matrix.model_validate(matrix(sizes["prompts"], sizes["steps"], ["none"], guards)), resources)
    rates: dict[int, list[float]] = {1: [], 2: []}
    warm = make_plan(Matrix.model_validate(matrix(8, 4, ["none"], guards)), resources)
    for _ in range(sizes["repetitions"]):
        for workers in chance.sample([1, 2], 2):
            with RayExecutor(workers=workers) as executor:
                for _ in range(2):
                    whole_run(warm, executor)  # every worker is up and has loaded the model
                started = time.perf_counter()
                whole_run(plan, executor)
                rates[workers].append(len(plan.cells) / (time.perf_counter() - started))
    ratios = [both / alone for alone, both in zip(rates[1], rates[2], strict=True)]
    return {
        "images": plan.n_images,
        "cells": len(plan.cells),
        **sizes,
        "threads_a_worker": torch.get_num_threads(),
        "cells_per_second": {str(n): round(statistics.median(found), 3) for n, found in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


KILLED_RUN = (
    "import sys; from saferedir.bench.planning import plan; plan.SHARD = 8; "
    "from saferedir.cli import app; app(sys.argv[1:])"
)


def kills(sizes: dict[str, int], chance: random.Random) -> dict[str, Any]:
    """Kill a run `kills` times at random moments after at least one more shard, then let it end."""
    plan_module.SHARD = 8
    values = matrix(sizes["prompts"], sizes["steps"], ["none"], ["saferedir"])
    plan = make_plan(Matrix.model_validate(values), Resources())
    shards = sum(len(spec.shards) for spec in plan.image_sets.values())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        file = root / "matrix.toml"
        file.write_text(toml(values), encoding="utf-8")

        def start(folder: Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", KILLED_RUN, "bench", "run", str(file), "--out", str(folder), "--no-report"]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL)

        def generated(folder: Path) -> set[tuple[str, int, int]]:
            found = [path for path in folder.glob("sets of images/*/*.parquet") if "." not in path.stem]
            return {(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

        if start(root / "whole").wait() != 0:
            raise SystemExit("the run that was left alone failed")
        before: set[tuple[str, int, int]] = set()
        redrawn = 0
        for kill in range(sizes["kills"]):
            process, target = start(root / "killed"), max(len(before), kill * shards // (sizes["kills"] + 1) + 1)
            while process.poll() is None and len(generated(root / "killed")) < target:
                time.sleep(0.01)
            time.sleep(chance.random() * 0.5)
            process.send_signal(signal.SIGKILL)
            process.wait()
            now = generated(root / "killed")
            redrawn += len(before - now)
            before = now
        if start(root / "killed").wait() != 0:
            raise SystemExit("the killed run did not end well")
        whole, killed = (
            {path.name: path.read_bytes() for path in (root / kind / "cells").iterdir()} for kind in ("whole", "killed")
        )
        return {
            "kills": sizes["kills"],
            "shards": shards,
            "cells": len(whole),
            "identical": whole == killed,
            "shards_drawn_again": redrawn + len(before - generated(root / "killed")),
        }


def toml(values: dict[str, Any]) -> str:
    """As much TOML as our matrix needs."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {text(part)}" for key, part in value.items()) + "}"
        return "[" + ", ".join(map(text, value)) + "]" if isinstance(value, list) else json.dumps(value)

    return "".join(f"{key} = {text(value)}\n" for key, value in values.items())


def counting(sizes: dict[str, int], chance: random.Random) -> dict[str, Any]:
    """CPU seconds of a first count, of the same again, and after one shard of one guard has changed."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ makes the folder
    from tests.bench.synthetic import synthetic_bench, write_shard

    from saferedir.bench.evaluation.evaluate import write_cells

    with tempfile.TemporaryDirectory() as name:
        plan, store = synthetic_bench(Path(name) / "bench", sizes["guards"], sizes["images"])

        def count() -> float:
            return round(cpu_seconds(lambda: write_cells(plan, Store(store.root))), 3)

        out: dict[str, Any] = {"cells": len(plan.cells), **sizes, "first": count()}
        out["again"] = [count() for _ in range(sizes["repetitions"])]
        key = plan.cells[1].image_sets[0]
        write_shard(store, plan.shards[key][0], plan.judges[key][0], chance.random())
        return {**out, "one_shard_changed": count()}


def markdown(record: dict[str, Any]) -> str:
    rows = [("what", "measured", "bound")]
    if found := record.get("overhead"):
        for kind, bound in (("own", "≤ 1.05"), ("with_judges", "none")):
            low, high = found[kind]["interval_95"]
            label = "CPU time of the bench / bare loop, " + ("without judges" if kind == "own" else "with two judges")
            rows.append((label, f"{found[kind]['ratio']:.3f} ({low:.3f}–{high:.3f})", bound))
    if found := record.get("ray"):
        one, two = found["cells_per_second"]["1"], found["cells_per_second"]["2"]
        rows.append(("cells per second, one Ray worker", f"{one:.3f}", ""))
        rows.append(("cells per second, two, one core each", f"{two:.3f} ({found['ratio']:.2f} times)", "≥ 1.8 times"))
    if found := record.get("kills"):
        same = "identical" if found["identical"] else "DIFFERENT"
        rows.append((f"{found['cells']} cells after {found['kills']} kills", same, "identical"))
        rows.append(("shards generated again", str(found["shards_drawn_again"]), "0"))
    if found := record.get("counting"):
        images = found["cells"] * found["images"]
        rows.append((f"CPU seconds to count {images} images in {found['cells']} cells", f"{found['first']:.2f}", ""))
        rows.append(
            ("again · with one shard changed", f"{max(found['again']):.2f} · {found['one_shard_changed']:.2f}", "")
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|---|", *lines[1:]])


PARTS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, int], dict[str, int]]] = {
    # name: what measures it, its sizes, and tiny ones
    "overhead": (
        overhead,
        {"prompts": 32, "steps": 30, "repetitions": 7},
        {"prompts": 8, "steps": 4, "repetitions": 2},
    ),
    "ray": (scaling, {"prompts": 128, "steps": 30, "repetitions": 3}, {"prompts": 8, "steps": 4, "repetitions": 1}),
    "counting": (
        counting,
        {"guards": 99, "images": 1000, "repetitions": 3},
        {"guards": 9, "images": 1000, "repetitions": 3},
    ),
    "kills": (kills, {"prompts": 32, "steps": 10, "kills": 10}, {"prompts": 8, "steps": 4, "kills": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--prompts", type=int, help="prompts of each kind, in place of the part's own number")
    parser.add_argument("--repetitions", type=int, help="likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    record: dict[str, Any] = {
        "made_by": f"saferedir {library_version()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        "tiny": arguments.tiny,
    }
    for part in arguments.parts:
        measure, sizes, tiny = PARTS[part]
        given = {name: value for name in ("prompts", "repetitions") if (value := getattr(arguments, name)) is not None}
        chosen = {**(tiny if arguments.tiny else sizes), **given}
        record[part] = measure(chosen, random.Random(arguments.seed))
    print(markdown(record))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
