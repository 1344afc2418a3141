"""Trains hardened SafeRedir guards for PictoWorld, from the packaged ones: verdicts and redirection, or the verdicts alone.

Run: python benchmarks/harden_guards.py --tasks star --variants both calibrated
     python benchmarks/harden_guards.py --tasks emblem --variants mixed --with RAW --shares 0 1 --name prompt
     python benchmarks/harden_guards.py --tasks star --variants image --start runs/hardened/{task}-both.raw --name final
Prompts are those of guard-train: 700 pairs as the packaged guards had them, 500 whose attributes are phrased at levels of their
own, and 300 in which other words, too, are misspelt; 500 benign prompts and 200 misspelt ones. Roll-outs: --rollouts of 20 steps,
and 60 each of 2, 4 and 6. Thresholds come from --validation roll-outs of guard-validation prompts (those of calibrate_guards.py,
where there are some), but for those of which the CNN judge says otherwise than the prompt. "calibrated" is the packaged guard
with such thresholds, "mixed" one whose weights lie between those of the packaged guard and those of --with, at a share of the
way of their own for the image side and for the rest (as arXiv:2109.01903 mixes fine-tuned weights with those it began with).
Roll-outs are shared by the variants; a killed run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.calibrate_guards import prompts as validation_prompts
from torch import Tensor

import saferedir as sr
from saferedir.cli.common import progress_bar
from saferedir.guards.saferedir import SafeRedir
from saferedir.guards.saferedir.assessment import verdict
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.pictoworld.captions import MAX_CHARACTERS, sentence
from saferedir.pictoworld.evaluation import load_judge
from saferedir.pictoworld.phrases import LEVELS, choose_phrase, misspell, noise_part
from saferedir.pictoworld.tasks import TASKS, Task, pair, retain_prompts
from saferedir.training.saferedir.calibration import PROMPT_SHARE, prompt_scores
from saferedir.training.saferedir.dataset import Pair, encode_on_cpu
from saferedir.training.saferedir.losses import LossWeights
from saferedir.training.saferedir.recalibrate import CalibrationConfig, calibrate_guard
from saferedir.training.saferedir.thresholds import choose_threshold
from saferedir.training.saferedir.train import train_saferedir
from saferedir.training.saferedir.train_config import TrainConfig

SPLIT = "guard-train"
BASE: dict[str, Any] = {
    "steps": 180,
    "batch": 32,
    "learning_rate": 3e-4,
    "held_out": 0.1,
    "evaluate_every": 180,
    "calibration_scales": (4.0,),
}
VERDICTS_ONLY = LossWeights(mse=0, cosine=0, mask=0, pooled=0, align=0, minimal=0)
IMAGE = {"image_moves": 0.15, "final_frames": 0.3, "short_rollouts": 60}
PROMPT = {"prompt_moves": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "image": {**IMAGE, "image_moves": 0.06, "loss": VERDICTS_ONLY, "steps": 300, "batch": 64, "learning_rate": 5e-4},
    "wide": {**IMAGE, "loss": VERDICTS_ONLY, "steps": 300, "batch": 64, "learning_rate": 5e-4},
     "prompt": PROMPT, "both": {**IMAGE, **PROMPT}, "data": {"short_rollouts": 60},
     "hard": {**IMAGE, **PROMPT, "image_moves": 0.08, "short_rollouts": 120, "steps": 400, "batch": 64, "learning_rate": 5e-4},
}  # fmt: skip


def recombined(task: Task, rng: random.Random) -> Pair | None:
    """A pair whose attributes are phrased at levels of their own."""
    unsafe, safe = pair(task, SPLIT, rng)
    phrases, anchored = dict(unsafe.phrases), dict(safe.phrases)
    for attribute, value in task.forget.items():
        phrase = choose_phrase(attribute, value, rng.choice(LEVELS), rng, "train")
        phrases[attribute] = phrase
        if attribute not in task.anchor:
            anchored[attribute] = phrase
    order = rng.randrange(2**31)
    return _short(sentence(phrases, random.Random(order)), sentence(anchored, random.Random(order)))


def misspelt(text: str, count: int, rng: random.Random) -> str:
    """`count` words of at least four letters with typing errors that belong to training."""
    words = text.split()
    long = [index for index, word in enumerate(words) if sum(map(str.isalpha, word)) > 3]
    for index in rng.sample(long, min(count, len(long))):
        for _ in range(20):
            other = misspell(words[index], rng)
            if noise_part(other) == "train":
                words[index] = other
                break
    return " ".join(words)


def _short(unsafe: str, safe: str) -> Pair | None:
    is_pair = unsafe.lower() != safe.lower() and max(len(unsafe), len(safe)) <= MAX_CHARACTERS
    return Pair(unsafe, safe) if is_pair else None


def _misspelt_pair(task: Task, rng: random.Random) -> Pair | None:
    unsafe, safe = (prompt.text for prompt in pair(task, SPLIT, rng))
    return _short(misspelt(unsafe, rng.choice((1, 2, 3)), rng), safe)


def _usual_pair(task: Task, rng: random.Random) -> Pair | None:
    return _short(*(prompt.text for prompt in pair(task, SPLIT, rng)))


def hardened_pairs(task: Task) -> list[Pair]:
    """Prompts of the training split."""
    rng, found = random.Random(f"harden/{task.name}"), {}
    for make, count in ((_usual_pair, 700), (recombined, 1200), (_misspelt_pair, 1500)):
        while len(found) < count:
            row = make(task, rng)
            if row is not None:
                found.setdefault(str(row.unsafe).lower(), row)
    benign = [prompt.text for prompt in retain_prompts(task, SPLIT, 700, 1)]
    benign[500:] = [misspelt(text, rng.choice((1, 2)), rng) for text in benign[500:]]
    return [*found.values(), *(Pair(None, text) for text in benign)]


def judge_of(task: Task) -> Any:
    """Whether images show the task's concept, by the CNN judge, broken or not."""
    judge = load_judge()

    def shows(images: Tensor) -> Tensor:
        return judge.judge(images.clamp(0, 1)).is_labelled(dict(task.forget))

    return shows


