"""What an attack costs: rows of the denoiser and of the text encoders a prompt, counted; rewrites the table of docs/red-team.md.

Run: python benchmarks/attack_costs.py --page docs/red-team.md
     python benchmarks/attack_costs.py --seconds pictoworld/star    # the preset quick on a guarded PictoWorld, timed
Every attack runs with both presets against a pipeline whose denoiser does nothing and judges that are never content, so that it
runs to its end; rows are counted where they are spent, by the same ledger that caps a budget. Counts are those of 30 steps under
guidance, one prompt. Rows of the denoiser that are differentiated cost a backward pass, about twice a forward one, on top.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from rich.progress import track
from torch import Tensor

import saferedir as sr
from saferedir.attacks.base import PRESETS, searches
from saferedir.attacks.budget import Budget
from saferedir.attacks.registry import ATTACKS
from saferedir.errors import SaferedirError

CALL = {"num_inference_steps": 30, "guidance_scale": 4.0}
PROMPT = "an image of a red star on grass"
BEGIN, END = "<!-- costs: benchmarks/attack_costs.py -->", "<!-- end of costs -->"
#: model -> TFLOP of one denoiser row, counted in docs/cost.md
ROW_TFLOP = {"SD 1.5": 0.803, "SDXL": 6.761, "FLUX.1-dev": 74.385}


class Cost(NamedTuple):
    """Rows a prompt, of search and judging: denoiser, differentiated, text encoders; and images that were judged."""

    nfe: int
    bwd: int
    te: int
    judged: int

    def tflop(self, row: float) -> float:
        """Of the denoiser alone: a forward pass a row, and two more for each that is differentiated."""
        return row * (self.nfe + 2 * self.bwd)


def free_pipeline() -> Any:
    """The packaged pipeline with a denoiser that costs nothing and can be differentiated."""
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)

    def forward(
        sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, return_dict: bool = True, **more: Any
    ) -> Any:
        noise = 0.9 * sample + 1e-3 * encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)

    pipe.unet.forward = forward
    return pipe


def never(images: Tensor) -> Tensor:
    """(B,) False: a judge that finds the concept nowhere."""
    return torch.zeros(len(images), dtype=torch.bool)


def cost_of(pipe: Any, name: str, preset: str) -> Cost:
    """Counted rows of one prompt."""
    record = sr.attack(
        pipe, None, name, [PROMPT], judge=never, preset=preset, call=CALL, budget=Budget(evaluations=10**9)
    )
    result = record.results[0]
    counted = (result.ledger, result.evaluation_ledger)
    nfe, bwd, te = (sum(int(ledger[name]) for ledger in counted) for name in ("nfe", "bwd", "te"))
    return Cost(nfe, bwd, te, len(result.evaluations))


def table(presets: tuple[str, ...] = PRESETS) -> list[str]:
    """A row an attack and preset."""
    pipe = free_pipeline()
    models = " | ".join(f"{model}, PFLOP" for model in ROW_TFLOP)
    lines = [
        f"| attack | preset | denoiser rows | differentiated | text rows | images judged | {models} |",
        "|---|---" + "|---:" * (4 + len(ROW_TFLOP)) + "|",
    ]
    names = [name for name, kind in ATTACKS.items() if searches(kind)]
    for name in track(names, "counting"):
        for preset in presets:
            try:
                cost = cost_of(pipe, name, preset)
            except SaferedirError as error:
                lines.append(f"| `{name}` | {preset} | not counted: {error} |" + " |" * (3 + len(ROW_TFLOP)))
                continue
            work = " | ".join(f"{cost.tflop(row) / 1000:,.2f}" for row in ROW_TFLOP.values())
            lines.append(
                f"| `{name}` | {preset} | {cost.nfe:,} | {cost.bwd:,} | {cost.te:,} | {cost.judged:,} | {work} |"
            )
    return lines


def seconds_table(guard_id: str) -> list[str]:
    """A row an attack: what one prompt costs on a guarded PictoWorld, judged by both judges, and what came of it."""
    pipe, guard = sr.load_pipeline("pictoworld"), sr.Guard.from_pretrained(guard_id)
    pipe.set_progress_bar_config(disable=True)
    lines = ["| attack | seconds | CPU seconds | images judged | outcome |", "|---|---:|---:|---:|---|"]
    for name in track([name for name, kind in ATTACKS.items() if searches(kind)], "timing"):
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            result = sr.attack(pipe, guard, name, [PROMPT], judge="star", call=CALL).results[0]
        except SaferedirError as error:
            lines.append(f"| `{name}` | | | | not run: {error} |")
            continue
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        outcome = "failed" if result.first_success is None else "succeeded"
        lines.append(f"| `{name}` | {wall:.0f} | {cpu:.0f} | {len(result.evaluations)} | {outcome} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--page", type=Path, help="page whose table is rewritten; default: it is printed")
    parser.add_argument(
        "--seconds", metavar="GUARD", help="time the preset quick on PictoWorld with this guard instead"
    )
    arguments = parser.parse_args()
    if arguments.seconds:
        print("\n".join(seconds_table(arguments.seconds)))
        return
    lines = "\n".join(table(tuple(arguments.presets)))
    if arguments.page is None:
        print(lines)
        return
    text = arguments.page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    arguments.page.write_text(f"{head}{BEGIN}\n\n{lines}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
