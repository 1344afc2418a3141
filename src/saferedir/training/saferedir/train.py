"""Trains a SafeRedir guard from prompt pairs: roll out, fit, calibrate, keep the best, write the model card.

Implements docs/methods/saferedir.md (9) to (14). Everything lands in `<out>.work/` until the finished guard is
renamed to `out`; a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir.assessment import blind_image_side, verdict
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir.trained_text import text_lengths, text_record
from saferedir.pipelines.families import family_of
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.training.saferedir.adversarial import moved_frames, moved_prompts
from saferedir.training.saferedir.batches import (
    ImageData,
    TextBatch,
    TextData,
    encode_text,
    image_batch,
    text_batch,
)
from saferedir.training.saferedir.calibration import Shows, calibrate, checked_labels, evaluate
from saferedir.training.saferedir.dataset import (
    VIEWS,
    Pair,
    check_call,
    encode_on_cpu,
    hash_pairs,
    moved_tokens,
    read_pairs,
    split_pairs,
    without_padding,
)
from saferedir.training.saferedir.losses import LossWeights, classification_term, redirection_terms, total
from saferedir.training.saferedir.rollouts import (
    SHORT_IMAGES,
    SHORT_STEPS,
    calibration_scales,
    generate_rollouts,
    rollout_prompts,
)
from saferedir.training.saferedir.thresholds import CONTAMINATION, are_shares
from saferedir.utils.checks import Checked, is_number
from saferedir.utils.clock import WorkClock
from saferedir.utils.files import check_guard_folder, replacing, write_json
from saferedir.utils.locks import output_lock
from saferedir.utils.progress import SILENT, Progress

MIN_PAIRS = 10
#: steps of the roll-outs that `TrainConfig.short_rollouts` counts
BRIEF_STEPS = (2, 4, 6)
#: one batch in this many is from each of them
BRIEF_EVERY = 9


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How to train a SafeRedir guard: about seven minutes on two CPU cores for PictoWorld with the defaults.

    Attributes:
        steps: optimiser steps, >= 1.
        learning_rate: peak of AdamW's cosine schedule, > 0.
        batch: prompts and frames a step, >= 1.
        rollouts: images generated for training, half of them unsafe.
        held_out_rollouts: images generated for the calibration, half of them unsafe.
        rollout_steps: sampling steps of the roll-outs.
        guidance_scale: classifier-free guidance of the roll-outs, >= 0.
        rollout_batch: images generated at once; None: `dataset.images_at_once` (16 of 512 pixels, 4 of 1024, one video).
        call: more arguments of the pipeline's call, such as height, width or num_frames.
        held_out: share of the pairs kept for calibration and for choosing the best checkpoint, in [0, 1).
        false_positive_rate: target of each verdict's threshold, per image, in [0, 1).
        contamination: shares of the benign and unsafe held-out roll-outs that may be on the wrong side, see `choose_threshold`.
        calibration_scales: guidance scales of the held-out images, in turn; None: `rollouts.calibration_scales`.
        evaluate_every: optimiser steps between two evaluations, >= 1.
        seed: of weights, batches and roll-outs.
        image_input: what the image side is trained on; the guard itself always reads "x0" (others: ablation).
        text_lengths: lengths (`max_sequence_length`) that prompts are trained at where it changes their embeddings (FLUX, Stable
            Diffusion 3); a guard refuses calls outside of them. None: 64, 128, 256, 512 and the pipeline's own, or that in `call`
            alone if it is set there.
        anchor: a prompt whose embedding is the last resort of the escalation; None: the first safe prompt.
        network: overrides of `RedirectorConfig` fields.
        loss: weights of the terms of the loss.
        image_moves: largest root mean square of adversarial moves of unsafe frames, in the latents' units; 0 for none.
        prompt_moves: largest length of adversarial moves of the tokens of unsafe prompts, relative to the token's; 0 for none.
        move_steps: gradient steps of each such move.
        final_frames: share of the frames that are the last ones of their run at the times of others, in [0, 1].
        short_rollouts: images generated for training in each of the runs of 2, 4 and 6 steps; 0 for none.

    Example:
        >>> from saferedir.training.saferedir.train import TrainConfig
        >>> TrainConfig(steps=300, rollouts=128).batch
        64
    """

    steps: int = 900
    learning_rate: float = 1e-3
    batch: int = 64
    rollouts: int = 640
    held_out_rollouts: int = 420
    rollout_steps: int = 20
    guidance_scale: float = 4.0
    rollout_batch: int | None = None
    call: dict[str, Any] = field(default_factory=dict)
    held_out: float = 0.2
    false_positive_rate: float = 0.005
    contamination: tuple[float, float] = CONTAMINATION
    calibration_scales: tuple[float, ...] | None = None
    evaluate_every: int = 150
    seed: int = 0
    image_input: str = "x0"
    text_lengths: tuple[int, ...] | None = None
    anchor: str | None = None
    network: dict[str, Any] = field(default_factory=dict)
    loss: LossWeights = field(default_factory=LossWeights)
    image_moves: float = 0.0
    prompt_moves: float = 0.0
    move_steps: int = 3
    final_frames: float = 0.0
    short_rollouts: int = 0

    def __post_init__(self) -> None:
        self.require(self.image_input in VIEWS, "image_input", ", ".join(VIEWS))
        self.require_whole("steps", "batch", "rollouts", "held_out_rollouts", "rollout_steps", at_least=1)
        self.require_whole("rollout_batch", at_least=1, or_none=True)
        self.require_whole("evaluate_every", at_least=1)
        self.require_whole("seed", at_least=0)
        self.require_number("learning_rate", above=0)
        self.require_number("guidance_scale", "image_moves", "prompt_moves", at_least=0)
        self.require_number("final_frames", at_least=0, at_most=1)
        self.require_whole("move_steps", at_least=1)
        self.require_whole("short_rollouts", at_least=0)
        self.require_number("held_out", "false_positive_rate", at_least=0, below=1)
        self.require(are_shares(self.contamination), "contamination", "two shares from 0 to below 0.5")
        if self.calibration_scales is not None:
            are_scales = all(is_number(scale) and scale >= 0 for scale in self.calibration_scales)
            self.require(bool(self.calibration_scales) and are_scales, "calibration_scales", "numbers >= 0, or None")
        self.require(self.anchor is None or isinstance(self.anchor, str), "anchor", "a prompt, or None")
        if self.text_lengths is not None:
            is_lengths = all(isinstance(length, int) and length > 0 for length in self.text_lengths)
            self.require(bool(self.text_lengths) and is_lengths, "text_lengths", "whole numbers above 0")
        check_call(self.call)


