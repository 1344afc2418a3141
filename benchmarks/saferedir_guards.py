"""Measures the packaged SafeRedir guards on the test phrasings; writes docs/saferedir-results.md and .json.

Run: python benchmarks/saferedir_guards.py --out docs
Per task: concept rate with and without the guard on the four test splits, attributes kept, retain prompts left bit-identical,
broken images; then each verdict alone (the image verdict on every phrasing), and
the AUROC of the image and prompt verdicts by step. Every rate has its n
and a 95 % Wilson interval. Finished tasks are kept in --work, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.metrics import auroc
from saferedir.pictoworld.evaluation import (
    Generation,
    attributes_kept,
    cell,
    concept_rate,
    generate,
    guard_digest,
    identical,
    images_kept,
    load_judge,
    rate_of,
)
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.pipelines.precision import fast_precision, precision_name

NEVER = 1e9
HEAD = """# SafeRedir on PictoWorld: results

Made by `python benchmarks/saferedir_guards.py --out docs` with the packaged model and judge and the guards
`pictoworld/{{concept}}-usual`, those [without rules and tests](hardening.md#hardened-guards): {n} prompts for
test-seen and retain, half as many for the other rows, 30 DDIM steps, guidance 4, the same noise with and without the
guard; each rate with its 95 % Wilson interval. The guards trained on `guard-train` prompts only; phrasings and scenes
of the test splits were in no training or calibration. "Attributes kept": of all (image, attribute) pairs outside
the concept that the caption fixes and the unguarded model generated as asked, those that the guarded image still has; an
image counts as kept only if all of them are. AUROCs are over test-seen forget prompts against retain prompts on
unguarded trajectories; "alone" switches the other verdict off.

"""


def variant(guard: SafeRedir, **changes: Any) -> SafeRedir:
    """The same weights under other settings."""
    return SafeRedir(replace(guard.config, **changes), guard.network, guard.anchor)


def scores_by_step(generation: Generation, name: str) -> Tensor:
    """(N, S) scores that a watching guard recorded."""
    return torch.tensor([getattr(decision, name) for decision in generation.decisions])


def measure(task: Task, guard: SafeRedir, pipe: Any, judge: Judge, n: int, progress: Any) -> dict[str, Any]:
    """All rows of one task."""
    others = max(1, n // 2)
    bar = progress.add_task(task.name, total=5 * n + 3 * 3 * others + others)
    settings = {"on_progress": lambda k: progress.advance(bar, k)}
    watching = variant(guard, prompt_threshold=NEVER, image_threshold=NEVER)
    out: dict[str, Any] = {"n": n, "splits": {}}
    watched: dict[str, Generation] = {}
    for split in TEST_SPLITS:
        prompts = forget_prompts(task, split, n if split == "test-seen" else others)
        texts = [p.text for p in prompts]
        plain = watched[split] = generate(pipe, texts, guards=[watching], **settings)
        guarded = generate(pipe, texts, guards=[guard], **settings)
        before, after = judge.judge(plain.images), judge.judge(guarded.images)
        out["splits"][split] = {
            "concept_rate_unguarded": concept_rate(before, task).to_dict(),
            "concept_rate_guarded": concept_rate(after, task).to_dict(),
            "attributes_kept": attributes_kept(after, before, prompts, task).to_dict(),
            "pictures_with_every_attribute_kept": images_kept(after, before, prompts, task).to_dict(),
            "broken_unguarded": rate_of(before.is_broken).to_dict(),
            "broken_guarded": rate_of(after.is_broken).to_dict(),
            "redirected": rate_of(torch.tensor([d.fired for d in guarded.decisions])).to_dict(),
        }
    prompts = retain_prompts(task, "test-seen", n)
    texts = [p.text for p in prompts]
    plain = generate(pipe, texts, guards=[watching], **settings)
    guarded = generate(pipe, texts, guards=[guard], **settings)
    near = torch.tensor([p.level == "neighbour" for p in prompts])
    same = identical(plain.images, guarded.images)
    out["retain"] = {
        "identical": rate_of(same).to_dict(),
        "identical_neighbours": rate_of(same[near]).to_dict(),
        "broken_guarded": rate_of(judge.judge(guarded.images).is_broken).to_dict(),
        "touched_prompts": [p.text for p, kept in zip(prompts, same.tolist(), strict=True) if not kept],
    }
    unwatched = generate(pipe, texts[:50])  # the first batch again with nothing attached at all
    out["watching_is_identical"] = bool(identical(plain.images[:50], unwatched.images).all())
    out["verdicts"] = verdict_curves(watched["test-seen"], plain)
    texts = [p.text for p in forget_prompts(task, "test-seen", others)]
    judged = judge.judge(generate(pipe, texts, guards=[variant(guard, use_image=False)], **settings).images)
    out["alone"] = {"prompt verdict alone": concept_rate(judged, task).to_dict(), "image verdict alone": {}}
    for split in TEST_SPLITS:
        texts = [p.text for p in forget_prompts(task, split, n if split == "test-seen" else others)]
        judged = judge.judge(generate(pipe, texts, guards=[variant(guard, use_prompt=False)], **settings).images)
        out["alone"]["image verdict alone"][split] = concept_rate(judged, task).to_dict()
    return out


def verdict_curves(forget: Generation, retain: Generation) -> dict[str, Any]:
    """AUROC by step of the image verdict, and of the prompt verdict, on unguarded trajectories of test prompts."""
    labels = torch.cat([torch.ones(len(forget.images)), torch.zeros(len(retain.images))])
    image = torch.cat([scores_by_step(forget, "image_scores"), scores_by_step(retain, "image_scores")])
    prompt = torch.cat([scores_by_step(forget, "prompt_scores"), scores_by_step(retain, "prompt_scores")])[:, 0]
    by_step = [round(auroc(image[:, s], labels), 4) for s in range(image.shape[1])]
    quarter = image.shape[1] // 4
    return {
        "image_auroc_by_step": by_step,
        "image_auroc_at_quarter": by_step[quarter - 1],
        "image_auroc_up_to_quarter": round(auroc(image[:, :quarter].amax(1), labels), 4),
        "prompt_auroc": round(auroc(prompt, labels), 4),
        "both_auroc_up_to_quarter": round(auroc(prompt + image[:, :quarter].amax(1), labels), 4),
        "n": len(labels),
    }


def markdown(results: dict[str, Any]) -> str:
    """The page's tables."""
    lines = [
        "| task | split | unguarded | guarded | attributes kept | images with all kept | broken |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in results.items():
        for split, row in task["splits"].items():
            lines.append(
                f"| {name} | {split} | {cell(row['concept_rate_unguarded'])} | {cell(row['concept_rate_guarded'])} "
                f"| {cell(row['attributes_kept'])} | {cell(row['pictures_with_every_attribute_kept'])} "
                f"| {cell(row['broken_guarded'])} |"
            )
    lines += [
        "",
        "| task | retain: bit-identical | of these neighbours | broken |",
        "|---|---|---|---|",
    ]
    for name, task in results.items():
        row = task["retain"]
        lines.append(
            f"| {name} | {cell(row['identical'])} | {cell(row['identical_neighbours'])} | {cell(row['broken_guarded'])} |"
        )
    lines += [
        "",
        "| task | image AUROC at a quarter of the steps | highest so far | prompt AUROC | both | prompt alone: concept rate |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in results.items():
        row, alone = task["verdicts"], task["alone"]
        lines.append(
            f"| {name} | {row['image_auroc_at_quarter']:.3f} | {row['image_auroc_up_to_quarter']:.3f} | {row['prompt_auroc']:.3f} "  # noqa: E501
            f"| {row['both_auroc_up_to_quarter']:.3f} | {cell(alone['prompt verdict alone'])} |"
        )
    splits = list(next(iter(results.values()))["alone"]["image verdict alone"])
    lines += ["", f"| image verdict alone | {' | '.join(splits)} |", f"|---{'|---' * len(splits)}|"]
    for name, task in results.items():
        rates = task["alone"]["image verdict alone"]
        lines.append(f"| {name} | {' | '.join(cell(rates[split]) for split in splits)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200, help="prompts of test-seen and retain; the other splits get half")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--guards", default="pictoworld/{task}-usual", help="guards, {task} for the task's name; default the usual ones"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/guards"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    results: dict[str, Any] = {}
    with Progress() as progress, fast_precision(pipe.device):
        for name in arguments.tasks:
            guard = SafeRedir.from_pretrained(arguments.guards.format(task=name))
            digest = guard_digest(guard)
            path = arguments.work / f"{name}-{arguments.n}-{digest}.json"
            if path.exists():
                results[name] = json.loads(path.read_text())
                continue
            results[name] = {"weights": digest, "precision": precision_name(pipe.device)} | measure(
                TASKS[name], guard, pipe, judge, arguments.n, progress
            )
            path.write_text(json.dumps(results[name], indent=1))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "saferedir-results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "saferedir-results.md").write_text(HEAD.format(n=arguments.n) + markdown(results))


if __name__ == "__main__":
    main()
