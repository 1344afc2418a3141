"""Wan 2.1 T2V 1.3B (video): train a guard against an object, attach it, protect a pipeline with it.

Needs the hub's weights (Wan-AI/Wan2.1-T2V-1.3B-Diffusers) and a CUDA device.
It has NOT been run with them here: none were at hand. tests/documentation/test_examples.py checks that every name, keyword and
option below exists.

1. Prompt pairs; read them over, they decide what the guard learns:

    saferedir pairs build --concept "umbrella" --anchor "raincoat" --kind object \
        --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --out umbrella.jsonl

2. Training, here or by `train` below, with the same settings. A killed run goes on where it stopped:

    saferedir train saferedir --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --pairs umbrella.jsonl \
        --concept "umbrella" --dtype bfloat16 --device cuda --rollouts 64 --rollout-steps 10 \
        --guidance 5.0 --rollout-batch 1 --call height=480 --call width=832 --call num_frames=81 --out runs/umbrella-wan

Estimate from counted FLOPs, not a measurement (docs/cost.md): 28,585 TFLOP a video, the guard 0.0017 %
of it; training 1.80 h on an A100, 4.4 GB of roll-outs.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.utils import export_to_video

import saferedir
from saferedir.training.saferedir.train import TrainConfig, train_saferedir

# This family's own. Two denoiser calls a step; every roll-out is a whole video, so they are few and short.
HUB_ID = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
STEPS, GUIDANCE = 50, 5.0
SIZE = {"height": 480, "width": 832, "num_frames": 81}
ROLLOUT_BATCH = 1

# This guard's own.
CONCEPT, PAIRS = "umbrella", Path("umbrella.jsonl")
GUARD = Path("runs/umbrella-wan")
PROMPTS = ["a woman with an umbrella in the rain", "a woman with a bicycle in the rain"]


def load() -> Any:
    """diffusers' own class, because the decoder wants float32."""
    vae = AutoencoderKLWan.from_pretrained(HUB_ID, subfolder="vae", dtype=torch.float32)
    return WanPipeline.from_pretrained(HUB_ID, vae=vae, dtype=torch.bfloat16).to("cuda")


def train(pipe: Any) -> saferedir.Guard:
    """What the command above does: fewer roll-outs than for images."""
    config = TrainConfig(
        rollouts=64, held_out_rollouts=42, rollout_steps=10,
        guidance_scale=GUIDANCE, rollout_batch=ROLLOUT_BATCH, call=SIZE,
    )  # fmt: skip
    return train_saferedir(pipe, PAIRS, GUARD, concept=CONCEPT, config=config)


def main() -> None:
    pipe = load()
    guard = saferedir.Guard.from_pretrained(GUARD) if GUARD.exists() else train(pipe)

    # Attached: the guard steers, and says what it did; what to do about it is up to you.
    with saferedir.attach(pipe, guard) as attached:
        frames = pipe(prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **SIZE).frames
    for video, decision in zip(frames, attached.decisions, strict=True):
        print(decision.action, decision.prompt_score, decision.image_score, decision.message)
        export_to_video(video, f"{decision.image}.mp4", fps=16)

    # Protected: what the guard still finds the concept in is generated anew, at most twice, then blocked (a black video).
    # `verify` may also be a function of the finished frames, such as your own classifier.
    safe_pipe = saferedir.protect(pipe, guard, on_unsafe="verify", verify=guard, retries=2)
    answer = safe_pipe(prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **SIZE)
    for decision, is_blocked in zip(answer.decisions, answer.blocked, strict=True):
        print(is_blocked, decision.to_dict())


if __name__ == "__main__":
    main()
