"""calibrate_guard(pipe, guard, pairs): the same network with thresholds measured on this very checkpoint.

Nothing is trained: prompts of both sides are encoded and rolled out by the code that training uses, and thresholds are
chosen by the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.guards.saferedir.assessment import verdict
from saferedir.guards.saferedir.config import SafeRedirConfig
from saferedir.guards.saferedir.guard import SafeRedir
from saferedir.guards.saferedir.trained_text import require_trained_text, text_lengths
from saferedir.pipelines.fingerprint import backbone_fingerprint, check_backbone
from saferedir.pipelines.text_settings import text_settings
from saferedir.training.saferedir.batches import encode_text
from saferedir.training.saferedir.calibration import Shows, calibrate, checked_labels
from saferedir.training.saferedir.dataset import Pair, check_call, hash_pairs
from saferedir.training.saferedir.rollouts import (
    SHORT_IMAGES,
    Prompts,
    calibration_scales,
    generate_rollouts,
    rollout_prompts,
    short_steps,
)
from saferedir.training.saferedir.thresholds import CONTAMINATION, are_shares
from saferedir.training.work_folder import claim
from saferedir.utils.checks import Checked, is_number
from saferedir.utils.progress import SILENT, Progress

#: prompts of each side below which no threshold is chosen
LEAST_PROMPTS = 20
VERDICTS = ("prompt", "image")


@dataclass(frozen=True)
class CalibrationConfig(Checked):
    """How to choose a guard's thresholds.

    Attributes:
        rollouts: images generated, half of them unsafe.
        steps: sampling steps.
        guidance_scales: scales that the images take in turn; None: `rollouts.calibration_scales`.
        batch: images generated at once; None: `dataset.images_at_once`.
        call: more arguments of the pipeline's call, such as height, width or num_frames.
        false_positive_rate, contamination: see `choose_threshold`.
        verdicts: whose thresholds are chosen, "prompt", "image" or both; the other keeps its own.
        seed: of prompts and noise.
    """

    rollouts: int = 416
    steps: int = 20
    guidance_scales: tuple[float, ...] | None = None
    batch: int | None = None
    call: dict[str, Any] = field(default_factory=dict)
    false_positive_rate: float = 0.005
    contamination: tuple[float, float] = CONTAMINATION
    verdicts: tuple[str, ...] = VERDICTS
    seed: int = 0

    def __post_init__(self) -> None:
        self.require_whole("rollouts", "steps", at_least=1)
        self.require_whole("batch", at_least=1, or_none=True)
        self.require_whole("seed", at_least=0)
        self.require_number("false_positive_rate", at_least=0, below=1)
        self.require(are_shares(self.contamination), "contamination", "two shares from 0 to below 0.5")
        are_known = bool(self.verdicts) and set(self.verdicts) <= set(VERDICTS)
        self.require(are_known, "verdicts", "some of prompt, image")
        if self.guidance_scales is not None:
            are_scales = all(is_number(scale) and scale >= 0 for scale in self.guidance_scales)
            self.require(bool(self.guidance_scales) and are_scales, "guidance_scales", "numbers >= 0, or None")
        check_call(self.call)


def calibrate_guard(
    pipe: Any,
    guard: SafeRedir,
    pairs: Sequence[Pair],
    *,
    config: CalibrationConfig | None = None,
    work: Path | None = None,
    progress: Progress = SILENT,
    note: Mapping[str, Any] | None = None,
    is_paired: bool = True,
    shows: Shows | None = None,
    texts: Sequence[Pair] | None = None,
) -> SafeRedir:
    """A new guard with the weights of `guard`, and thresholds, fingerprint and record of this pipeline as it stands.

    Adapters that are on the pipeline (LoRA) belong to what is calibrated; load and scale them first.

    Args:
        pairs: prompts of both sides; those of the guard's training make the rates look better than they are.
        work: folder for finished roll-outs, so that an interrupted calibration goes on.
        note: more plain data for the record, such as where the prompts came from.
        is_paired: whether the two prompts of a pair say the same but for the concept; if not, no distance is measured.
        shows: images (N, 3, H, W) in [0, 1] -> (N,) bool, whether they show the concept: a judge. Roll-outs that disagree with
            their prompt's label are left out, and counted in the record.
        texts: more prompts for the prompt verdict, for which nothing is generated; None: those of `pairs` alone.

    Raises:
        GuardConfigError: for a guard of another kind, or fewer than 20 prompts on a side.
        BackboneMismatchError: if the pipeline is of another architecture than the guard's.
    """
    config = config or CalibrationConfig()
    if not isinstance(guard, SafeRedir) or guard.config.mode != "default":
        raise GuardConfigError(
            f"a guard of method {guard.method!r} has no thresholds to calibrate this way; give a trained SafeRedir guard in "
            "default mode."
        )
    fingerprint = backbone_fingerprint(pipe)
    check_backbone(guard.config.backbone or {}, fingerprint, guard.method)
    require_trained_text(guard.config, text_settings(pipe, config.call))
    prompts = rollout_prompts(pairs, config.rollouts, config.seed)
    for name, side in prompts._asdict().items():
        if len(side) < LEAST_PROMPTS:
            raise GuardConfigError(
                f"there are only {len(side)} {name} prompts to calibrate on; give at least {LEAST_PROMPTS} of each side."
            )
    known = guard.config.training.get("guidance_scale", 4.0)
    scales = config.guidance_scales or calibration_scales(known if is_number(known) else 4.0)
    if work is not None:
        claim(work, {"settings": asdict(config), "prompts": hash_pairs(pairs), "backbone": fingerprint}, "calibration")
    short = Prompts(*(side[: SHORT_IMAGES // 2] for side in prompts))
    counts = [config.steps, *short_steps(pipe, config.steps)]
    images = []
    for steps in counts:
        is_long = steps == config.steps
        chosen = prompts if is_long else short
        with progress.task(f"generating images in {steps} steps", sum(map(len, chosen))) as advance:
            images.append(
                generate_rollouts(
                    pipe, chosen, steps=steps, guidance_scales=scales if is_long else sorted({min(scales), known}),
                    seed=config.seed * 1_000_000 + 500_000, batch=config.batch, call=config.call, cache=work,
                    on_progress=advance,
                )
            )  # fmt: skip
    left_out: dict[str, Any] = {}
    if shows is not None:
        kept_images = [checked_labels(pipe, data, shows) for data in images]
        for label, side in ((0, "benign"), (1, "unsafe")):
            counts = [sum(int((data.label == label).sum()) for data in some) for some in (images, kept_images)]
            left_out[side] = counts[0] - counts[1]
        images = kept_images
    previous = guard.config
    text = encode_text(
        pipe,
        [*pairs, *(texts or ())],
        config.call,
        text_lengths(pipe, config.call, previous.training.get("text_lengths", ())),
    )
    before = {
        "prompt": previous.prompt_threshold,
        "image": previous.image_threshold,
        "last": previous.last_threshold,
    }
    kept = {name: value for name, value in before.items() if value is not None and name not in config.verdicts}
    if "image" in config.verdicts:
        kept.pop("last", None)
    calibration = calibrate(
        guard.network, text, images[0], config.false_positive_rate,
        contamination=config.contamination, short=images[1:], keep=kept,
    )  # fmt: skip
    measured = calibration.measured
    if not is_paired:
        measured = {name: value for name, value in measured.items() if name not in ("distance", "pooled_distance")}
    settings = replace(
        previous,
        backbone=fingerprint,
        prompt_threshold=calibration.thresholds["prompt"],
        image_threshold=calibration.thresholds["image"],
        last_threshold=calibration.thresholds["last"],
        measured=measured,
        calibration={
            **calibration.record,
            "prompts": hash_pairs(pairs),
            "verdicts": list(config.verdicts),
            **({} if "image" in config.verdicts else _sizes_of(previous)),
            **({"mislabelled": left_out} if left_out else {}),
            **(note or {}),
        },
    )
    calibrated = SafeRedir(
        replace(settings, calibration={**settings.calibration, "verdict": verdict(settings)}),
        guard.network,
        anchor=guard.anchor,
        anchor_pooled=guard.anchor_pooled,
        manifold=guard.manifold,
    )
    calibrated.image_verifier = guard.image_verifier
    return calibrated


def unpaired(forget: Sequence[str], benign: Sequence[str]) -> list[Pair]:
    """Prompts of both sides that do not belong together, as rows; call `calibrate_guard` with is_paired=False."""
    if not forget or not benign:
        raise GuardConfigError("a calibration needs prompts that ask for the concept, and prompts that do not.")
    taken = min(len(forget), len(benign))
    pairs = [Pair(text, benign[index % len(benign)]) for index, text in enumerate(forget)]
    return [*pairs, *(Pair(None, text) for text in benign[taken:])]


def _sizes_of(config: SafeRedirConfig) -> dict[str, Any]:
    """The sizes that an image threshold which is kept was chosen at."""
    return {"latent_sizes": config.calibration.get("latent_sizes", [])}
