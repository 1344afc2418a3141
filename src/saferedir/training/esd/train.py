"""Trains an ESD guard from prompts: a LoRA whose prediction for a concept is turned round about a reference.

Implements "Erasing Concepts from Diffusion Models" (arXiv:2303.07345), docs/methods/esd.md. Everything lands in `<out>.work/`
until the finished guard is renamed to `out`, and a run that was killed goes on from there. One process, on one device.
Deviations: a LoRA for weights, several prompts, prompts and moments in batches; `reference="safe"` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from saferedir.errors import GuardConfigError, UnsupportedPipelineError
from saferedir.guards.esd import ESD, ESDConfig
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import family_of, unwrapped
from saferedir.pipelines.fingerprint import backbone_fingerprint
from saferedir.pipelines.latents import call_size, latent_shape
from saferedir.pipelines.schedules import check_scheduler
from saferedir.training.denoiser_calls import CALLS
from saferedir.training.esd.loop import Loop, Prompts
from saferedir.training.esd.train_config import TrainConfig, adapted_layers
from saferedir.training.lora import ADAPTER, check_reads_latents, lora_of, trainable_lora, versions
from saferedir.training.lora_loop import Log
from saferedir.training.saferedir.dataset import Pair, hash_pairs, read_pairs, require_call_arguments
from saferedir.training.work_folder import claim
from saferedir.utils.clock import WorkClock
from saferedir.utils.files import check_guard_folder
from saferedir.utils.locks import output_lock
from saferedir.utils.progress import SILENT, Progress


def check_trainable(pipe: Any) -> None:
    """Raise unless ESD can be trained on this pipeline as it stands."""
    family = family_of(pipe)
    if family.name not in CALLS:
        raise UnsupportedPipelineError(f"ESD cannot be trained on {family.name} yet; supported: {', '.join(CALLS)}.")
    check_scheduler(pipe.scheduler)
    check_reads_latents(pipe, "ESD")


def train_esd(
    pipe: Any,
    prompts: str | Path | Sequence[Pair],
    out: str | Path,
    *,
    concept: str,
    config: TrainConfig | None = None,
    progress: Progress = SILENT,
    log: Log | None = None,
    overwrite: bool = False,
) -> ESD:
    """Train an ESD guard for `pipe` and save it in the folder `out`; resumes from `<out>.work` when that exists.

    Args:
        pipe: a supported pipeline without guards and LoRAs; it comes back as it was.
        prompts: prompts for the concept (`Pair.unsafe`), each with its counterpart (`Pair.safe`), or their file; prompts without
            the concept are left out. The counterparts are read with `reference="safe"` only.
        out: folder for the guard.
        concept: its name, for decisions and the guard's card.
        config: the settings; default: `TrainConfig()`.
        progress: shows how far it is; default: nothing is shown.
        log: called with every step's numbers, which also land in `<out>/training.jsonl`.
        overwrite: whether a guard that stands at `out` may be replaced.

    Returns:
        The guard, a LoRA of the denoiser.

    Raises:
        OutputError: another run is writing to `out`, or a guard stands there and may not be replaced.
        GuardConfigError: no prompt, LoRAs on the pipeline, or `<out>.work` belongs to other settings.

    Example:
        >>> import saferedir as sr  # skipped: minutes of computing
        >>> pipe = sr.load_pipeline("pictoworld")  # doctest: +SKIP
        >>> guard = sr.train_esd(pipe, "pairs.jsonl", "runs/star-esd", concept="star")  # doctest: +SKIP
    """
    check_trainable(pipe)
    given = read_pairs(Path(prompts).expanduser()) if isinstance(prompts, (str, Path)) else list(prompts)
    with output_lock(Path(out), nested=True) as folder:
        check_guard_folder(folder, overwrite, "pass overwrite=True")
        return _train(pipe, given, folder, concept, config or TrainConfig(), progress, log)


def _train(
    pipe: Any,
    pairs: Sequence[Pair],
    out: Path,
    concept: str,
    config: TrainConfig,
    progress: Progress,
    log: Log | None,
) -> ESD:
    rows = [pair for pair in pairs if pair.unsafe is not None]
    if not rows:
        raise GuardConfigError("there is no prompt for the concept; ESD needs at least one.")
    require_call_arguments(pipe, config.call)
    backbone, family = backbone_fingerprint(pipe), family_of(pipe)
    denoiser = unwrapped(getattr(pipe, family.denoiser))
    targets = adapted_layers(denoiser, config.variant, config.targets)
    height, width = config.size or call_size(pipe, config.call)
    channels, _, *cells = latent_shape(pipe, {"height": height, "width": width})
    work = out.with_name(out.name + ".work")
    plan = {"config": asdict(config), "concept": concept, "prompts": hash_pairs(rows), "backbone": backbone}
    claim(work, plan)
    clock = WorkClock(work / "seconds.json")
    prompts = _encode(pipe, rows, config)
    with trainable_lora(denoiser, config.rank, targets, seed=config.seed) as student:
        loop = Loop(
            student, CALLS[family.name], prompts, _without_shift(pipe.scheduler), (channels, *cells), config, work
        )
        facts = loop.fit(progress, clock.ticking(log))
        lora = lora_of(student, ADAPTER)
    guard = ESD(
        ESDConfig(
            concept=concept,
            backbone=backbone,
            component=family.denoiser,
            rank=config.rank,
            targets=config.targets or _ends(targets),
            training={
                **asdict(config),
                **facts,
                "prompts": len(rows),
                "prompts_sha256": hash_pairs(rows),
                "trainable": sum(value.numel() for value in lora.values()),
                "height": height,
                "width": width,
                "versions": versions(),
                "seconds": round(clock.seconds, 1),
            },
        ),
        lora,
    )
    guard.require_effect()
    loop.hand_over(guard, out)
    return guard


def _encode(pipe: Any, rows: Sequence[Pair], config: TrainConfig) -> Prompts:
    """On the CPU; the reference of every prompt is its counterpart, or the empty prompt."""
    with torch.no_grad():
        empty, concept, safe = (
            encode_prompts(pipe, texts, config.call).map(lambda part: part.detach().cpu())
            for texts in ([""], [str(row.unsafe) for row in rows], [row.safe for row in rows])
        )
        if config.reference == "safe":
            reference = safe
        else:
            reference = empty.map(lambda part: part.expand(len(rows), *part.shape[1:]))
    return Prompts(concept, reference, empty)


def _without_shift(scheduler: Any) -> Any:
    """A copy of the scheduler, without a shift of sigmas by the image's size, which the pipeline alone knows."""
    if scheduler.config.get("use_dynamic_shifting", False):
        return type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)
    return type(scheduler).from_config(scheduler.config)


def _ends(names: Sequence[str]) -> tuple[str, ...]:
    """The distinct last parts of layers' names, which the card and the config list: "attn2.to_q", "to_out.0"."""
    ends = []
    for name in names:
        *_, parent, last = ["", *name.split(".")]
        ends.append(f"{parent}.{last}" if last.isdigit() or parent.startswith("attn") else last)
    return tuple(dict.fromkeys(ends))
