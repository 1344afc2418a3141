"""What SafeRedir guards do at sizes that they were not trained at; writes docs/sizes.md and docs/sizes.json.

Run: python benchmarks/sizes.py --out docs
PictoWorld and its guards were made at 64 pixels, so look at what breaks without a guard first. Guards refuse other sizes by
themselves; they are run here with other_sizes="allow". Each cell is kept in --work as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

import saferedir as sr
from saferedir.guards.base import Guard
from saferedir.guards.saferedir import SafeRedir
from saferedir.pictoworld.evaluation import cell, concept_rate, identical, load_judge, rate_of
from saferedir.pictoworld.tasks import TASKS, forget_prompts, retain_prompts
from saferedir.utils.files import replacing

SIZES = (48, 64, 96)
STEPS, GUIDANCE, BATCH, SEED = 10, 4.0, 25, 4_000_000
HEAD = """# Sizes

Made by `python benchmarks/sizes.py{options} --out docs`: {n} prompts of test-seen that ask for the concept and
{n} retain prompts a cell, {steps} DDIM steps, guidance {guidance:g}, the same noise with and without the guard, each rate with
its 95 % Wilson interval. PictoWorld and its guards were made at 64 pixels (latents of 16 x 16).
These are `pictoworld/{{concept}}-usual`, those [without rules and tests](hardening.md#hardened-guards).

A SafeRedir guard whose record says at which sizes its image verdict was calibrated (`calibration["latent_sizes"]`, written by
`train` and by `guards calibrate`) refuses runs at others with a sentence: at latents whose number of cells is further from those
than a factor of 1.3, which leaves the buckets of aspect ratios open. `guard.with_settings(other_sizes="allow")` runs it all the
same, as this page does; `with_settings(use_image=False)` leaves the prompt verdict alone, which reads no latents. Older guards
without a record run at any size.

- **concept**: images of prompts that ask for it which show it and are not broken, by the CNN on the image at 64 pixels.
- **identical**: images of retain prompts that are the unguarded ones bit for bit.
- **broken**: unguarded images of both kinds that the CNN takes for none of its scenes. Where they are many, the model itself does
  not work at that size, and the row says little about a guard.

| task | pixels | concept, unguarded | concept, guarded | retain identical | broken, unguarded |
|---|---|---|---|---|---|
"""


def images(pipe: Any, texts: list[str], guards: list[Guard[Any]], size: int) -> torch.Tensor:
    """One image a prompt (N, 3, size, size)."""
    parts = []
    for start in range(0, len(texts), BATCH):
        chunk = texts[start : start + BATCH]
        call = {
            "prompt": chunk,
            "height": size,
            "width": size,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "generator": [torch.Generator().manual_seed(SEED + start + i) for i in range(len(chunk))],
            "output_type": "pt",
        }
        if guards:
            with sr.attach(pipe, guards):
                parts.append(pipe(**call).images)
        else:
            parts.append(pipe(**call).images)
    return torch.cat(parts).float()


@torch.no_grad()
def measure(pipe: Any, name: str, size: int, n: int) -> dict[str, Any]:
    """One row of the table."""
    task, judge = TASKS[name], load_judge()
    guard = SafeRedir.from_pretrained(f"pictoworld/{name}-usual").with_settings(other_sizes="allow")
    texts = [[prompt.text for prompt in make(task, "test-seen", n)] for make in (forget_prompts, retain_prompts)]
    bare, guarded = ([images(pipe, each, guards, size) for each in texts] for guards in ([], [guard]))

    def judged(values: torch.Tensor) -> Any:
        return judge.judge(
            values if size == 64 else interpolate(values, (64, 64), mode="area" if size > 64 else "bilinear")
        )

    before, after, others = judged(bare[0]), judged(guarded[0]), judged(bare[1])
    return {
        "n": n,
        "concept, unguarded": concept_rate(before, task).to_dict(),
        "concept, guarded": concept_rate(after, task).to_dict(),
        "identical": rate_of(identical(guarded[1], bare[1])).to_dict(),
        "broken": rate_of(torch.cat([before.is_broken, others.is_broken])).to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/sizes"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe = sr.load_pipeline("pictoworld")
    pipe.set_progress_bar_config(disable=True)
    results: dict[str, dict[str, Any]] = {}
    lines = []
    for name in arguments.tasks:
        for size in SIZES:
            path = arguments.work / f"{name}-{size}-{arguments.n}.json"
            if not path.exists():
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(measure(pipe, name, size, arguments.n), indent=1), encoding="utf-8")
            row = results.setdefault(name, {})[str(size)] = json.loads(path.read_text(encoding="utf-8"))
            columns = ("concept, unguarded", "concept, guarded", "identical", "broken")
            lines.append(f"| {name} | {size} | {' | '.join(cell(row[column]) for column in columns)} |")
    options = "" if arguments.tasks == list(TASKS) else f" --tasks {' '.join(arguments.tasks)}"
    options += "" if arguments.n == 200 else f" --n {arguments.n}"
    head = HEAD.format(n=arguments.n, steps=STEPS, guidance=GUIDANCE, options=options)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sizes.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "sizes.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
