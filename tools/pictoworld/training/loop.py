"""One resumable optimisation loop for every part of the world.

A batch is a pure function of (seed, step), so a resumed run trains on what an uninterrupted one would have. Checkpoints
are written to a temporary name and renamed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from saferedir.utils.files import replacing
from saferedir.utils.progress import Progress

START = "start"  # folder of the weights that a training goes on from
MUON = 2e-3  # peak learning rate of a transformer's matrices
LossFn = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class LoopConfig:
    """Optimiser settings. `learning_rate` peaks after `warmup` steps and falls along a cosine to a tenth."""

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.0  # decay of the weight average, 0 = off
    save_every: int = 200
    seed: int = 0
    bf16: bool = True
    muon: float = 0.0  # peak learning rate of the matrices that Muon trains, see `fit`


@contextmanager
def fast_cpu_kernels(device: torch.device, bf16: bool) -> Iterator[None]:
    """bf16 autocast, and on a CPU the plain attention kernel, whose backward is several times faster there."""
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with attention, torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield


def weights_number(folder: Path) -> int:
    """A number of the weights in a folder, zero without a folder: who goes on from them draws other batches than they had."""
    return sum(zlib.crc32(file.read_bytes()) for file in folder.glob("*.safetensors"))


def block_matrices(blocks: nn.Module) -> list[nn.Parameter]:
    """The matrices of a transformer's blocks that Muon trains: all but those of norms and modulations."""
    return [p for name, p in blocks.named_parameters() if p.ndim == 2 and "norm" not in name]


def learning_rate_at(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then cosine decay to a tenth of the peak."""
    return config.learning_rate * _share_of_peak(config, step)


def _share_of_peak(config: LoopConfig, step: int) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))


def _optimisers(
    parameters: Sequence[nn.Parameter], matrices: Sequence[nn.Parameter], config: LoopConfig
) -> list[tuple[torch.optim.Optimizer, float]]:
    """(optimiser, peak learning rate) pairs: AdamW for `parameters` without `matrices`, Muon for those."""
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    adamw = torch.optim.AdamW(others, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99))
    if not matrices:
        return [(adamw, config.learning_rate)]
    muon = torch.optim.Muon(matrices, lr=config.muon, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [(adamw, config.learning_rate), (muon, config.muon)]


def fit(
    module: nn.Module,
    loss_fn: LossFn,
    config: LoopConfig,
    checkpoint: Path,
    *,
    progress: Progress,
    label: str,
    log: Callable[[dict[str, Any]], None] | None = None,
    matrices: Sequence[nn.Parameter] = (),
) -> nn.Module:
    """Minimise `loss_fn(step, generator)` over the module's trainable parameters; returns the (averaged) module.

    `checkpoint` is a file; when it exists, training goes on from it. `matrices` are two-dimensional parameters of the
    module that Muon (arXiv:2502.16982) trains at `config.muon`; AdamW trains the others. The finished module is in eval mode.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    device = parameters[0].device
    optimisers = _optimisers(parameters, matrices, config)
    average = [p.detach().clone() for p in parameters] if config.ema else []
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        module.load_state_dict(state["module"])
        for (optimiser, _), saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        average, start = state["average"], int(state["step"])

    def save(step: int) -> None:
        states = [optimiser.state_dict() for optimiser, _ in optimisers]
        state = {"module": module.state_dict(), "optimisers": states, "average": average, "step": step}
        with replacing(checkpoint) as temporary:
            torch.save(state, temporary)

    module.train()
    mean_loss = math.nan
    with progress.task(label, config.steps, start) as advance:
        for step in range(start, config.steps):
            for optimiser, peak in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = peak * _share_of_peak(config, step)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            with fast_cpu_kernels(device, config.bf16):
                loss = loss_fn(step, generator)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"{label}: the loss became {loss.item()} at step {step}; lower the learning rate"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            for optimiser, _ in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            if config.ema:
                decay = min(config.ema, (1 + step) / (10 + step))
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
            advance(1, f"{label} loss {mean_loss:.4f}")
            if log is not None and step % 50 == 0:
                log({"stage": label, "step": step, "loss": mean_loss})
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save(step + 1)
    if config.ema:
        with torch.no_grad():
            for parameter, mean in zip(parameters, average, strict=True):
                parameter.copy_(mean)
    return module.eval()
