"""Moves that an attacker would make, as training examples: a few projected gradient steps in a ball around each row.

Projected gradient descent (arXiv:1706.06083) with steps of 2.5 radius / count along the normalised gradient.
Shapes: frames (B, C, h, w); prompts (B, L, D); radii (B,), each uniform from 0 to the largest.
Deviations: one-sided, since nobody gains by raising a benign score. Unsafe rows are moved against the verdict; benign ones by
noise of the same length, so that the length of a move says nothing about its side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saferedir.guards.saferedir.network import Redirector
from saferedir.pipelines.conditioning import PromptEmbeds

#: weight of the redirection's mean strength beside the prompt logit in what a prompt is moved against
STRENGTH_WEIGHT = 4.0


def moved_frames(
    network: Redirector, frames: Tensor, t: Tensor, label: Tensor, radius: float, steps: int, generator: torch.Generator
) -> Tensor:
    """Frames whose unsafe rows (label 1) are moved to lower the image logit, by at most `radius` root mean square.

    Args:
        t: (B,) times.
        label: (B,).
        radius: largest root mean square of a move, in the latents' own units.
        steps: gradient steps, >= 1.
        generator: on the CPU; of radii and noise.
    """
    noise = torch.randn(frames.shape, generator=generator).to(frames)
    radii = (radius * torch.rand(len(frames), generator=generator)).to(frames).view(-1, 1, 1, 1)
    unsafe = label.bool()
    move = noise / _root_mean_square(noise) * radii
    if bool(unsafe.any()):
        rows, times = frames[unsafe], t[unsafe]

        def logit(moved: Tensor) -> Tensor:
            return network.image_logits(rows + moved, times).sum()

        descended = _descended(logit, move[unsafe] / 2, radii[unsafe], steps, _root_mean_square)
        move = move.index_put((unsafe.nonzero()[:, 0],), descended)
    return frames + move


def moved_prompts(
    network: Redirector,
    prompts: PromptEmbeds,
    target: Tensor,
    label: Tensor,
    radius: float,
    steps: int,
    generator: torch.Generator,
) -> PromptEmbeds:
    """Prompts whose unsafe rows are moved to lower the prompt logit and the strength of the redirection (mask times scale).

    Every token moves by at most `radius` times its length; the opening token and padding stay.

    Args:
        target: (B, L), tokens that the redirection should move.
        label: (B,).
        radius: largest relative length of a token's move.
        steps: gradient steps, >= 1.
        generator: on the CPU; of radii and noise.
    """
    e, real = prompts.prompt, prompts.mask
    free = torch.ones(e.shape[:2], device=e.device) if real is None else real.float()
    if network.config.exempt_bos:
        free = free * (free.cumsum(dim=1) > 1)
    lengths = torch.linalg.vector_norm(e, dim=-1, keepdim=True)
    radii = (radius * torch.rand(len(e), generator=generator)).to(e).view(-1, 1, 1) * lengths * free[..., None]
    noise = torch.randn(e.shape, generator=generator).to(e)
    move = noise / _length(noise) * radii
    unsafe = label.bool()
    if bool(unsafe.any()):
        rows, counted = prompts.rows(unsafe.nonzero()[:, 0]), target[unsafe]

        def objective(moved: Tensor) -> Tensor:
            given = rows.prompt + moved
            redirection = network.redirection(given, rows.mask, rows.pooled)
            strength = (redirection.mask * redirection.alpha[..., 0])[:, 0] * counted
            mean = strength.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
            return (network.prompt_logits(given, rows.mask, rows.pooled)[:, 0] + STRENGTH_WEIGHT * mean).sum()

        descended = _descended(objective, move[unsafe] / 2, radii[unsafe], steps, _length)
        move = move.index_put((unsafe.nonzero()[:, 0],), descended)
    return prompts._replace(prompt=e + move)


def _descended(
    objective: Callable[[Tensor], Tensor], move: Tensor, radii: Tensor, steps: int, size: Callable[[Tensor], Tensor]
) -> Tensor:
    for _ in range(steps):
        move = move.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(move), move)
        move = move.detach() - 2.5 / steps * radii * gradient / size(gradient)
        move = move * (radii / size(move)).clamp(max=1)
    return move.detach()


def _root_mean_square(value: Tensor) -> Tensor:
    return value.flatten(1).square().mean(dim=1).sqrt().clamp(min=1e-12).view(-1, 1, 1, 1)


def _length(value: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
    return length.clamp(min=1e-12)
