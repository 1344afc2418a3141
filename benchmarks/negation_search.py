"""How Safe Denoiser's defaults were found: its settings on PictoWorld's validation phrasings, an oracle beside them.

Run: python benchmarks/negation_search.py --out docs         # writes negation-search.md and .json; some 40 minutes on one core
Finished rows are kept in --work, and an interrupted run goes on. Three cells a row, 20 DDIM steps each, seeds and phrasings of
validation: without a prompt and guidance (the share of stars, 1/8 in the corpus); prompts that ask for a star, guidance 4; and
prompts that do not. The oracle weighs 16,000 renders at their natural shares with the forward process' own kernel: as near to the
exact E[x0 | x, unsafe] and odds as enumerating this world goes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import saferedir as sr
from saferedir.cli.common import progress_bar
from saferedir.guards.negation import NegationSet
from saferedir.guards.safe_denoiser import SafeDenoiser
from saferedir.guards.spell import SPELL
from saferedir.pictoworld.captions import Prompt
from saferedir.pictoworld.evaluation import cell, concept_rate, generate, images_kept, load_judge, rate_of
from saferedir.pictoworld.judge import Judge
from saferedir.pictoworld.methods import REFERENCES, negation_set
from saferedir.pictoworld.renderer import render
from saferedir.pictoworld.scene import SHAPES, random_scene
from saferedir.pictoworld.tasks import TASKS, forget_prompts, retain_prompts
from saferedir.pipelines.fingerprint import vae_fingerprint
from saferedir.pipelines.latents import encode_pixels
from saferedir.utils.files import replacing

SPLIT = "guard-validation"
TASK = TASKS["star"]
STEPS = 20
SEED = 5000
GUIDED = 4.0
ORACLE = 16_000
#: the odds at all noise fractions, without a trust region
OPEN = {"form": "odds", "window": (0.0, 1.0), "trust": None}


@dataclass(frozen=True)
class Variant:
    """A row of the table: settings of the guard, and which references it gets.

    Attributes:
        name: as the table has it.
        settings: of `SafeDenoiserConfig`; None: no guard.
        references: of each side; "oracle" for renders at their natural shares.
        benign: whether the set has benign references.
    """

    name: str
    settings: dict[str, Any] | None = field(default_factory=dict)
    references: int | str = REFERENCES
    benign: bool = True
    method: type[Any] = SafeDenoiser

    @property
    def reads_both_rows(self) -> bool:
        """Whether the guard reads the unconditional row, which a pipeline has under guidance only.

        Its cell without a prompt then has guidance and empty prompts: both rows are alike, and so is what comes of them.
        """
        settings = self.settings or {}
        return settings.get("base") == "uncond" or settings.get("mode") == "faithful"


LITERAL = {"kappa": 1.0, "base": "uncond", "gate": "literal", "beta_max": None, "trust": None, "beta_min": 0.0}
VARIANTS = (
    Variant("no guard", None),
    Variant("**default**"),
    Variant("eta 2", {"eta": 2.0}),
    Variant("eta 4", {"eta": 4.0}),
    Variant("prior .9", {"prior": 0.9}),
    Variant("eta 2, prior .9", {"eta": 2.0, "prior": 0.9}),
    Variant("eta 3, prior .999", {"eta": 3.0, "prior": 0.999}),
    Variant("window .4 to 1", {"window": (0.4, 1.0)}),
    Variant("window .82 to 1", {"window": (0.82, 1.0)}),
    Variant("trust .3", {"trust": 0.3}),
    Variant("kernel at kappa 1", {"kappa": 1.0}),
    Variant("40 references", references=40),
    Variant("1,600 references", references=1600),
    Variant("no benign references (default: odds of 1, window .82 to 1, trust .08)", benign=False),
    Variant("no benign references, window 0 to 1, no trust", OPEN, benign=False),
    Variant("odds up to 1, window .82 to 1, trust .08 (the earlier default)", {"form": "odds"}),
    Variant("odds up to 1", OPEN),
    Variant("odds up to 3", {**OPEN, "beta_max": 3.0}),
    Variant("odds up to 10", {**OPEN, "beta_max": 10.0}),
    Variant("odds, no cap", {**OPEN, "beta_max": None}),
    Variant("odds up to 10 of the unconditional estimate", {**OPEN, "beta_max": 10.0, "base": "uncond"}),
    Variant("paper literal, eta .5", {"eta": 0.5, **LITERAL}),
    Variant("released code", {"mode": "faithful"}),
    Variant("SPELL", {}, benign=False, method=SPELL),
    Variant("oracle, posterior", {"kappa": 1.0, "prior": 0.125}, references="oracle"),
    Variant("oracle, odds", {**OPEN, "kappa": 1.0, "prior": 0.125, "beta_max": None}, references="oracle"),
)


def oracle_set(pipe: Any, count: int, seed: int = 0) -> NegationSet:
    """Renders of the whole world at their natural shares, parted into stars and others."""
    rng = random.Random(f"oracle/{seed}")
    scenes = [random_scene(rng) for _ in range(count)]
    latents = torch.cat([encode_pixels(pipe.vae, render(scenes[i : i + 500]) * 2 - 1) for i in range(0, count, 500)])
    is_star = torch.tensor([scene.shape == "star" for scene in scenes])
    return NegationSet.from_latents(latents[is_star], latents[~is_star], {"vae": vae_fingerprint(pipe.vae)})


class Cells:
    """The three cells of a row, measured with one pipeline and judge."""

    def __init__(self, pipe: Any, judge: Judge, n: int) -> None:
        self.pipe, self.judge, self.n = pipe, judge, n
        self.prompts: dict[str, list[Prompt]] = {
            "forget": forget_prompts(TASK, SPLIT, n),
            "retain": retain_prompts(TASK, SPLIT, n),
        }
        self.bare = judge.judge(self.images("retain", []))

    def images(self, name: str, guards: list[Any], free_scale: float = 1.0) -> Tensor:
        texts = [""] * 2 * self.n if name == "free" else [prompt.text for prompt in self.prompts[name]]
        scale = free_scale if name == "free" else 4.0
        found = generate(self.pipe, texts, guards=guards, steps=STEPS, guidance_scale=scale, seed=SEED, batch=32)
        return found.images

    def measure(self, guards: list[Any], free_scale: float = 1.0) -> dict[str, Any]:
        free, forget, retain = (
            self.judge.judge(self.images(name, guards, free_scale)) for name in ("free", "forget", "retain")
        )
        labels = free.probabilities["shape"].argmax(dim=1)
        shares = torch.bincount(labels, minlength=len(SHAPES)).double() / len(labels)
        return {
            "share": concept_rate(free, TASK).to_dict(),
            "free_broken": rate_of(free.is_broken).to_dict(),
            "shares": {name: round(float(share), 4) for name, share in zip(SHAPES, shares, strict=True)},
            "concept": concept_rate(forget, TASK).to_dict(),
            "broken": rate_of(forget.is_broken).to_dict(),
            "kept": images_kept(retain, self.bare, self.prompts["retain"], TASK).to_dict(),
        }


def markdown(rows: dict[str, Any], n: int) -> str:
    """The table with its heading."""
    head = f"""# Safe Denoiser: how its defaults were found

