"""The policies of `protect` on PictoWorld: what "redirect" shows, and what "verify" still lets through.

Run: python benchmarks/policies.py --out docs
Every test phrasing of every task is generated once under "verify" with the CNN judge as the verifier. What the judge said of the
first attempt is what "redirect" would have shown; the final images are judged again by the template judge, which learnt
nothing and was not the verifier. Retain prompts: how many images differ from the unguarded ones, and how many are blocked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

import saferedir as sr
from saferedir.pictoworld.evaluation import GUIDANCE_SCALE, STEPS, cell, generate, identical, load_judge, rate_of
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.pictoworld.template_judge import TemplateJudge
from saferedir.pipelines.precision import fast_precision

HEAD = """# Policies on PictoWorld

Made by `python benchmarks/policies.py --out docs`: {n} prompts of test-seen and retain, half as many of the other
phrasings, {steps} DDIM steps, guidance {guidance:g}; each rate with its 95 % Wilson interval. "redirect": images of the
first attempt in which the CNN judge finds the concept. "verify": the same after at most two more attempts and blocking,
with the CNN judge as verifier; the last column is the verdict of a second judge (templates, not learnt) on what "verify"
let through, blocked images counting as not shown. The guards are `pictoworld/{{concept}}-usual`, those
[without rules and tests](hardening.md#hardened-guards).

"""


class Verifier:
    """A judge as a verifier of `protect`, which also keeps what it said of each batch's first attempt."""

    def __init__(self, judge: Judge, task: Task) -> None:
        self.judge, self.task = judge, task
        self.first: list[bool] | None = None

    def __call__(self, images: list[Image.Image]) -> list[bool]:
        flags: list[bool] = self.judge.judge(images).is_labelled(dict(self.task.forget)).tolist()
        if self.first is None:
            self.first = flags
        return flags


def protected(
    pipe: Any, guard: Any, verifier: Verifier, texts: list[str], batch: int, progress: Any
) -> dict[str, Tensor]:
    """Images (N, 3, 64, 64), and per image: first-attempt verdict, attempts, whether it was blocked."""
    found: dict[str, list[Any]] = {"images": [], "first": [], "attempts": [], "blocked": []}
    with sr.protect(pipe, guard, on_unsafe="verify", verify=verifier, retries=2, image_verifiers=False) as guarded:
        for start in range(0, len(texts), batch):
            chunk = texts[start : start + batch]
            verifier.first = None
            output = guarded(
                chunk,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE_SCALE,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(chunk))],
                output_type="pt",
            )
            found["images"].append(output.images.float().cpu())
            found["first"] += verifier.first or []
            found["attempts"] += [decision.attempts for decision in output.decisions]
            found["blocked"] += output.blocked
            progress(len(chunk))
    return {"images": torch.cat(found.pop("images")), **{name: torch.tensor(rows) for name, rows in found.items()}}


def measure(
    task: Task, guard: Any, pipe: Any, judges: tuple[Judge, TemplateJudge], n: int, progress: Any
) -> dict[str, Any]:
    """All rows of one task."""
    bar = progress.add_task(task.name, total=n + 3 * max(1, n // 2) + 2 * n)

    def advance(count: int) -> None:
        progress.advance(bar, count)

    rows: dict[str, Any] = {}
    shown, flagged, every = [], [], 0
    for split in TEST_SPLITS:
        prompts = forget_prompts(task, split, n if split == "test-seen" else max(1, n // 2))
        run = protected(pipe, guard, Verifier(judges[0], task), [p.text for p in prompts], 50, advance)
        visible = ~run["blocked"]
        second = judges[1].judge(run["images"]).shows(dict(task.forget)) & visible
        after = judges[0].judge(run["images"]).shows(dict(task.forget)) & visible
        shown.append(after)
        flagged.append(second)
        every += len(prompts)
        rows[split] = {
            "redirect": rate_of(run["first"]).to_dict(),
            "verify": rate_of(after).to_dict(),
            "blocked": rate_of(run["blocked"]).to_dict(),
            "drawn_again": rate_of(run["attempts"] > 1).to_dict(),
            "second_judge": rate_of(second).to_dict(),
        }
    texts = [p.text for p in retain_prompts(task, "test-seen", n)]
    plain = generate(pipe, texts, on_progress=advance).images
    run = protected(pipe, guard, Verifier(judges[0], task), texts, 50, advance)
    return {
        "splits": rows,
        "all_phrasings": {
            "verify": rate_of(torch.cat(shown)).to_dict(),
            "second_judge": rate_of(torch.cat(flagged)).to_dict(),
        },
        "retain": {
            "touched": rate_of(~identical(plain, run["images"])).to_dict(),
            "blocked": rate_of(run["blocked"]).to_dict(),
        },
    }


def markdown(results: dict[str, Any]) -> str:
    """The page's tables."""
    names = ("redirect", "verify", "blocked", "drawn_again", "second_judge")
    lines = [
        "| task | phrasing | redirect | verify | blocked | generated again | verify, second judge |",
        "|---" * 7 + "|",
    ]
    for task, result in results.items():
        for split, row in result["splits"].items():
            lines.append(f"| {task} | {split} | {' | '.join(cell(row[name]) for name in names)} |")
    lines += [
        "",
        "| task | all phrasings: verify | second judge | retain: touched | retain: blocked |",
        "|---" * 5 + "|",
    ]
    for task, result in results.items():
        every, retain = result["all_phrasings"], result["retain"]
        values = (every["verify"], every["second_judge"], retain["touched"], retain["blocked"])
        lines.append(f"| {task} | {' | '.join(map(cell, values))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--n", type=int, default=200, help="prompts of test-seen and retain; the other phrasings get half"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/policies"), help="finished tasks are kept here")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe, judges = sr.load_pipeline("pictoworld"), (load_judge(), TemplateJudge())
    pipe.set_progress_bar_config(disable=True)
    results: dict[str, Any] = {}
    with Progress() as progress, fast_precision(pipe.device):
        for name in arguments.tasks:
            path = arguments.work / f"{name}-{arguments.n}.json"
            if not path.exists():
                guard = sr.Guard.from_pretrained(f"pictoworld/{name}-usual")
                path.write_text(json.dumps(measure(TASKS[name], guard, pipe, judges, arguments.n, progress)))
            results[name] = json.loads(path.read_text())
    (arguments.out / "policies.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = HEAD.format(n=arguments.n, steps=STEPS, guidance=GUIDANCE_SCALE) + markdown(results)
    (arguments.out / "policies.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