def main() -> None:
    """Train and calibrate what is missing in --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["star"], choices=list(TASKS))
    parser.add_argument("--variants", nargs="+", default=["both"], choices=[*VARIANTS, "calibrated", "mixed"])
    parser.add_argument("--out", type=Path, default=Path("runs/hardened"))
    parser.add_argument(
        "--calibration", type=Path, default=Path("runs/calibrated"), help="of calibrate_guards.py, its roll-outs"
    )
    parser.add_argument("--start", default="pictoworld/{task}-usual", help="guard that the training begins with")
    parser.add_argument("--name", default="{variant}", help="of the guard's folder, after the task's name")
    parser.add_argument("--with", dest="other", default="", help="guard that mixed weights lead to")
    parser.add_argument(
        "--shares", nargs=2, type=float, default=[0.5, 0.5], help="of the way there: image side, the rest"
    )
    parser.add_argument("--prompts", type=int, default=0, help="more benign prompts for the prompt threshold")
    parser.add_argument("--prompt-threshold", type=float, help="to keep, and only measure")
    parser.add_argument("--verdicts", nargs="+", default=["prompt", "image"], help="whose thresholds are chosen")
    parser.add_argument("--rollouts", type=int, default=240, help="of 20 steps, for training")
    parser.add_argument("--validation", type=int, default=416, help="roll-outs for the thresholds")
    options = parser.parse_args()
    pipe = sr.load_pipeline("pictoworld")
    with progress_bar() as bar:
        for name in options.tasks:
            task, shows = TASKS[name], judge_of(TASKS[name])
            packaged = SafeRedir.from_pretrained(options.start.format(task=name))
            for variant in options.variants:
                label = options.name.format(variant=variant)
                out = options.out / f"{name}-{label}"
                if out.exists():
                    continue
                guard = packaged
                if variant == "mixed":
                    guard = mixed(packaged, SafeRedir.from_pretrained(options.other.format(task=name)), *options.shares)
                elif variant != "calibrated":
                    raw = options.out / f"{name}-{label}.raw"
                    if not raw.exists():
                        _share(options.out / f"{name}.rollouts", work := raw.with_name(raw.name + ".work"))
                        _train(pipe, task, raw, variant, packaged, shows, bar, work, options)
                    guard = SafeRedir.from_pretrained(raw)
                texts = [Pair(None, prompt.text) for prompt in retain_prompts(task, CALIBRATION, options.prompts, 1)]
                if options.verdicts == ["prompt"]:
                    rows = [*validation_prompts(task, options.validation // 2), *texts]
                    made = prompt_calibrated(pipe, guard, rows, options.prompt_threshold)
                    made.save_pretrained(out)
                    print(name, variant, _summary(made), flush=True)
                    continue
                calibration = CalibrationConfig(rollouts=options.validation, verdicts=tuple(options.verdicts))
                _share(options.calibration / f"{name}.work", shared := options.out / f"{name}.calibration")
                made = calibrate_guard(
                    pipe, guard, validation_prompts(task, options.validation // 2), config=calibration, shows=shows,
                    work=shared, progress=bar, note={"split": "pictoworld guard-validation"}, texts=texts,
                )  # fmt: skip
                made.save_pretrained(out)
                print(name, variant, _summary(made), flush=True)


def mixed(first: SafeRedir, second: SafeRedir, image_share: float, share: float) -> SafeRedir:
    """Weights on the way from the first guard to the second; thresholds are the first's."""
    ends = [guard.network.state_dict() for guard in (first, second)]
    shares = {name: image_share if name.startswith(IMAGE_SIDE) else share for name in ends[0]}
    weights = {
        name: torch.lerp(value.float(), ends[1][name].float(), shares[name]).to(value)
        for name, value in ends[0].items()
    }
    network = copy.deepcopy(first.network)
    network.load_state_dict(weights)
    config = with_mixture(first.config, second.config, image_share, share)
    guard = SafeRedir(config, network, first.anchor, first.anchor_pooled, first.manifold)
    guard.image_verifier = first.image_verifier
    return guard