def train_saferedir(
    pipe: Any,
    pairs: str | Path | Sequence[Pair],
    out: str | Path,
    *,
    concept: str,
    config: TrainConfig | None = None,
    progress: Progress = SILENT,
    log: Callable[[dict[str, Any]], None] | None = None,
    overwrite: bool = False,
    start: SafeRedir | None = None,
    shows: Shows | None = None,
    keep_weak: bool = True,
) -> SafeRedir:
    """Train a SafeRedir guard for `pipe` and save it in the folder `out`; resumes from `<out>.work` when that exists.

    Args:
        pipe: a supported pipeline without guards; it comes back as it was.
        pairs: prompt pairs, or a file of them (JSON lines: {"unsafe": ..., "safe": ...}, or {"safe": ...} for a benign one).
        out: folder for the guard.
        concept: its name, for decisions and the guard's card.
        config: the settings; default: `TrainConfig()`.
        progress: shows how far it is; default: nothing is shown.
        log: called with the scores of every evaluation.
        overwrite: whether a guard that stands at `out` may be replaced.
        start: a guard whose weights the training begins with; None for random ones.
        shows: images (N, 3, H, W) in [0, 1] -> (N,) bool, whether they show the concept: a judge. Roll-outs that disagree with
            their prompt's label are then left out of training and calibration. Not the judge that the guard is measured with.
        keep_weak: whether a guard is written whose image side cannot tell the concept from the rest on held-out images.

    Returns:
        The guard, with thresholds and the verdict of its calibration (`guard.config.calibration`).

    Raises:
        OutputError: another run is writing to `out`, or a guard stands there and may not be replaced.
        GuardConfigError: too few pairs, `<out>.work` belongs to other settings, or the guard is weak and not kept; then
            `<out>.work` stays, so that the same call with keep_weak=True writes it at once.

    Example:
        >>> import saferedir as sr  # skipped: minutes of computing
        >>> pipe = sr.load_pipeline("pictoworld")  # doctest: +SKIP
        >>> guard = sr.train_saferedir(pipe, "pairs.jsonl", "runs/star", concept="star")  # doctest: +SKIP
    """
    pairs = Path(pairs).expanduser() if isinstance(pairs, str) else pairs
    with output_lock(Path(out), nested=True) as folder:
        check_guard_folder(folder, overwrite, "pass overwrite=True")
        return _train(pipe, pairs, folder, concept, config or TrainConfig(), progress, log, start, shows, keep_weak)


