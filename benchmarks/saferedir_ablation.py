"""Settles the choices of docs/methods/saferedir.md by ablation on PictoWorld; makes the figures of
docs/saferedir-ablation.md.

Run: python benchmarks/saferedir_ablation.py --task star --out docs
Tables for that page go to --work; its text is written by hand. Uses guard-train prompts for training and guard-validation
prompts for every figure: no test phrasing is touched. Questions: what the image side should look at, and when it knows; which
loss terms matter; one direction or one per token; mask after normalising; conditional half or both; the strength s.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.progress import Progress

import saferedir as sr
from saferedir.guards.saferedir import Redirector, RedirectorConfig, SafeRedir, SafeRedirConfig
from saferedir.guards.saferedir.network import Redirection
from saferedir.metrics import auroc
from saferedir.pictoworld.evaluation import (
    Generation,
    attributes_kept,
    cell,
    concept_rate,
    generate,
    load_judge,
    rate_of,
)
from saferedir.pictoworld.tasks import TASKS, Task, forget_prompts, pair, retain_prompts
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.precision import fast_precision
from saferedir.training.saferedir.batches import encode_text
from saferedir.training.saferedir.calibration import evaluate, held_out_scores
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.saferedir.fit import fit_redirector
from saferedir.training.saferedir.losses import LossWeights
from saferedir.training.saferedir.train import generate_images
from saferedir.training.saferedir.train_config import TrainConfig

LOSS_VARIANTS = {
    "all six terms": LossWeights(),
    "without mse": LossWeights(mse=0.0),
    "without cosine": LossWeights(cosine=0.0),
    "without mask": LossWeights(mask=0.0),
    "without align": LossWeights(align=0.0),
    "without minimal": LossWeights(minimal=0.0),
}


def make_pairs(task: Task, split: str, count: int, benign: int) -> list[Pair]:
    """Pairs and benign prompts of a split."""
    rng = random.Random(f"ablation/{task.name}/{split}")
    found: dict[str, Pair] = {}
    while len(found) < count:
        unsafe, safe = pair(task, split, rng)
        found.setdefault(unsafe.text.lower(), Pair(unsafe.text, safe.text))
    return [*found.values(), *(Pair(None, p.text) for p in retain_prompts(task, split, benign))]


class Unmasked(Redirector):
    """A redirector whose mask is always one: the reference's order, where normalising cancels the mask."""

    def redirection(self, *args: Any, **kwargs: Any) -> Redirection:
        found = super().redirection(*args, **kwargs)
        return replace(found, mask=torch.ones_like(found.mask))


def guard_of(network: Redirector, pipe: Any, **changes: Any) -> SafeRedir:
    """A guard that always redirects: decisions are not in question here."""
    settings = {"prompt_threshold": -1e9, "use_image": False, "network": network.config.to_dict(), **changes}
    return SafeRedir(SafeRedirConfig(concept="ablation", backbone=backbone_fingerprint(pipe), **settings), network)


