"""SDXL base 1.0: train a guard against a logo (here: one that belongs to nobody), attach it, protect a pipeline with it.

Needs the hub's weights (stabilityai/stable-diffusion-xl-base-1.0) and a CUDA device.
It has NOT been run with them here: none were at hand. tests/documentation/test_examples.py checks that every name, keyword and
option below exists.

1. Prompt pairs; read them over, they decide what the guard learns:

    saferedir pairs build --concept "spiral logo" --anchor "plain label" --kind object \
        --model stabilityai/stable-diffusion-xl-base-1.0 --out spiral-logo.jsonl

2. Training, here or by `train` below, with the same settings. A killed run goes on where it stopped:

    saferedir train saferedir --model stabilityai/stable-diffusion-xl-base-1.0 --pairs spiral-logo.jsonl \
        --concept "spiral logo" --dtype bfloat16 --device cuda \
        --guidance 5.0 --rollout-batch 4 --call height=1024 --call width=1024 --out runs/spiral-logo-sdxl

Estimate from counted FLOPs, not a measurement (docs/cost.md): 687 TFLOP an image, the guard 0.0081 %
of it; training 0.85 h on an A100, 2.8 GB of roll-outs.
"""

from pathlib import Path
from typing import Any

import torch

import saferedir
from saferedir.training.saferedir.train import TrainConfig, train_saferedir

# This family's own. Two denoiser rows a step; two CLIPs read the prompt, 77 tokens each.
HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"
STEPS, GUIDANCE = 50, 5.0
SIZE = {"height": 1024, "width": 1024}
ROLLOUT_BATCH = 4  # a guess: lower it if memory runs out

# This guard's own.
CONCEPT, PAIRS = "spiral logo", Path("spiral-logo.jsonl")
GUARD = Path("runs/spiral-logo-sdxl")
PROMPTS = ["a paper cup with a spiral logo", "a paper cup on a table"]


def load() -> Any:
    return saferedir.load_pipeline(HUB_ID, dtype=torch.bfloat16, device="cuda")


def train(pipe: Any) -> saferedir.Guard:
    """What the command above does."""
    config = TrainConfig(guidance_scale=GUIDANCE, rollout_batch=ROLLOUT_BATCH, call=SIZE)
    return train_saferedir(pipe, PAIRS, GUARD, concept=CONCEPT, config=config)


def main() -> None:
    pipe = load()
    guard = saferedir.Guard.from_pretrained(GUARD) if GUARD.exists() else train(pipe)

    # Attached: the guard steers, and says what it did; what to do about it is up to you.
    with saferedir.attach(pipe, guard) as attached:
        images = pipe(prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **SIZE).images
    for image, decision in zip(images, attached.decisions, strict=True):
        print(decision.action, decision.prompt_score, decision.image_score, decision.message)
        image.save(f"{decision.image}.png")

    # Protected: what the guard still finds the concept in is generated anew, at most twice, then blocked (a black image).
    # `verify` may also be a function of the finished images, such as your own classifier.
    safe_pipe = saferedir.protect(pipe, guard, on_unsafe="verify", verify=guard, retries=2)
    answer = safe_pipe(prompt=PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, **SIZE)
    for decision, is_blocked in zip(answer.decisions, answer.blocked, strict=True):
        print(is_blocked, decision.to_dict())


if __name__ == "__main__":
    main()
