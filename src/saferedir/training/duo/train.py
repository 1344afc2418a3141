"""Trains a DUO guard from image pairs: a LoRA that prefers the safe member of every pair, against the frozen base model.

Implements the training of "Direct Unlearning Optimization for Robust and Safe Text-to-Image Models" (arXiv:2407.21035),
docs/methods/duo.md. Everything lands in `<out>.work/` until the finished guard is renamed to
`out`, and a run that was killed goes on from there. One process, on one device. Deviations: both passes run in the
model's own precision, with the same kernels and a float32 LoRA; half-precision autocast would put a noise floor of some
40 into the loss at the paper's weight of the preserving term (measured on PictoWorld, bf16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from saferedir.errors import GuardConfigError, UnsupportedPipelineError
from saferedir.guards.duo.config import TARGETS, DUOConfig
from saferedir.guards.duo.guard import DUO
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import family_of, unwrapped
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.latents import call_size
from saferedir.pipelines.schedules import prediction_type
from saferedir.training.denoiser_calls import CALLS
from saferedir.training.duo.loop import Log, Loop
from saferedir.training.duo.noise import schedule_of
from saferedir.training.duo.pair_files import (
    MIN_PAIRS,
    ImagePair,
    encode_image_pairs,
    hash_image_pairs,
    read_image_pairs,
)
from saferedir.training.duo.train_config import VARIANTS, TrainConfig
from saferedir.training.lora import ADAPTER, add_lora, check_reads_latents, lora_of, trainable_lora, versions
from saferedir.training.saferedir.dataset import require_call_arguments
from saferedir.training.work_folder import claim
from saferedir.utils.clock import WorkClock
from saferedir.utils.files import check_guard_folder
from saferedir.utils.locks import output_lock
from saferedir.utils.progress import SILENT, Progress

__all__ = ["ADAPTER", "add_lora", "check_trainable", "lora_of", "train_duo"]


def check_trainable(pipe: Any) -> None:
    """Raise unless DUO can be trained on this pipeline as it stands."""
    family = family_of(pipe)
    if family.name not in CALLS:
        raise UnsupportedPipelineError(f"DUO cannot be trained on {family.name} yet; supported: {', '.join(CALLS)}.")
    check_reads_latents(pipe, "DUO")


def train_duo(
    pipe: Any,
    pairs: str | Path | Sequence[ImagePair],
    out: str | Path,
    *,
    concept: str,
    config: TrainConfig | None = None,
    progress: Progress = SILENT,
    log: Log | None = None,
    overwrite: bool = False,
) -> DUO:
    """Train a DUO guard for `pipe` and save it in the folder `out`; resumes from `<out>.work` when that exists.

    Args:
        pipe: a supported pipeline without guards and LoRAs; it comes back as it was.
        pairs: image pairs, or a folder of them (unsafe/ and safe/ with equally many images, see `pair_files`).
        out: folder for the guard.
        concept: its name, for decisions and the guard's card.
        config: the settings; default: the variant "as-paper" for this pipeline.
        progress: shows how far it is; default: nothing is shown.
        log: called with every step's numbers, which also land in `<out>/training.jsonl`.
        overwrite: whether a guard that stands at `out` may be replaced.

    Returns:
        The guard, a LoRA of the denoiser.

    Raises:
        OutputError: another run is writing to `out`, or a guard stands there and may not be replaced.
        GuardConfigError: too few pairs, LoRAs on the pipeline, or `<out>.work` belongs to other settings.

    Example:
        >>> import saferedir as sr  # skipped: minutes of computing
        >>> pipe = sr.load_pipeline("pictoworld")  # doctest: +SKIP
        >>> guard = sr.train_duo(pipe, "pairs/", "runs/star-duo", concept="star")  # doctest: +SKIP
    """
    pairs = Path(pairs).expanduser() if isinstance(pairs, str) else pairs
    check_trainable(pipe)
    if config is None:
        config = TrainConfig.of_variant(VARIANTS[0], is_flow=prediction_type(pipe.scheduler) == "flow")
    with output_lock(Path(out), nested=True) as folder:
        check_guard_folder(folder, overwrite, "pass overwrite=True")
        return _train(pipe, pairs, folder, concept, config, progress, log)


def _train(
    pipe: Any,
    pairs: Path | Sequence[ImagePair],
    out: Path,
    concept: str,
    config: TrainConfig,
    progress: Progress,
    log: Log | None,
) -> DUO:
    rows = read_image_pairs(pairs) if isinstance(pairs, Path) else list(pairs)
    if len(rows) < MIN_PAIRS:
        raise GuardConfigError(f"{len(rows)} valid pairs are too few; DUO needs at least {MIN_PAIRS}, better 64.")
    require_call_arguments(pipe, config.call)
    backbone, pairs_sha256 = backbone_fingerprint(pipe), hash_image_pairs(rows)
    work = out.with_name(out.name + ".work")
    claim(work, {"config": asdict(config), "concept": concept, "pairs": pairs_sha256, "backbone": backbone})
    clock = WorkClock(work / "seconds.json")
    height, width = config.size or call_size(pipe, config.call)
    latents = encode_image_pairs(pipe, rows, height, width)
    family = family_of(pipe)
    schedule = schedule_of(pipe.scheduler, t_min=config.t_min, t_max=config.t_max, sigma_mode=config.sigma_mode)
    targets = config.targets or TARGETS[family.denoiser]
    with trainable_lora(unwrapped(getattr(pipe, family.denoiser)), config.rank, targets, seed=config.seed) as denoiser:
        loop = Loop(denoiser, CALLS[family.name], latents, *_prompts(pipe, rows, config), schedule, config, work)
        facts = loop.fit(progress, clock.ticking(log))
        lora = lora_of(denoiser, ADAPTER)
    guard = DUO(
        DUOConfig(
            concept=concept,
            backbone=backbone,
            component=family.denoiser,
            rank=config.rank,
            targets=targets,
            training={
                **asdict(config),
                **facts,
                "pairs": len(rows),
                "pairs_sha256": pairs_sha256,
                "trainable": sum(value.numel() for value in lora.values()),
                "height": height,
                "width": width,
                "versions": versions(),
                "seconds": round(clock.seconds, 1),
            },
        ),
        lora,
    )
    loop.hand_over(guard, out)
    return guard


def _prompts(pipe: Any, rows: Sequence[ImagePair], config: TrainConfig) -> tuple[PromptEmbeds, PromptEmbeds | None]:
    """Embedding of the empty prompt (1 row), and of every pair's prompt where training is conditioned on those."""
    with torch.no_grad():
        empty = encode_prompts(pipe, [""], config.call).map(lambda part: part.detach().cpu())
        if config.conditioning == "null":
            return empty, None
        texts = [row.prompt for row in rows]
        known = [text for text in texts if text]
        if len(known) < len(texts):
            raise GuardConfigError(
                "these pairs come without prompts, so training cannot be conditioned on them; use 'null'."
            )
        return empty, encode_prompts(pipe, known, config.call).map(lambda part: part.detach().cpu())