class Study:
    """One task's data, and the measurements that every variant shares."""

    def __init__(self, task: Task, pipe: Any, images: int, steps: int, work: Path, progress: Any) -> None:
        self.task, self.pipe, self.steps, self.work, self.progress = task, pipe, steps, work, progress
        self.judge = load_judge()
        self.train_pairs = make_pairs(task, "guard-train", 800, 500)
        self.held_pairs = make_pairs(task, "guard-validation", 200, 300)
        self.text, self.held_text = encode_text(pipe, self.train_pairs), encode_text(pipe, self.held_pairs)
        self.config = TrainConfig(steps=steps, rollouts=300, held_out_rollouts=200, evaluate_every=steps)
        self.images = {name: self.frames(self.train_pairs, name, "training") for name in ("x_t", "x0_uncond", "x0")}
        self.held_images = {name: self.frames(self.held_pairs, name, "held-out") for name in ("x_t", "x0_uncond", "x0")}
        self.prompts = forget_prompts(task, "guard-validation", images)
        self.texts = [p.text for p in self.prompts]
        self.plain = self.generate()
        self.plain_judged = self.judge.judge(self.plain.images)

    def frames(self, pairs: list[Pair], name: str, side: str) -> Any:
        """Roll-outs (cached) seen through one of the three inputs."""
        config = replace(self.config, image_input=name)
        count = config.rollouts if side == "training" else config.held_out_rollouts
        return generate_images(
            self.pipe, pairs, count, config, self.work, self.progress, f"{side} images", held_out=side != "training"
        )

    def train(self, image_input: str = "x0", loss: LossWeights | None = None, **network: Any) -> Redirector:
        """Train one variant."""
        torch.manual_seed(0)
        sizes = {"prompt_dim": self.text.unsafe.prompt.shape[-1], "latent_channels": 4, "concepts": (self.task.name,)}
        model = Redirector(RedirectorConfig.from_dict({**sizes, **network}))
        config = replace(self.config, loss=loss or LossWeights())
        with tempfile.TemporaryDirectory() as room:
            best = fit_redirector(
                model, self.text, self.images[image_input], self.held_text, self.held_images[image_input],
                config, Path(room), self.progress, None,
            )  # fmt: skip
        model.load_state_dict(best["network"])
        return model.eval()

    def generate(self, *guards: SafeRedir) -> Generation:
        """The forget prompts, with or without a guard."""
        with fast_precision(self.pipe.device):
            return generate(self.pipe, self.texts, guards=guards)

    def redirect_rates(self, guard: SafeRedir) -> dict[str, Any]:
        """Concept rate, attributes kept and broken rate with the guard always on."""
        judged = self.judge.judge(self.generate(guard).images)
        return {
            "concept_rate": concept_rate(judged, self.task).to_dict(),
            "attributes_kept": attributes_kept(judged, self.plain_judged, self.prompts, self.task).to_dict(),
            "broken": rate_of(judged.is_broken).to_dict(),
        }


def input_question(study: Study) -> dict[str, Any]:
    """AUROC per step for each input, image alone and together with the prompt."""
    out: dict[str, Any] = {}
    for name in ("x_t", "x0_uncond", "x0"):
        only = LossWeights(mse=0, cosine=0, mask=0, align=0, minimal=0)
        network = study.train(name, only)
        held = study.held_images[name]
        scores = held_out_scores(network, study.held_text, held)
        labels = torch.cat(
            [torch.ones(len(study.held_text.unsafe.prompt)), torch.zeros(len(study.held_text.benign.prompt))]
        )
        out[name] = {
            "t": [round(v) for v in held.t.tolist()],
            "image": [round(auroc(scores["image"][:, s], held.label), 4) for s in range(len(held.t))],
            "with_prompt": [round(auroc(scores["joint"][:, s], held.label), 4) for s in range(len(held.t))],
            "prompt": round(auroc(torch.cat([scores["prompt_unsafe"], scores["prompt_benign"]]), labels), 4),
        }
    return out


def loss_question(study: Study) -> dict[str, Any]:
    """Each loss term left out, and the shared direction."""
    out = {}
    variants: dict[str, dict[str, Any]] = {name: {"loss": loss} for name, loss in LOSS_VARIANTS.items()}
    variants["one shared direction"] = {"token_specific": False}
    for name, settings in variants.items():
        network = study.train(**settings)
        scores = evaluate(network, study.held_text, study.held_images["x0"])
        out[name] = {"distance": round(scores["distance"], 4), **study.redirect_rates(guard_of(network, study.pipe))}
    return out


def application_question(study: Study) -> dict[str, Any]:
    """One trained network, applied in different ways."""
    network = study.train()
    unmasked = Unmasked(network.config)
    unmasked.load_state_dict(network.state_dict())
    out = {"as trained (s = 1, conditional half, mask after normalising)": guard_of(network, study.pipe)}
    out["no mask (the reference's order)"] = guard_of(unmasked.eval(), study.pipe)
    out["both halves"] = guard_of(network, study.pipe, redirect_uncond=True)
    for scale in (0.5, 0.75, 1.25, 1.5):
        out[f"s = {scale}"] = guard_of(network, study.pipe, scale=scale)
    return {name: study.redirect_rates(guard) for name, guard in out.items()}


