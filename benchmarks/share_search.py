"""Which setting of Safe Denoiser leaves other shares as they are: the class-part of PictoWorld 2, on seeds of validation.

Run: python benchmarks/share_search.py --out docs         # writes share-search.md and .json; some 5 minutes of one core
     python benchmarks/share_search.py --copies class-part    # or share: prints how many images "replace" changes, and how
                                                              # near they then are to benign references
Finished rows are kept in --work, and an interrupted run goes on. Rings of the class-conditional model, of which pink ones are
the concept. An ideal removal leaves all other images their proportions: a share s without the guard becomes s (1 - p') / (1 - p),
p and p' the concept's share without and with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import avg_pool2d

import saferedir as sr
from saferedir.cli.common import progress_bar
from saferedir.guards.negation import NegationSet
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.pictoworld.evaluation import cell, rate_of
from saferedir.pictoworld.world2.evaluation import (
    concept_rate,
    generate_classes,
    generate_unconditional,
    shows_concept,
)
from saferedir.pictoworld.world2.judge import Judge
from saferedir.pictoworld.world2.methods import REFERENCES, negation_set
from saferedir.pictoworld.world2.renderer import render_contents
from saferedir.pictoworld.world2.tasks import TASKS, Task, other_contents
from saferedir.utils.files import replacing

TASK = TASKS["class-part"]
SEED = 7_000_000
MANY = 2000
#: name -> (references of each side, settings); None: no guard
VARIANTS: dict[str, tuple[int, dict[str, Any]] | None] = {
    "no guard": None,
    'form "posterior"': (REFERENCES, {}),
    '"posterior", prior .2': (REFERENCES, {"prior": 0.2}),
    '"posterior", prior .2, kappa 1, 2,000 references': (MANY, {"prior": 0.2, "kappa": 1.0}),
    '"posterior", window .6 to 1': (REFERENCES, {"window": (0.6, 1.0)}),
    '"posterior", window 0 to .6': (REFERENCES, {"window": (0.0, 0.6)}),
    '**form "replace"**': (REFERENCES, {"form": "replace"}),
    '"replace", prior .2': (REFERENCES, {"form": "replace", "prior": 0.2}),
    '"replace", kappa .1': (REFERENCES, {"form": "replace", "kappa": 0.1}),
}
PARTS = ("orange", "green", "brown", "red")
HEAD = """# Shares: what Safe Denoiser does to its neighbours