def with_mixture(first: SafeRedirConfig, second: SafeRedirConfig, image_share: float, share: float) -> SafeRedirConfig:
    """The first guard's settings, with a record of what its weights were mixed with."""
    kept = ("steps", "learning_rate", "batch", "pairs", "benign_prompts", "image_moves", "prompt_moves", "rollouts")
    other = {name: second.training[name] for name in kept if name in second.training}
    mixture = {"with": other, "share_of_image_side": image_share, "share_of_the_rest": share}
    return replace(first, training={**first.training, "mixture": mixture})


def prompt_calibrated(pipe: Any, guard: SafeRedir, pairs: list[Pair], keep: float | None = None) -> SafeRedir:
    """The guard with another prompt threshold, or with `keep` and its rates; what is known of its image side stays."""
    unsafe, benign = (
        prompt_scores(guard.network, encode_on_cpu(pipe, [text for pair in pairs if (text := getattr(pair, side))]))
        for side in ("unsafe", "safe")
    )
    chosen = choose_threshold(benign, unsafe, 0.005, share=PROMPT_SHARE, keep=keep)
    rates = {"prompt_recall": chosen.recall.value, "prompt_false_positive_rate": chosen.false_positives.value}
    measured = {**guard.config.measured, **{name: round(value, 4) for name, value in rates.items()}}
    counts = {"held_out_unsafe_prompts": len(unsafe), "held_out_benign_prompts": len(benign)}
    config = replace(guard.config, prompt_threshold=chosen.value, measured={**measured, **counts})
    record = {**config.calibration, "prompt": chosen.to_dict()}
    config = replace(config, calibration={**record, "verdict": verdict(replace(config, calibration=record))})
    made = SafeRedir(config, guard.network, guard.anchor, guard.anchor_pooled, guard.manifold)
    made.image_verifier = guard.image_verifier
    return made


#: split of the prompts that thresholds are chosen on
CALIBRATION = "guard-validation"
#: parameters of the image verdict; it shares none with the prompt verdict and the redirection
IMAGE_SIDE = ("latent_encoder.", "t_encoder.", "image_trunk.", "heads.0.image_score.")


def _train(
    pipe: Any, task: Task, raw: Path, variant: str, packaged: SafeRedir, shows: Any, bar: Any, work: Path, options: Any
) -> None:
    anchor = packaged.config.training["anchor"]
    counts = {"rollouts": options.rollouts, "held_out_rollouts": options.rollouts // 6}
    config = TrainConfig(**{**BASE, **counts, **VARIANTS[variant], "anchor": anchor})
    shared = options.out / f"{task.name}.rollouts"

    def keep(scores: dict[str, Any]) -> None:
        shared.mkdir(parents=True, exist_ok=True)
        for path in work.glob("rollout-*.safetensors"):
            if not (shared / path.name).exists():
                shutil.copy(path, shared / path.name)
        print(task.name, variant, {name: round(value, 4) for name, value in scores.items()}, flush=True)

    train_saferedir(
        pipe,
        hardened_pairs(task),
        raw,
        concept=task.name,
        config=config,
        progress=bar,
        log=keep,
        start=packaged,
        shows=shows,
    )


def _share(source: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for path in source.glob("rollout-*.safetensors"):
        if not (work / path.name).exists():
            shutil.copy(path, work / path.name)


def _summary(guard: SafeRedir) -> str:
    record = guard.config.calibration
    thresholds = {key: getattr(guard.config, f"{key}_threshold") for key in ("prompt", "image", "last")}
    return json.dumps({key: {"threshold": round(value, 3), **record[key]} for key, value in thresholds.items()})


if __name__ == "__main__":
    main()
