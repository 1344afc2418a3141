"""FLUX.1-dev: train a guard against a painter's style, attach it, protect a pipeline with it.

Needs the hub's weights (black-forest-labs/FLUX.1-dev) and a CUDA device.
It has NOT been run with them here: none were at hand. tests/documentation/test_examples.py checks that every name, keyword and
option below exists.
The hub asks you to accept the licence first (`hf auth login`).

1. Prompt pairs; read them over, they decide what the guard learns:

    saferedir pairs build --concept "Van Gogh" --anchor "impressionism" --kind style \
        --model black-forest-labs/FLUX.1-dev --out van-gogh.jsonl

2. Training, here or by `train` below, with the same settings. A killed run goes on where it stopped:

    saferedir train saferedir --model black-forest-labs/FLUX.1-dev --pairs van-gogh.jsonl \
        --concept "Van Gogh" --dtype bfloat16 --device cuda \
        --guidance 3.5 --rollout-batch 2 --call height=1024 --call width=1024 --out runs/van-gogh-flux

Estimate from counted FLOPs, not a measurement (docs/cost.md): 2,098 TFLOP an image, the guard 0.0018 %
of it; training 4.73 h on an A100, 11.1 GB of roll-outs.
"""

from pathlib import Path
from typing import Any

import torch

import saferedir
from saferedir.training.saferedir.train import TrainConfig, train_saferedir

# This family's own. Guidance is distilled: one denoiser row a step; T5 reads 512 tokens.
HUB_ID = "black-forest-labs/FLUX.1-dev"
STEPS, GUIDANCE = 28, 3.5
SIZE = {"height": 1024, "width": 1024}
ROLLOUT_BATCH = 2  # a guess: lower it if memory runs out

# This guard's own.
CONCEPT, PAIRS = "Van Gogh", Path("van-gogh.jsonl")
GUARD = Path("runs/van-gogh-flux")
PROMPTS = ["a village at night in the style of Van Gogh", "a village at night, photograph"]


def load() -> Any:
    """On a card with less memory than the weights: no `device`, and `pipe.enable_model_cpu_offload()` instead."""
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