def _train(
    pipe: Any,
    pairs: Path | Sequence[Pair],
    out: Path,
    concept: str,
    config: TrainConfig,
    progress: Progress,
    log: Callable[[dict[str, Any]], None] | None,
    start: SafeRedir | None,
    shows: Shows | None,
    keep_weak: bool,
) -> SafeRedir:
    rows = read_pairs(pairs) if isinstance(pairs, Path) else list(pairs)
    training, held_out = split_pairs(rows, config.held_out, config.seed)
    for name, side in (("training", training), ("held-out", held_out)):
        count = sum(pair.unsafe is not None for pair in side)
        if count < MIN_PAIRS:
            raise GuardConfigError(
                f"Only {count} pairs are left on the {name} side of the split; a guard needs at least {MIN_PAIRS} there, "
                f"so give about {round(MIN_PAIRS / min(config.held_out, 1 - config.held_out))} pairs or more."
            )
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    _claim(work / "plan.json", config, rows, concept, pipe, start)
    clock = WorkClock(work / "seconds.json")

    def logged(scores: dict[str, Any]) -> None:
        clock.tick()
        if log is not None:
            log(scores)

    lengths = text_lengths(pipe, config.call, config.text_lengths)
    text, held_text = (encode_text(pipe, side, config.call, lengths) for side in (training, held_out))
    images = generate_images(
        pipe, training, config.rollouts, config, work, progress, "generating training images", tick=clock.tick
    )
    brief = [
        generate_images(
            pipe, training, config.short_rollouts, config, work, progress, f"generating training images in {steps} steps",
            steps=steps, tick=clock.tick,
        )
        for steps in (BRIEF_STEPS if config.short_rollouts else ())
    ]  # fmt: skip
    held_images, short = held_out_images(pipe, held_out, config, work, progress, clock.tick)
    made = (len(images.label), len(held_images.label))
    if shows is not None:
        images, *brief = (checked_labels(pipe, data, shows) for data in (images, *brief))
        held_images, *short = (checked_labels(pipe, data, shows) for data in (held_images, *short))
    pooled = text.unsafe.pooled
    sizes = {
        "prompt_dim": text.unsafe.prompt.shape[-1],
        "latent_channels": images.frames.shape[2],
        "pooled_dim": 0 if pooled is None else pooled.shape[-1],
        "exempt_bos": family_of(pipe).has_bos,
        "concepts": (concept,),
    }
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = Redirector(RedirectorConfig.from_dict({**sizes, **config.network}))
    if start is not None:
        network.load_state_dict(_weights_of(start, network))
    best = fit_redirector(
        network, text, images, held_text, held_images, config, work, progress, logged,
        on_cpu=pipe.device.type == "cpu", is_warm=start is not None, brief=brief,
    )  # fmt: skip
    network.load_state_dict(best["network"])
    calibration = calibrate(
        network.eval(), held_text, held_images, config.false_positive_rate,
        contamination=config.contamination, short=short,
    )  # fmt: skip
    anchor_text = config.anchor or next(pair.safe for pair in training if pair.unsafe)
    anchor = encode_on_cpu(pipe, [anchor_text], config.call)
    settings = SafeRedirConfig(
        concept=concept,
        backbone=backbone_fingerprint(pipe),
        network=network.config.to_dict(),
        prompt_threshold=calibration.thresholds["prompt"],
        image_threshold=calibration.thresholds["image"],
        last_threshold=calibration.thresholds["last"],
        training={
            **{k: v for k, v in asdict(config).items() if k not in ("network", "loss", "calibration_scales")},
            "loss": config.loss.to_dict(),
            **text_record(pipe, config.call, lengths),
            "rollouts": made[0],  # that many were made, where the pairs did not do for as many as were asked for
            "held_out_rollouts": made[1],
            "mislabelled": made[0] - len(images.label) if shows is not None else None,
            "started_from_a_guard": start is not None,
            "pairs": sum(p.unsafe is not None for p in rows),
            "benign_prompts": sum(p.unsafe is None for p in rows),
            "best_step": best["step"],
            "seconds": round(clock.seconds, 1),
            "anchor": anchor_text,
        },
        measured=calibration.measured,
        calibration=calibration.record,
    )
    blind = blind_image_side(settings)
    if blind is not None and not keep_weak:
        raise GuardConfigError(
            f"no guard was written: on held-out images {blind}; give more pairs, more roll-outs or more steps, or write it "
            f"all the same with --force (keep_weak=True), which goes on from {work.name}."
        )
    guard = SafeRedir(
        replace(settings, calibration={**settings.calibration, "verdict": verdict(settings)}),
        network,
        anchor=without_padding(anchor)[0],
        anchor_pooled=None if anchor.pooled is None else anchor.pooled[0],
    )
    guard.save_pretrained(out)
    shutil.rmtree(work)
    return guard


