"""The settings of a SafeRedir training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saferedir.training.saferedir.dataset import VIEWS, check_call
from saferedir.training.saferedir.losses import LossWeights
from saferedir.training.saferedir.thresholds import CONTAMINATION, are_shares
from saferedir.utils.checks import Checked, is_number


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
        >>> from saferedir.training.saferedir.train_config import TrainConfig
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
