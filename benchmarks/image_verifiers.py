"""The packaged guards' image verifiers on images that nothing trained on; writes docs/image-verifiers.md and .json.

Run: python benchmarks/image_verifiers.py --out docs
Images of the bare model: prompts of the test splits that ask for the concept, in 30 and in 4 steps, and prompts that do not.
Truth is the CNN judge's label; the template judge counts beside it. A gradient step against the verifier itself, of a root
mean square of .02 and of .05 in pixel values, is what an attacker who knows it begins with. Finished tasks are kept in
--work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saferedir as sr
from saferedir.cli.common import progress_bar
from saferedir.guards.base import Guard
from saferedir.guards.image_verifier import ImageVerifier
from saferedir.guards.storage import find_guard
from saferedir.pictoworld.evaluation import cell, generate, load_judge, rate_of
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.tasks import TASKS, TEST_SPLITS, Task, forget_prompts, retain_prompts
from saferedir.pictoworld.template_judge import TemplateJudge
from saferedir.utils.files import replacing
from saferedir.utils.shared_files import VERIFIER_CONFIG

STEPS = (30, 4)
SEED = 31_000_000
MOVES = (0.02, 0.05)
HEAD = """# Image verifiers of the packaged guards

Made by `python benchmarks/image_verifiers.py --out docs`: {n} prompts a phrasing and {n} that do not ask for the concept, of
the bare model, guidance 4, seeds that nothing else has used; each rate with its 95 % Wilson interval. **Seen**: of the images
that the CNN judge labels with the concept, those that the verifier takes for it. **False alarms**: of the images that neither
judge labels with it. **After a step**: of the images that were seen, those still seen after one gradient step against the
verifier of that root mean square. How they are trained: [verify with a judge](howto/verify-with-a-judge.md).

"""


def seen(verifier: ImageVerifier, images: Tensor) -> Tensor:
    """(B,) bool, whether the verifier takes images (B, 3, H, W) in [0, 1] for the concept."""
    with torch.no_grad():
        return torch.cat([verifier(part) >= verifier.config.threshold for part in images.split(64)])


def moved(verifier: ImageVerifier, images: Tensor, rms: float) -> Tensor:
    """Images after one step down the verifier's gradient, each of that root mean square."""
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(verifier(x).sum(), x)
    length = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-12)
    return (images - rms * gradient / length).clamp(0, 1).detach()


def measure(task: Task, verifier: ImageVerifier, pipe: Any, judge: Judge, n: int, advance: Any) -> dict[str, Any]:
    """All rows of one task."""
    values, template = dict(task.forget), TemplateJudge()
    found: dict[str, Any] = {"n": n, "seen": {}, "false alarms": {}}
    concept: list[Tensor] = []
    for steps in STEPS:
        for split in TEST_SPLITS:
            texts = [prompt.text for prompt in forget_prompts(task, split, n)]
            images = generate(pipe, texts, steps=steps, seed=SEED, on_progress=advance).images
            shown = images[judge.judge(images).is_labelled(values)]
            flags = seen(verifier, shown) if len(shown) else torch.zeros(0, dtype=torch.bool)
            found["seen"][f"{split.removeprefix('test-')}, {steps} steps"] = rate_of(flags).to_dict()
            concept.append(shown[flags])
        texts = [prompt.text for prompt in retain_prompts(task, "test-seen", n)]
        images = generate(pipe, texts, steps=steps, seed=SEED + n, on_progress=advance).images
        labelled = judge.judge(images).is_labelled(values) | template.judge(images).is_labelled(values)
        found["false alarms"][f"{steps} steps"] = rate_of(seen(verifier, images[~labelled])).to_dict()
    known = torch.cat(concept)
    found["after a step"] = {
        f"{rms:g}": rate_of(
            torch.cat([seen(verifier, moved(verifier, part, rms)) for part in known.split(64)])
        ).to_dict()
        for rms in MOVES
    }
    return found


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """One table, a column a task."""
    tasks = list(results)
    lines = [f"| | {' | '.join(tasks)} |", "|---" * (1 + len(tasks)) + "|"]
    first = results[tasks[0]]
    for kind in ("seen", "false alarms", "after a step"):
        for name in first[kind]:
            cells = [f"{cell(results[task][kind][name])} (n = {results[task][kind][name]['n']})" for task in tasks]
            lines.append(f"| {kind}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50, help="prompts a row")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--guards", default="pictoworld", help="where the guards lie: pictoworld, or a folder of guard folders"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/image-verifiers"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe, judge = sr.load_pipeline("pictoworld"), load_judge()
    results: dict[str, dict[str, Any]] = {}
    with progress_bar() as progress:
        for name in arguments.tasks:
            folder = find_guard(f"{arguments.guards}/{name}")
            guard: Guard[Any] = Guard.from_pretrained(folder)
            if guard.image_verifier is None:
                raise SystemExit(
                    f"the guard {name!r} has no image verifier; train one with `saferedir train verifier`."
                )
            digest = hashlib.sha256((folder / VERIFIER_CONFIG).read_bytes()).hexdigest()[
                :12
            ]  # it names the weights, too
            path = arguments.work / f"{name}-{arguments.n}-{digest}.json"
            if not path.exists():
                total = arguments.n * len(STEPS) * (len(TEST_SPLITS) + 1)
                with progress.task(name, total) as advance:
                    row = measure(TASKS[name], guard.image_verifier, pipe, judge, arguments.n, advance)
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(row, indent=1))
            results[name] = json.loads(path.read_text())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "image-verifiers.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    head = HEAD.format(n=arguments.n)
    (arguments.out / "image-verifiers.md").write_text(head + markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
