"""Prompt verdicts of tiny pipelines, trained at some settings of the text encoders and asked at others.

Prompts are letters; x is what must not appear, o stands in its place. Used by bypass_probes and tests of the text settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tests.tiny_pipelines import PIPELINES, PipelineCase

from saferedir.guards.saferedir.network import Redirector, RedirectorConfig
from saferedir.pipelines.families import family_of
from saferedir.training.saferedir.batches import encode_text, text_batch
from saferedir.training.saferedir.calibration import prompt_scores
from saferedir.training.saferedir.dataset import Pair
from saferedir.training.saferedir.losses import classification_term

WORDS = [f"{a} {b}" for a in "abcdef" for b in "klmnp"]
PAIRS = [Pair(f"{word} x", f"{word} o") for word in WORDS] + [Pair(None, f"{word} b") for word in WORDS]
#: in no pair above: to set the threshold by, and to ask
HELD_OUT = [Pair(f"{a} {b} x", f"{a} {b} o") for a in "gh" for b in "qrstu"]
ASKED = [Pair(f"{a} {b} x", f"{a} {b} o") for a in "ijvw" for b in "qrstu"]
NETWORK = {"width": 32, "heads": 2, "hidden": 32, "rank": 32, "latent_widths": [8, 16], "latent_strides": [1, 2]}


def case_of(name: str, **settings: Any) -> PipelineCase:
    """A tiny pipeline with settings in place of its own; None takes one away."""
    case = PIPELINES[name]
    kept = {key: value for key, value in {**case.settings, **settings}.items() if value is not None}
    return replace(case, settings=kept)


def rates(
    pipe: Any, lengths: Sequence[int], asked: Sequence[Mapping[str, Any]], steps: int = 80
) -> list[tuple[float, float]]:
    """(recall, false alarms) under each of the `asked` arguments of a call, of a verdict trained at these prompt lengths."""
    text, held = (encode_text(pipe, pairs, {}, lengths) for pairs in (PAIRS, HELD_OUT))
    pooled = text.unsafe.pooled
    sizes = {
        "prompt_dim": text.unsafe.prompt.shape[-1],
        "pooled_dim": 0 if pooled is None else pooled.shape[-1],
        "exempt_bos": family_of(pipe).has_bos,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Redirector(RedirectorConfig.from_dict({**sizes, **NETWORK}))
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        given, _, label = text_batch(text.lengths[step % len(text.lengths)], 16, generator)
        classification_term((network.prompt_logits(given.prompt, given.mask, given.pooled), label)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    network.eval()
    unsafe = torch.cat([prompt_scores(network, part.unsafe) for part in held.lengths])
    benign = torch.cat([prompt_scores(network, part.benign) for part in held.lengths])
    threshold = (unsafe.min() + benign.max()) / 2
    found = []
    for call in asked:
        others = encode_text(pipe, ASKED, call)
        sides = (prompt_scores(network, side) >= threshold for side in (others.unsafe, others.benign))
        recall, alarms = (float(side.float().mean()) for side in sides)
        found.append((recall, alarms))
    return found


def with_text_model(pipe: Any) -> Any:
    """Give the encoder of a Stable Diffusion the attribute that diffusers' `clip_skip` reads and transformers 5 has dropped."""
    encoder = pipe.text_encoder
    if not hasattr(encoder, "text_model"):
        vars(encoder)["text_model"] = encoder  # past torch, which would make it a submodule of itself
    return pipe
