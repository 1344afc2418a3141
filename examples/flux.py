"""FLUX.1-dev: train a guard against a painter's style, attach it, protect a pipeline with it.

Needs the hub's weights (black-forest-labs/FLUX.1-dev) and a CUDA device.
It has NOT been run with them here: none were at hand. tests/test_examples.py checks that every name, keyword and
option below exists.
The hub asks you to accept the licence first (`hf auth login`).

1. Prompt pairs; read them over, they decide what the guard learns:

    saferedir pairs build --concept "Van Gogh" --anchor "impressionism" --kind style \
        --model black-forest-labs/FLUX.1-dev --out van-gogh.jsonl

2. Training, on the command line, which draws 50 pictures at once, or in Python, below, with a smaller `rollout_batch`
for less memory. A killed run goes on where it stopped:

    saferedir train saferedir --model black-forest-labs/FLUX.1-dev --pairs van-gogh.jsonl \
        --concept "Van Gogh" --dtype bfloat16 --device cuda --out runs/van-gogh-flux

Estimate from counted FLOPs, not a measurement (docs/cost.md): 2,098 TFLOP a picture, the guard 0.0018 %
of it; training 4.73 h on an A100, 33.3 GB of roll-outs.
"""

from pathlib import Path
from typing import Any

import torch

import saferedir
from saferedir.guards.saferedir.training import TrainConfig, train_saferedir

HUB_ID = "black-forest-labs/FLUX.1-dev"
GUARD = Path("runs/van-gogh-flux")
PROMPTS = ["a village at night in the style of Van Gogh", "a village at night, photograph"]


def load() -> Any:
    """On a card with less memory than the weights: no `device`, and `pipe.enable_model_cpu_offload()` instead."""
    return saferedir.load_pipeline(HUB_ID, dtype=torch.bfloat16, device="cuda")


def train(pipe: Any) -> saferedir.Guard:
    """What `saferedir train saferedir` does, with this model's own guidance in the roll-outs."""
    config = TrainConfig(guidance_scale=3.5, rollout_batch=2)
    return train_saferedir(pipe, Path("van-gogh.jsonl"), GUARD, concept="Van Gogh", config=config)


def main() -> None:
    pipe = load()
    guard = saferedir.Guard.from_pretrained(GUARD) if GUARD.exists() else train(pipe)

    # Attached: the guard steers, and says what it did; what to do about it is up to you.
    with saferedir.attach(pipe, guard) as attached:
        images = pipe(PROMPTS, num_inference_steps=28, guidance_scale=3.5).images
    for image, decision in zip(images, attached.decisions, strict=True):
        print(decision.action, decision.prompt_score, decision.image_score, decision.message)
        image.save(f"{decision.image}.png")

    # Protected: what the guard still sees the concept in is drawn anew, at most twice, then blocked (a black picture).
    # `verify` may also be a function of the finished pictures, such as your own classifier.
    safe_pipe = saferedir.protect(pipe, guard, on_unsafe="verify", verify=guard, retries=2)
    answer = safe_pipe(PROMPTS, num_inference_steps=28, guidance_scale=3.5)
    for decision, is_blocked in zip(answer.decisions, answer.blocked, strict=True):
        print(is_blocked, decision.to_dict())


if __name__ == "__main__":
    main()