Made by `python benchmarks/negation_search.py --out docs`: the task star, {STEPS} DDIM steps, phrasings and seeds of validation,
95 % Wilson intervals. *Share of stars* and the first *broken* are of {2 * n} images without prompt and guidance; *concept* and
the second *broken* of {n} prompts that ask for a star, guidance 4; *kept* of {n} that do not: every attribute that was asked for
and right is still right. Rows of the unconditional estimate and of the released code have guidance and empty prompts in the first
cell. A run that ends in an error has no figures. What follows from it: [negation sets](negation.md).

| settings | share of stars | broken | concept | broken | kept |
|---|---|---|---|---|---|
"""
    lines = []
    for name, row in rows.items():
        keys = ("share", "free_broken", "concept", "broken", "kept")
        cells = [row["error"], *[""] * 4] if "error" in row else [cell(row[key]) for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    missing = [variant.name for variant in VARIANTS if variant.name not in rows]
    tail = f"\nNot measured yet: {'; '.join(missing)}.\n" if missing else ""
    return head + "".join(lines) + tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=64, help="prompts a cell; twice as many images without a prompt")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/negation-search"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipe = sr.load_pipeline("pictoworld")
    cells = Cells(pipe, load_judge(), arguments.n)
    sets: dict[tuple[int | str, bool], NegationSet] = {}

    def measured(variant: Variant) -> dict[str, Any]:
        if variant.settings is None:
            return cells.measure([])
        key = (variant.references, variant.benign)
        if key not in sets:
            make: Callable[[], NegationSet] = lambda: oracle_set(pipe, ORACLE)  # noqa: E731
            if isinstance(variant.references, int):
                count = variant.references
                make = lambda: negation_set(TASK, pipe, count, with_benign=variant.benign)  # noqa: E731
            sets[key] = make()
        try:
            guard = variant.method.from_set(sets[key], concept="star", **variant.settings)
            return cells.measure([guard], GUIDED if variant.reads_both_rows else 1.0)
        except sr.GuardError as error:
            return {"error": str(error).split(";")[0]}

    rows = {}
    with progress_bar() as progress, progress.task("settings", len(VARIANTS)) as advance:
        for variant in VARIANTS:
            path = arguments.work / f"{hashlib.sha256(variant.name.encode()).hexdigest()[:12]}-{arguments.n}.json"
            if not path.exists():
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps({"name": variant.name, **measured(variant)}))
            row = json.loads(path.read_text())
            rows[row.pop("name")] = row
            advance(1, variant.name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "negation-search.json").write_text(json.dumps({"n": arguments.n, "rows": rows}, indent=1) + "\n")
    (arguments.out / "negation-search.md").write_text(markdown(rows, arguments.n))


if __name__ == "__main__":
    main()
