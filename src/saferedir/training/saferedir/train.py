"""Trains a SafeRedir guard from prompt pairs: roll out, fit, calibrate, keep the best, write the model card.

Implements docs/methods/saferedir.md (9) to (14). Everything lands in `<out>.work/` until the finished guard is
renamed to `out`; a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir.anchors import without_padding
from saferedir.guards.saferedir.assessment import blind_image_side, verdict
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.guards.saferedir.trained_text import text_lengths, text_record
from saferedir.pipelines.families import family_of
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.training.saferedir.batches import ImageData, encode_text
from saferedir.training.saferedir.calibration import Shows, calibrate, checked_labels
from saferedir.training.saferedir.dataset import (
    Pair,
    encode_on_cpu,
    hash_pairs,
    read_pairs,
    require_call_arguments,
    split_pairs,
)
from saferedir.training.saferedir.fit import fit_redirector
from saferedir.training.saferedir.rollouts import (
    SHORT_IMAGES,
    calibration_scales,
    generate_rollouts,
    rollout_prompts,
    short_steps,
)
from saferedir.training.saferedir.train_config import TrainConfig
from saferedir.training.work_folder import claim
from saferedir.utils.clock import WorkClock
from saferedir.utils.digests import add_values
from saferedir.utils.files import check_guard_folder
from saferedir.utils.locks import output_lock
from saferedir.utils.progress import SILENT, Progress

MIN_PAIRS = 10
#: steps of the roll-outs that `TrainConfig.short_rollouts` counts
BRIEF_STEPS = (2, 4, 6)


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
    require_call_arguments(pipe, config.call)
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
    known = {} if start is None else {"start": weights_digest(start.network)}
    claim(work, {**known, "config": asdict(config), "concept": concept, "pairs": hash_pairs(rows), **model_facts(pipe)})
    clock = WorkClock(work / "seconds.json")
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
        network, text, images, held_text, held_images, config, work, progress, clock.ticking(log),
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
    add_values(digest, network.state_dict())
    return digest.hexdigest()[:16]


def model_facts(pipe: Any) -> dict[str, Any]:
    """What of the pipeline decides what its roll-outs are, for the plan of a work folder."""
    return {
        "backbone": backbone_fingerprint(pipe),
        "scheduler": {"class": type(pipe.scheduler).__name__, **{k: str(v) for k, v in pipe.scheduler.config.items()}},
        "dtype": str(pipe.dtype),
    }


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
            for steps in short_steps(pipe, config.rollout_steps)
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
