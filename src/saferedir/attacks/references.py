"""What an attack pulls towards: the bare model's images of a prompt, noised, with the bare model's own prediction.

Shapes: latents (N, C, h, w) in the sampler's frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saferedir.target import Prediction, Target

#: noised references that are made at a time: guards are taken off and put on again in between
BLOCK = 16


def reference_latents(target: Target, prompt: str, generator: torch.Generator, count: int = 1) -> Tensor:
    """(count, C, h, w) final latents of the bare model for a prompt, from the attack's own noise. Without gradients."""
    with target.undefended() as bare, torch.no_grad():
        generators = [torch.Generator().manual_seed(random_seed(generator)) for _ in range(count)]
        steps = bare.roll_out(None, prompt=[prompt] * count, generator=generators)
        bare.ledger.charge(gen=count)
    return steps[-1].latents.detach()


@dataclass(frozen=True)
class NoisedReference:
    """A reference under noise at one evaluation, and the noise that is to be predicted there.

    Attributes:
        evaluation: evaluation of the sampling.
        x_t: (1, C, h, w) noised latents.
        eps: (1, C, h, w) what to predict: the bare model's guided prediction for the prompt, or the noise itself.
    """

    evaluation: int
    x_t: Tensor
    eps: Tensor


def noised_references(
    target: Target,
    prompt: str,
    references: Tensor,
    generator: torch.Generator,
    objective: str,
    evaluations: Sequence[int] | None = None,
) -> Iterator[NoisedReference]:
    """Noised references, BLOCK at a time: without end at evaluations chosen uniformly, or at the given ones.

    Args:
        target: the model as defended; taken apart while a block is made.
        prompt: what the bare model is given for its prediction.
        references: (N, C, h, w) clean latents.
        generator: of evaluations, references and noise.
        objective: "bare" for the bare model's guided prediction, "noise" for the noise.
        evaluations: where, in this order; None for everywhere.
    """
    order = None if evaluations is None else list(evaluations)
    while order is None or order:
        block = []
        with target.undefended() as bare, torch.no_grad():
            for _ in range(BLOCK if order is None else min(BLOCK, len(order))):
                chosen = int(torch.randint(len(bare.moments), (1,), generator=generator))
                evaluation = chosen if order is None else order.pop(0)
                index = int(torch.randint(len(references), (1,), generator=generator))
                clean = references[index : index + 1]
                noise = gaussian(clean, generator)
                x_t = bare.noised(clean, noise, evaluation)
                eps = noise if objective == "noise" else bare.predict(x_t, evaluation, prompt=[prompt]).eps
                block.append(NoisedReference(evaluation, x_t, eps.detach()))
        yield from block


def mismatch(prediction: Prediction, reference: NoisedReference, objective: str) -> Tensor:
    """Scalar mean square of the predicted noise less the wanted: guided for "bare", the conditional row for "noise"."""
    predicted = prediction.eps_cond if objective == "noise" else prediction.eps
    return (predicted - reference.eps).square().mean()


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the shape, type and device of `like`, from a generator on the CPU."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def random_seed(generator: torch.Generator) -> int:
    """A seed for another generator."""
    return int(torch.randint(2**62, (1,), generator=generator))
