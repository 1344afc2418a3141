"""Compiled by inductor: a guarded PictoWorld run over a bare one, both with the UNet compiled as one graph.

    python benchmarks/compiled.py --pairs 20        # about as many minutes on one thread; most of the first ones compile

Bare runs, runs under the guard, and runs under the guard with its networks compiled, too, take turns within one process, in
random order; what is compared is the process's own CPU time. The ratio is that of medians, with its 95 % bootstrap interval over
rounds. Also printed: graphs made, graph breaks, whether images are those of the compiled bare pipeline bit for bit, how far they
are from those of the eager guarded one, and whether decisions are the same.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

import saferedir as sr

PROMPTS = {"benign": "a blue circle on a green background", "firing": "a red star on a blue background"}
KINDS = ("bare", "guarded", "guard compiled")


def run(pipe: Any, guard: Any, prompt: str, steps: int) -> tuple[float, Tensor, Any]:
    """(CPU seconds of one call, its latents, decisions)."""
    with nullcontext() if guard is None else sr.attach(pipe, guard) as attached:
        started = time.process_time()
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "latent"}
        images = pipe(prompt, generator=generator, **settings).images
        taken = time.process_time() - started
        return taken, images, None if attached is None else [decision.outcome for decision in attached.decisions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20, help="rounds, in each of which every kind runs once")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--backend", default="inductor")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    guards: dict[str, Any] = {
        name: None if name == "bare" else sr.Guard.from_pretrained("pictoworld/star") for name in KINDS
    }
    eager = {name: run(pipe, guards["guarded"], prompt, arguments.steps) for name, prompt in PROMPTS.items()}
    pipe.unet.compile(backend=arguments.backend, fullgraph=True)
    compiled: Any = guards["guard compiled"]
    compiled.compile(backend=arguments.backend, fullgraph=True)
    order = random.Random(0)
    for name, prompt in PROMPTS.items():
        first = {kind: run(pipe, guards[kind], prompt, arguments.steps) for kind in KINDS}
        graphs = counters["stats"]["unique_graphs"]
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(arguments.pairs):
            for kind in order.sample(KINDS, len(KINDS)):
                times[kind].append(run(pipe, guards[kind], prompt, arguments.steps)[0])
        off = float((first["guarded"][1] - eager[name][1]).abs().max())
        record: dict[str, Any] = {
            "prompt": name,
            "rounds": arguments.pairs,
            "bare_seconds": round(statistics.median(times["bare"]), 4),
            "graphs": graphs,
            "graphs_made_later": counters["stats"]["unique_graphs"] - graphs,
            "graph_breaks": sum(counters["graph_break"].values()),
            "is_bare_image": [bool(torch.equal(first[kind][1], first["bare"][1])) for kind in KINDS[1:]],
            "off_eager": round(off / float(eager[name][1].abs().max()), 8),
            "decisions": [first[kind][2] for kind in KINDS[1:]],
            "are_eager_decisions": [first[kind][2] == eager[name][2] for kind in KINDS[1:]],
        }
        for kind in KINDS[1:]:
            record[kind] = interval(times[kind], times["bare"])
        print(json.dumps(record), flush=True)


def interval(guarded: list[float], bare: list[float]) -> list[float]:
    """[ratio of medians, lower, upper end of its 95 % bootstrap interval over rounds]."""
    order, count = random.Random(0), len(bare)

    def ratio(rows: list[int]) -> float:
        return statistics.median(guarded[i] for i in rows) / statistics.median(bare[i] for i in rows)

    draws = sorted(ratio(order.choices(range(count), k=count)) for _ in range(2000))
    return [round(value, 4) for value in (ratio(list(range(count))), draws[50], draws[1949])]


if __name__ == "__main__":
    main()