Made by `python benchmarks/share_search.py --out docs`: {n} rings of PictoWorld 2's class-conditional model a row, seeds of
validation, 30 DDIM steps, shares by the CNN with 95 % Wilson intervals. The concept is pink. Orange, green and brown are
the class's other parts, red is what the model makes between orange and pink. In brackets, the distance from
what an ideal removal leaves, in which all other images keep their proportions: s (1 - p') / (1 - p). *Same* counts images with
every label as without the guard. What follows from it: [negation sets](negation.md#shares).

| settings | pink | broken | {parts} | same |
|---|---|---|{lines}---|
"""


def labels_of(images: torch.Tensor, judge: Judge) -> tuple[list[str], dict[str, Any]]:
    """A label an image, and the rates that every row has."""
    judged = judge.judge(images)
    labels = [
        "broken"
        if is_broken
        else ""
        if scene is None
        else " ".join(f"{i.shape or i.character} {i.colour}" for i in scene.items)
        for scene, is_broken in zip(judged.scenes, judged.is_broken.tolist(), strict=True)
    ]
    return labels, {"pink": concept_rate(judged, TASK).to_dict(), "broken": rate_of(judged.is_broken).to_dict()}


def copies(pipe: Any, task: Task, n: int, seed: int, **settings: Any) -> str:
    """How many images the form "replace" changes, how many of those show the concept or are broken without it, and how near they
    then are to the benign references.
    """
    pixels = render_contents(other_contents(task, REFERENCES))
    guard = SafeDenoiser.from_set(negation_set(task, pipe), concept=task.name, form="replace", **settings)

    def images(guards: list[SafeDenoiser]) -> torch.Tensor:
        with torch.no_grad():
            if task.label is None:
                return generate_unconditional(pipe, n, guards=guards, seed=seed).images
            return generate_classes(pipe, [task.label] * n, guards=guards, seed=seed).images

    before, after = images([]), images([guard])
    if pixels.shape[-1] != before.shape[-1]:
        pixels = avg_pool2d(pixels, pixels.shape[-1] // before.shape[-1])
    judge = Judge.load()
    judged, again = judge.judge(before), judge.judge(after)
    changed, shown = (before != after).flatten(1).any(dim=1), shows_concept(judged, task)
    nearest = [
        torch.cdist(of[changed].flatten(1), pixels.flatten(1)).amin(dim=1).median() / pixels[0].numel() ** 0.5
        for of in (before, after)
    ]
    benign = changed & ~shown & ~judged.is_broken
    counts = [int(of.sum()) for of in (shown, shows_concept(again, task), changed, changed & shown, benign)]
    text = "{} of {n} images show the concept, {} with the guard; {} change: {} that show it, {} that neither do nor are broken"
    return (
        f"{task.name}: {text.format(*counts, n=n)}; root mean square of the changed ones to the nearest of {len(pixels)} benign "
        f"images, median: {nearest[0]:.3f} before, {nearest[1]:.3f} after"
    )


def markdown(rows: dict[str, Any], n: int) -> str:
    """The table with its heading."""
    bare = rows["no guard"]
    shares = Counter(bare["labels"])
    head = HEAD.format(n=n, parts=" | ".join(PARTS), lines="---|" * len(PARTS))
    lines = []
    for name, row in rows.items():
        found = Counter(row["labels"])
        left = (1 - row["pink"]["rate"]) / (1 - bare["pink"]["rate"])
        cells = [cell(row["pink"]), cell(row["broken"])]
        for part in PARTS:
            share, before = found[f"ring {part}"] / n, shares[f"ring {part}"] / n
            cells.append(f"{share:.2f} ({share - left * before:+.3f})" if name != "no guard" else f"{share:.2f}")
        same = sum(a == b for a, b in zip(row["labels"], bare["labels"], strict=True)) / n
        lines.append(f"| {name} | {' | '.join(cells)} | {same:.2f} |\n")
    missing = [name for name in VARIANTS if name not in rows]
    return head + "".join(lines) + (f"\nNot measured yet: {'; '.join(missing)}.\n" if missing else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="images a row")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/share-search"))
    parser.add_argument(
        "--copies", choices=("class-part", "share"), help="count what is replaced, and print how near it is"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the first image of --copies")
    parser.add_argument("--prior", type=float, help="of the guard of --copies")
    parser.add_argument("--window", type=float, nargs=2, help="of the guard of --copies")
    arguments = parser.parse_args()
    if arguments.copies:
        task = TASKS[arguments.copies]
        given = {"prior": arguments.prior, "window": tuple(arguments.window or ()) or None}
        settings = {name: value for name, value in given.items() if value is not None}
        model = "pictoworld-ddpm" if task.label is None else "pictoworld-dit"
        print(copies(sr.load_pipeline(model), task, arguments.n, arguments.seed, **settings))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe, judge = sr.load_pipeline("pictoworld-dit"), Judge.load()
    sets: dict[int, NegationSet] = {}

    def measured(variant: tuple[int, dict[str, Any]] | None) -> dict[str, Any]:
        guards = []
        if variant is not None:
            count, settings = variant
            sets.setdefault(count, negation_set(TASK, pipe, count))
            guards = [SafeDenoiser.from_set(sets[count], concept=TASK.name, **settings)]
        with torch.no_grad():
            images = generate_classes(pipe, [TASK.label or 0] * arguments.n, guards=guards, seed=SEED).images
        labels, rates = labels_of(images, judge)
        return {"labels": labels, **rates}

    rows = {}
    with progress_bar() as progress, progress.task("settings", len(VARIANTS)) as advance:
        for name, variant in VARIANTS.items():
            path = arguments.work / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}-{arguments.n}.json"
            if not path.exists():
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps({"name": name, **measured(variant)}))
            row = json.loads(path.read_text())
            rows[row.pop("name")] = row
            advance(1, name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "share-search.json").write_text(json.dumps({"n": arguments.n, "rows": rows}, indent=1) + "\n")
    (arguments.out / "share-search.md").write_text(markdown(rows, arguments.n))


if __name__ == "__main__":
    main()
