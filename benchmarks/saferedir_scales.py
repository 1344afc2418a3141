"""The packaged SafeRedir guards at other guidance scales and in few steps; writes docs/saferedir-scales.md and .json.

Run: python benchmarks/saferedir_scales.py --out docs
Retain prompts and noise come from a seed that neither training, calibration nor any other page has used. An image counts as
untouched if it equals the image of the bare pipeline bit for bit. In few steps the prompt verdict is switched off, so that all
depends on the image verdict, and `protect` verifies without a judge: a run is refused, or its images are scored. Finished tasks
are kept in --work, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.metrics import Rate
from saferedir.pictoworld.evaluation import cell, generate, guard_digest, identical, load_judge, rate_of
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS, Task, forget_prompts, retain_prompts
from saferedir.pipelines.precision import fast_precision, precision_name

SCALES = (1.0, 4.0, 7.5, 12.0)
FEW_STEPS = (1, 2, 3, 4)
RETAIN_STEPS = 20
BATCH = 50
HEAD = """# SafeRedir at other guidance scales and in few steps

Made by `python benchmarks/saferedir_scales.py --out docs` with the packaged model and judge and the guards
`pictoworld/{{concept}}-usual`, those [without rules and tests](hardening.md#hardened-guards); each rate with its
95 % Wilson interval. Prompts and noise are of seed {seed}, which nothing else has used.

"""


def retention(pipe: Any, guard: SafeRedir, task: Task, scale: float, n: int, seed: int) -> dict[str, Any]:
    """Retain prompts of the test split whose images are those of the bare pipeline, bit for bit."""
    texts = [prompt.text for prompt in retain_prompts(task, "test-seen", n, seed)]
    settings: dict[str, Any] = {"steps": RETAIN_STEPS, "guidance_scale": scale, "seed": 10_000 * seed, "batch": BATCH}
    bare, guarded = generate(pipe, texts, **settings), generate(pipe, texts, guards=[guard], **settings)
    return rate_of(identical(bare.images, guarded.images)).to_dict()


def few_steps(
    pipe: Any, guard: SafeRedir, task: Task, judge: Judge, scale: float, steps: int, n: int, seed: int
) -> dict[str, Any]:
    """Concept rate among n forget prompts under "verify" without a verifier, or the reason for which such runs are refused."""
    texts = [prompt.text for prompt in forget_prompts(task, "test-seen", n, seed)]
    alone = SafeRedir(replace(guard.config, use_prompt=False), guard.network, guard.anchor)
    hits = blocked = 0
    with sr.protect(pipe, alone, on_unsafe="verify", image_verifiers=False) as guarded:
        for start in range(0, n, BATCH):
            chunk = texts[start : start + BATCH]
            noise = [torch.Generator().manual_seed(10_000 * seed + start + i) for i in range(len(chunk))]
            try:
                output = guarded(
                    chunk, num_inference_steps=steps, guidance_scale=scale, generator=noise, output_type="pt"
                )
            except sr.GuardError:
                return {"refused": True}
            left = ~torch.tensor(output.blocked)
            hits += int((judge.judge(output.images.float()).shows(dict(task.forget)) & left).sum())
            blocked += int((~left).sum())
    return {**Rate(hits, n).to_dict(), "blocked": blocked}


def shipped(
    pipe: Any, guard: SafeRedir, task: Task, judge: Judge, scale: float, steps: int, n: int, seed: int
) -> dict[str, Any]:
    """Concept rate among n forget prompts under `attach`, with both verdicts as the guard is shipped."""
    texts = [prompt.text for prompt in forget_prompts(task, "test-seen", n, seed)]
    found = generate(pipe, texts, guards=[guard], steps=steps, guidance_scale=scale, seed=10_000 * seed, batch=BATCH)
    return rate_of(judge.judge(found.images).shows(dict(task.forget))).to_dict()


def markdown(results: dict[str, Any]) -> str:
    """The page's three tables."""
    lines = [
        f"Retain prompts with bit-identical images ({RETAIN_STEPS} DDIM steps, n = {next(iter(results.values()))['n']}):",
        "",
        f"| task | {' | '.join(f'guidance {scale:g}' for scale in SCALES)} |",
        f"|---{'|---' * len(SCALES)}|",
    ]
    for name, row in results.items():
        lines.append(f"| {name} | {' | '.join(cell(row['retain'][f'{scale:g}']) for scale in SCALES)} |")
    lines += [
        "",
        'Concept rate of the image verdict alone (`use_prompt=False`) under `protect(..., on_unsafe="verify")` without a',
        "verifier; blocked images count as not shown:",
        "",
        f"| task | guidance | {' | '.join(f'steps: {steps}' for steps in FEW_STEPS)} |",
        f"|---|---{'|---' * len(FEW_STEPS)}|",
    ]
    for name, row in results.items():
        for scale, cells in row["few steps"].items():
            shown = [
                "refused" if "refused" in found else f"{cell(found)}, {found['blocked']} blocked"
                for found in cells.values()
            ]
            lines.append(f"| {name} | {scale} | {' | '.join(shown)} |")
    lines += [
        "",
        "Concept rate with both verdicts, as shipped, under `attach`, which returns every image:",
        "",
        f"| task | guidance | {' | '.join(f'steps: {steps}' for steps in FEW_STEPS)} |",
        f"|---|---{'|---' * len(FEW_STEPS)}|",
    ]
    for name, row in results.items():
        for scale, cells in row["shipped"].items():
            lines.append(f"| {name} | {scale} | {' | '.join(map(cell, cells.values()))} |")
    return "\n".join(lines) + "\n"


def measure(name: str, pipe: Any, judge: Judge, n: int, seed: int, advance: Any) -> dict[str, Any]:
    """All rows of one task."""
    task, guard = TASKS[name], SafeRedir.from_pretrained(f"pictoworld/{name}-usual")
    found: dict[str, Any] = {
        "weights": guard_digest(guard),
        "n": n,
        "seed": seed,
        "precision": precision_name(pipe.device),
        "retain": {},
        "few steps": {},
        "shipped": {},
    }
    for scale in SCALES:
        found["retain"][f"{scale:g}"] = retention(pipe, guard, task, scale, n, seed)
        advance()
    for scale in SCALES[:2]:
        for rows, rate in ((found["few steps"], few_steps), (found["shipped"], shipped)):
            rows[f"{scale:g}"] = {
                str(steps): rate(pipe, guard, task, judge, scale, steps, n, seed) for steps in FEW_STEPS
            }
        advance()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="prompts a row")
    parser.add_argument("--seed", type=int, default=7, help="of prompts and noise")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/scales"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    results: dict[str, Any] = {}
    with Progress() as progress, fast_precision(pipe.device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(steps|[Gg]uidance scale)", category=UserWarning)
        for name in arguments.tasks:
            digest = guard_digest(SafeRedir.from_pretrained(f"pictoworld/{name}-usual"))
            path = arguments.work / f"{name}-{arguments.n}-{arguments.seed}-{digest}.json"
            if path.exists():
                results[name] = json.loads(path.read_text())
                continue
            bar = progress.add_task(name, total=len(SCALES) + 2)
            results[name] = measure(
                name, pipe, judge, arguments.n, arguments.seed, lambda bar=bar: progress.advance(bar)
            )
            path.write_text(json.dumps(results[name], indent=1))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "saferedir-scales.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "saferedir-scales.md").write_text(HEAD.format(seed=arguments.seed) + markdown(results))


if __name__ == "__main__":
    main()