def plot_inputs(results: dict[str, Any], path: Path) -> None:
    """AUROC over the run, one line an input, solid without and dashed with the prompt."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    labels = {"x_t": "noisy latent x_t (reference)", "x0_uncond": "x0, unconditional row", "x0": "x0, guided (ours)"}
    for colour, (name, label) in zip(("tab:red", "tab:blue", "tab:green"), labels.items(), strict=True):
        axes.plot(results[name]["t"], results[name]["image"], color=colour, label=label)
        axes.plot(results[name]["t"], results[name]["with_prompt"], color=colour, linestyle="--", alpha=0.6)
    axes.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlim=(1000, 0), ylim=(0.45, 1.01), xlabel="timestep t (sampling runs to the right)", ylabel="AUROC")
    axes.set_title("When does the image side know? (dashed: together with the prompt)", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_rates(results: dict[str, Any], title: str, path: Path) -> None:
    """Concept rate and attributes kept, with Wilson intervals."""
    names = list(results)
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.45 * len(names) + 1.4), layout="constrained", sharey=True)
    for axis, key, label in zip(
        axes, ("concept_rate", "attributes_kept"), ("concept rate (lower is better)", "attributes kept"), strict=True
    ):
        for row, name in enumerate(names):
            rate = results[name][key]
            axis.plot([rate["low"], rate["high"]], [row, row], color="tab:blue", linewidth=2)
            axis.plot(rate["rate"], row, "o", color="tab:blue")
        axis.set(xlim=(-0.02, 1.02), xlabel=label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def rate_table(results: dict[str, Any]) -> str:
    """Markdown rows of a question's results."""

    head = (
        "| variant | distance to the safe prompt | concept rate | attributes kept | broken |\n|---|---|---|---|---|\n"
    )
    return head + "\n".join(
        f"| {name} | {row.get('distance', '')} | {cell(row['concept_rate'])} | {cell(row['attributes_kept'])} | {cell(row['broken'])} |"  # noqa: E501
        for name, row in results.items()
    )


def input_table(results: dict[str, Any]) -> str:
    """AUROC at every second recorded step."""
    times = results["x0"]["t"][::2]
    rows = [f"| {name}, {kind.replace('_', ' ')} | " + " | ".join(f"{v:.3f}" for v in results[name][kind][::2]) + " |"
            for name in ("x_t", "x0_uncond", "x0") for kind in ("image", "with_prompt")]  # fmt: skip
    return (
        "| input | "
        + " | ".join(f"t={t}" for t in times)
        + " |\n|---" * 1
        + "|---" * len(times)
        + "|\n"
        + "\n".join(rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="star", choices=list(TASKS))
    parser.add_argument("--images", type=int, default=100, help="forget prompts drawn for every variant")
    parser.add_argument("--steps", type=int, default=500, help="training steps of every variant")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    pipe = sr.load_pipeline("pictoworld")
    results: dict[str, Any] = {}
    with Progress() as progress:
        study = Study(TASKS[arguments.task], pipe, arguments.images, arguments.steps, arguments.work, progress)
        results["unguarded"] = concept_rate(study.plain_judged, study.task).to_dict()
        for name, question in (
            ("inputs", input_question),
            ("losses", loss_question),
            ("application", application_question),
        ):
            path = arguments.work / f"{arguments.task}-{name}.json"
            results[name] = json.loads(path.read_text()) if path.exists() else question(study)
            path.write_text(json.dumps(results[name], indent=1))
    results["seconds"] = round(time.perf_counter() - started)
    plot_inputs(results["inputs"], arguments.out / "saferedir-ablation-inputs.png")
    plot_rates(results["losses"], "Loss terms and the direction head", arguments.out / "saferedir-ablation-losses.png")
    plot_rates(
        results["application"],
        "Ways to apply one trained network",
        arguments.out / "saferedir-ablation-application.png",
    )
    (arguments.out / "saferedir-ablation.json").write_text(
        json.dumps({"task": arguments.task, **results}, indent=1) + "\n"
    )
    body = (
        f"Task `{arguments.task}`, {arguments.images} guard-validation prompts a row, unguarded concept rate "
        f"{results['unguarded']['rate']:.3f}, {arguments.steps} training steps a variant, Wilson intervals.\n\n"
        f"## Inputs\n\n{input_table(results['inputs'])}\n\n## Losses\n\n{rate_table(results['losses'])}\n\n"
        f"## Application\n\n{rate_table(results['application'])}\n"
    )
    (arguments.work / f"{arguments.task}-tables.md").write_text(body)


if __name__ == "__main__":
    main()