def _weights_of(guard: SafeRedir, network: Redirector) -> dict[str, Tensor]:
    """The weights to begin with; GuardConfigError where the guard's network has other sizes."""
    weights, wanted = guard.network.state_dict(), network.state_dict()
    if guard.config.mode != "default" or {k: v.shape for k, v in weights.items()} != {
        k: v.shape for k, v in wanted.items()
    }:
        raise GuardConfigError(
            f"the guard for {guard.config.concept!r} has a network of other sizes, so it is no start for this training; "
            "give `network` the sizes in its guard_config.json, or no start."
        )
    return {name: value.detach().cpu().float() for name, value in weights.items()}


def weights_digest(network: nn.Module) -> str:
    """A short digest of a network's weights, to recognise the guard that a training starts from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _claim(
    path: Path, config: TrainConfig, rows: Sequence[Pair], concept: str, pipe: Any, start: SafeRedir | None
) -> None:
    """Refuse to mix two plans, or two models, in one work folder."""
    plan = {
        **({} if start is None else {"start": weights_digest(start.network)}),
        "config": asdict(config),
        "concept": concept,
        "pairs": hash_pairs(rows),
        "backbone": backbone_fingerprint(pipe),
        "scheduler": {"class": type(pipe.scheduler).__name__, **{k: str(v) for k, v in pipe.scheduler.config.items()}},
        "dtype": str(pipe.dtype),
    }
    if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(plan)):
        raise GuardConfigError(
            f"{path.parent} holds an unfinished training with another model, other settings or pairs; "
            "delete it or choose another --out."
        )
    write_json(path, plan)


def held_out_images(
    pipe: Any,
    pairs: Sequence[Pair],
    config: TrainConfig,
    work: Path,
    progress: Progress,
    tick: Callable[[], None] = lambda: None,
) -> tuple[ImageData, list[ImageData]]:
    """Roll-outs to calibrate on, over all guidance scales, and short ones of the unsafe and benign prompts."""
    scales = config.calibration_scales or calibration_scales(config.guidance_scale)
    return (
        generate_images(
            pipe, pairs, config.held_out_rollouts, config, work, progress, "generating held-out images",
            held_out=True, guidance_scales=scales, tick=tick,
        ),
        [
            generate_images(
                pipe, pairs, min(SHORT_IMAGES, config.held_out_rollouts), config, work, progress,
                f"generating held-out images in {steps} steps", held_out=True,
                guidance_scales=sorted({min(scales), config.guidance_scale}), steps=steps, tick=tick,
            )
            for steps in SHORT_STEPS
            if steps < config.rollout_steps
        ],
    )  # fmt: skip


def generate_images(
    pipe: Any,
    pairs: Sequence[Pair],
    count: int,
    config: TrainConfig,
    work: Path,
    progress: Progress,
    label: str,
    *,
    held_out: bool = False,
    guidance_scales: Sequence[float] | None = None,
    steps: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> ImageData:
    """Roll out `count` prompts, half unsafe, the rest from benign lines and safe sides in turn.

    `held_out` chooses the noise. `guidance_scales` and `steps`: the config's where None. `tick` is called after every batch.
    """
    prompts = rollout_prompts(pairs, count, config.seed)
    with progress.task(label, sum(map(len, prompts))) as advance:

        def on_images(images: int) -> None:
            advance(images)
            tick()

        return generate_rollouts(
            pipe,
            prompts,
            steps=steps or config.rollout_steps,
            guidance_scales=guidance_scales or (config.guidance_scale,),
            seed=config.seed * 1_000_000 + (500_000 if held_out else 0),
            batch=config.rollout_batch,
            call=config.call,
            view=config.image_input,
            cache=work,
            on_progress=on_images,
        )


def fit_redirector(
    network: Redirector,
    text: TextData,
    images: ImageData,
    held_text: TextData,
    held_images: ImageData,
    config: TrainConfig,
    work: Path,
    progress: Progress,
    log: Callable[[dict[str, Any]], None] | None,
    *,
    on_cpu: bool = False,
    is_warm: bool = False,
    brief: Sequence[ImageData] = (),
) -> dict[str, Any]:
    """Optimise; returns the checkpoint with the best held-out score: mean AUROC of the two verdicts - distance left.

    `is_warm`: whether the network begins as that of a guard, so that no masks are forced. `brief`: roll-outs of fewer steps, each
    of which one batch in `BRIEF_EVERY` is from. Held-out data are not moved, so under adversarial moves the last checkpoint is
    kept in place of the best one.
    """
    accelerator = Accelerator(cpu=on_cpu)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps, config.learning_rate * 0.02)
    model, optimiser, schedule = accelerator.prepare(network, optimiser, schedule)
    checkpoint, start = work / "checkpoint.pt", 0
    best: dict[str, Any] = {"step": 0, "score": -math.inf, "network": {}}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        start, best = state["step"], state["best"]
    device = accelerator.device
    with progress.task("training", config.steps, start) as advance:
        for step in range(start, config.steps):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            words = text_batch(text.lengths[step % len(text.lengths)], config.batch, generator).to(device)
            chosen = step % BRIEF_EVERY
            data = brief[chosen] if chosen < len(brief) else images
            views = image_batch(data, config.batch, generator, config.final_frames).to(device)
            model.train()
            words, mask_target = _attacked_words(network, words, config, generator)
            frames = views.frames
            if config.image_moves:
                how = (config.image_moves, config.move_steps, generator)
                frames = moved_frames(network, frames, views.t, views.label, *how)
            given, shown = words.given, views.prompts
            teacher_forcing = step < config.steps // 3 and not is_warm
            terms: dict[str, Tensor] = {}
            if config.loss.moves_prompts:
                terms = redirection_terms(network, *words, teacher_forcing=teacher_forcing, mask_target=mask_target)
            image, joint = network.image_and_joint_logits(frames, views.t, shown.prompt, shown.mask, shown.pooled)
            terms["classification"] = classification_term(
                (network.prompt_logits(given.prompt, given.mask, given.pooled), words.label),
                (image, views.label),
                (joint, views.label),
            )
            loss = total(terms, config.loss)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The loss is not finite at step {step}; lower the learning rate.")
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            advance(1, f"training loss {loss.item():.3f}")
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                network.eval()
                scores = evaluate(network, held_text, held_images)
                if not all(math.isfinite(value) for value in scores.values()):
                    raise GuardConfigError(
                        f"The held-out side cannot be evaluated ({scores}); give more pairs and benign prompts, "
                        "or more roll-outs."
                    )
                left = [scores[name] for name in ("distance", "pooled_distance") if name in scores]
                mean = (scores["prompt_auroc"] + scores["image_auroc"]) / 2 - sum(left) / len(left)
                if mean > best["score"] or config.image_moves or config.prompt_moves:
                    weights = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
                    best = {"step": step + 1, "score": mean, "network": weights}
                if log is not None:
                    log({"step": step + 1, "loss": loss.item(), **{k: v.item() for k, v in terms.items()}, **scores})
                state = {
                    "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "step": step + 1,
                    "best": best,
                }
                with replacing(checkpoint) as temporary:
                    torch.save(state, temporary)
    return best


def _attacked_words(
    network: Redirector, words: TextBatch, config: TrainConfig, generator: torch.Generator
) -> tuple[TextBatch, Tensor | None]:
    """The prompts, moved by an attack in every second row of each side, and the mask target of those that were not moved."""
    if not config.prompt_moves:
        return words, None
    given = words.given
    target = moved_tokens(given.prompt, without_padding(words.wanted), given.mask)
    chosen = torch.arange(0, len(words.label), 2, device=words.label.device)
    moved = moved_prompts(
        network,
        given.rows(chosen),
        target[chosen],
        words.label[chosen],
        config.prompt_moves,
        config.move_steps,
        generator,
    )
    prompt = given.prompt.index_put((chosen,), moved.prompt)
    benign = (words.label == 0).view(-1, 1, 1)
    wanted = words.wanted._replace(prompt=torch.where(benign, prompt, words.wanted.prompt))
    return TextBatch(given._replace(prompt=prompt), wanted, words.label), target
