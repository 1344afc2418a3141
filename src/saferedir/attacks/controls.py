"""Controls: what must fail if an attack measures what it says.

An inverted latent reproduces any image on any network, so a latent result counts only where a network with random weights
recovers nothing. The other control needs no code: benign prompts in place of the concept's, under the concept's judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from saferedir.pipelines.families import family_of
from saferedir.target import Target

CONTROLS = ("none", "random-network", "benign-reference")


@contextmanager
def random_network(target: Target, seed: int) -> Iterator[None]:
    """Inside, the denoisers have random weights of the same spread; the bare model that attacks refer to has its own."""
    family = family_of(target.pipe)
    names = (family.denoiser, *family.more_denoisers)
    modules = [module for name in names if isinstance(module := getattr(target.pipe, name, None), nn.Module)]
    weights = [weight for module in modules for weight in module.parameters()]
    true = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    random = [
        (torch.randn(weight.shape, generator=generator) * _spread(weight) + weight.detach().float().mean().cpu()).to(
            weight
        )
        for weight in weights
    ]
    undefended = target.undefended

    def put(values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)

    @contextmanager
    def with_true_weights() -> Iterator[Target]:
        put(true)
        try:
            with undefended() as bare:
                yield bare
        finally:
            put(random)

    put(random)
    target.undefended = with_true_weights  # type: ignore[method-assign]
    try:
        yield
    finally:
        target.undefended = undefended  # type: ignore[method-assign]
        put(true)


def _spread(weight: torch.Tensor) -> float:
    return float(weight.detach().float().std()) if weight.numel() > 1 else 0.0
