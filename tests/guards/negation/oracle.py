"""Oracles for the tests of negation guards: an exact mixture of Gaussians, naive float64 loops, and steps made by hand.

Imports torch, numpy and saferedir.guard; nothing of the engine under test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saferedir.guard import Conditioning, PromptEmbeds, Run, Step


@dataclass(frozen=True)
class Mixture:
    """p_data = sum_k weights_k N(means_k, s^2 I), with known posterior means under x = alpha x0 + sigma eps."""

    means: Tensor  # (K, D)
    weights: Tensor  # (K,)
    s: float
    is_unsafe: Tensor  # (K,) bool

    def log_masses(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """(N, K) log of weights_k N(x; alpha m_k, V I), less a constant."""
        variance = (alpha * self.s) ** 2 + sigma**2
        square = (x[:, None] - alpha * self.means[None]).square().sum(-1)
        return self.weights.log() - square / (2 * variance)

    def denoised(self, x: Tensor, alpha: float, sigma: float, subset: Tensor | None = None) -> Tensor:
        """E[x0 | x], of all or some components, (N, D)."""
        variance = (alpha * self.s) ** 2 + sigma**2
        masses = self.log_masses(x, alpha, sigma)
        if subset is not None:
            masses = masses.masked_fill(~subset, -torch.inf)
        share = masses.softmax(dim=1)
        pull = alpha * self.s**2 / variance
        means = self.means[None] + pull * (x[:, None] - alpha * self.means[None])
        return (share[:, :, None] * means).sum(dim=1)

    def log_odds(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """(N,) log beta*: posterior odds unsafe : safe."""
        masses = self.log_masses(x, alpha, sigma)
        unsafe = masses.masked_fill(~self.is_unsafe, -torch.inf).logsumexp(dim=1)
        return unsafe - masses.masked_fill(self.is_unsafe, -torch.inf).logsumexp(dim=1)

    def sample(self, count: int, generator: torch.Generator, subset: Tensor | None = None) -> Tensor:
        """(count, D) draws from p_data, or from some of its components."""
        weights = self.weights if subset is None else self.weights * subset
        which = torch.multinomial(weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[which] + self.s * noise

    def component(self, x0: Tensor) -> Tensor:
        """(N,) nearest component."""
        return torch.cdist(x0, self.means).argmin(dim=1)


def circle(radius: float = 4.0, s: float = 0.35) -> Mixture:
    """Eight components on a circle, two adjacent ones unsafe."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    unsafe = torch.tensor([True, True] + [False] * 6)
    return Mixture(means, torch.full((8,), 1 / 8, dtype=torch.float64), s, unsafe)


def sd1_schedule() -> Tensor:
    """Cumulative products of Stable Diffusion's alphas, float64 (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def frame(t: int) -> tuple[float, float]:
    """(alpha, sigma) of Stable Diffusion's timestep t."""
    abar = float(sd1_schedule()[t])
    return math.sqrt(abar), math.sqrt(1 - abar)


def naive_attend(x: Tensor, rows: Tensor, alpha: float, sigma: float, kappa: float) -> tuple[Any, Any, Any]:
    """(E_u (B, D), log-sum-exp (B,), ess (B,)) by loops over differences, in float64 numpy."""
    xs, rs = x.double().flatten(1).numpy(), rows.double().flatten(1).numpy()
    means, sums, sizes = [], [], []
    for one in xs:
        logits = np.array([-kappa * ((one - alpha * r) ** 2).sum() / (2 * sigma**2) for r in rs])
        top = logits.max()
        weights = np.exp(logits - top)
        sums.append(top + math.log(weights.sum()))
        weights = weights / weights.sum()
        means.append(sum(w * r for w, r in zip(weights, rs, strict=True)))
        sizes.append(1 / (weights**2).sum())
    return np.stack(means), np.array(sums), np.array(sizes)


def make_run(batch: int, **changes: Any) -> Run:
    facts: dict[str, Any] = {
        "batch_size": batch,
        "num_steps": 2,
        "num_evaluations": 2,
        "timesteps": (900.0, 400.0),
        "family": "stable-diffusion",
        "prediction_type": "epsilon",
        "guided": True,
        "guidance_scale": 5.0,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    return Run(**{**facts, **changes})


def make_step(x_t: Tensor, x0: Tensor, alpha: float, sigma: float, state: Any, run: Run, **changes: Any) -> Step:
    """A step after the denoiser call, with latents (B, ...)."""
    shape = (len(x_t),) + (1,) * (x_t.ndim - 1)
    facts: dict[str, Any] = {
        "run": run,
        "state": state,
        "index": 0,
        "evaluation": 0,
        "num_steps": run.num_steps,
        "t": torch.full((len(x_t),), run.timesteps[0]),
        "alpha": torch.full(shape, alpha, dtype=torch.float32),
        "sigma": torch.full(shape, sigma, dtype=torch.float32),
        "x_t": x_t,
        "model_input": x_t,
        "conditioning": Conditioning(PromptEmbeds(torch.zeros(len(x_t), 3, 4))),
        "guidance_scale": 5.0,
        "x0": x0,
    }
    return Step(**{**facts, **changes})


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
