"""Solver: the scheduler's update of a run, as a guard with a second latent may use it (`Run.solver`).

A guard forks it where its latent leaves the image's, takes the image's own steps on the fork, and hands the history of
the fork over where the two are merged. The live scheduler is changed by nothing but `Fork.hand_over`. Shapes: latents
and model outputs (B, C, h, w), unpacked; rows (B,) bool; weights (B,) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.schedules import Coefficients, coefficients
from saferedir.utils.broadcast import per_sample
from saferedir.utils.host_copies import on_host

#: scheduler class name -> attributes that hold what it remembers of earlier steps; subclasses count
HISTORIES: dict[str, tuple[str, ...]] = {
    "DDIMScheduler": (),
    "DDIMParallelScheduler": (),
    "DDPMScheduler": (),
    "DDPMParallelScheduler": (),
    "LCMScheduler": (),
    "TCDScheduler": (),
    "CogVideoXDDIMScheduler": (),
    "LMSDiscreteScheduler": ("derivatives",),
    "EulerDiscreteScheduler": (),
    "EulerAncestralDiscreteScheduler": (),
    "DPMSolverMultistepScheduler": ("model_outputs",),
    "DEISMultistepScheduler": ("model_outputs",),
    "UniPCMultistepScheduler": ("model_outputs", "last_sample"),
    "SASolverScheduler": ("model_outputs", "last_sample"),
    "FlowMatchEulerDiscreteScheduler": (),
    "FlowMatchLCMScheduler": (),
    "EDMEulerScheduler": (),
    "EDMDPMSolverMultistepScheduler": ("model_outputs",),
}
#: those of them that are latents a step began from, which correctors start anew from
LATENTS = ("last_sample",)


def history_of(scheduler: Any) -> tuple[str, ...]:
    """Attributes of a scheduler's history; raises UnsupportedPipelineError where two histories cannot be mixed."""
    for base in type(scheduler).__mro__:
        if base.__name__ in HISTORIES:
            return HISTORIES[base.__name__]
    raise UnsupportedPipelineError(
        f"a second latent cannot follow a {type(scheduler).__name__}, whose steps have several stages that cannot be mixed; "
        "use DDIM, Euler, DPMSolverMultistep, UniPC or another scheduler listed in saferedir/pipelines/solver.py."
    )


class Solver:
    """The update of one run. `timesteps`: of its evaluations; `pack`, `unpack`: between latents and what the scheduler gets."""

    def __init__(
        self,
        scheduler: Any,
        timesteps: tuple[Any, ...],
        pack: Callable[[Tensor], Tensor] = lambda values: values,
        unpack: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self.names = history_of(scheduler)
        self.pack, self.unpack = pack, unpack
        self.scheduler, self._timesteps = scheduler, timesteps
        self._evaluation = 0
        self._arguments: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
        self._dtype = torch.float32

    def meet(self, evaluation: int, dtype: torch.dtype, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take in the arguments of the live step that is about to be made. Called by the seam."""
        self._evaluation, self._dtype, self._arguments = evaluation, dtype, (args, kwargs)

    def scaled(self, latents: Tensor, evaluation: int) -> Tensor:
        """Latents as the pipeline scales them for the denoiser."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return latents
        model_input: Tensor = self.scheduler.scale_model_input(latents, self._timesteps[evaluation])
        return model_input

    def next_level(self, like: Tensor) -> Coefficients:
        """alpha and sigma (B, 1, ...) of the latents that the live step has just made; not after the last one."""
        return coefficients(self.scheduler, self._timesteps[self._evaluation + 1]).like(like)

    def fork(self) -> Fork:
        """A copy that stands where the live scheduler stands now."""
        return Fork(self)

    def update(self, scheduler: Any, pred: Tensor, latents: Tensor) -> Tensor:
        """The present step, made by a forked scheduler with the arguments of the live one, and with its noise."""
        args, kwargs = self._arguments
        timestep = self._timesteps[self._evaluation]
        _know_first_step(scheduler, timestep)
        with same_noise((*args, *kwargs.values()), latents.device):
            output = scheduler.step(self.pack(pred.to(self._dtype)), timestep, self.pack(latents), *args, **kwargs)
        return self.unpack(output[0])


class Fork:
    """A scheduler of its own, for a second latent; at its first step it is the live one's equal."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self._scheduler = _copy(solver.scheduler)

    def step(self, pred: Tensor, latents: Tensor) -> Tensor:
        """Latents after the present step. Call it before the live step, once."""
        return self._solver.update(self._scheduler, pred, latents)

    def follow(self, rows: Tensor) -> None:
        """Forget what these rows remember, and take over what the live scheduler does: they leave the image now."""
        self._mix(self._solver.scheduler, self._scheduler, rows.to(torch.float32), _mixed)

    def hand_over(self, weights: Tensor, merge: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Mix the live history with the fork's, entry by entry, weights 1 - w and w. Call it after the live step.

        merge(live, forked): for entries that are latents, how to merge these at the level of the step just made.
        """

        def merged(live: Tensor, forked: Tensor, w: Tensor) -> Tensor:
            pack, unpack = self._solver.pack, self._solver.unpack
            return torch.where(per_sample(w, live) == 0, live, pack(merge(unpack(live), unpack(forked))).to(live))

        self._mix(self._scheduler, self._solver.scheduler, weights, merged)

    def _mix(self, source: Any, target: Any, w: Tensor, merged: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        for name in self._solver.names:
            mine, theirs = getattr(target, name), getattr(source, name)
            if isinstance(mine, list):
                setattr(
                    target, name, [_entry(first, second, w, _mixed) for first, second in zip(mine, theirs, strict=True)]
                )
            else:
                setattr(target, name, _entry(mine, theirs, w, merged if name in LATENTS else _mixed))


def _entry(
    mine: Tensor | None, theirs: Tensor | None, w: Tensor, mixed: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor | None:
    return mine if mine is None or theirs is None else mixed(mine, theirs, w)


def _mixed(mine: Tensor, theirs: Tensor, w: Tensor) -> Tensor:
    w = per_sample(w, mine)
    both = ((1 - w) * mine.float() + w * theirs.float()).to(mine.dtype)
    return torch.where(w == 0, mine, torch.where(w == 1, theirs, both))


def _copy(scheduler: Any) -> Any:
    """A scheduler with containers of its own and without wrapped methods. Tensors are shared: no scheduler writes into one."""
    kind = type(scheduler)
    copied = object.__new__(kind)
    for name, value in vars(scheduler).items():
        if callable(value) and hasattr(kind, name):
            continue
        copied.__dict__[name] = type(value)(value) if type(value) in (list, dict) else value
    copied.timesteps = on_host(scheduler.timesteps)  # DDPM looks for the next one among them at every step
    return copied


def _know_first_step(scheduler: Any, timestep: Any) -> None:
    """Have a scheduler look for its first step among timesteps on the host: among those on a device the host would wait."""
    is_unknown = all(getattr(scheduler, name, 0) is None for name in ("_step_index", "_begin_index"))
    if is_unknown and hasattr(scheduler, "index_for_timestep"):
        scheduler._step_index = scheduler.index_for_timestep(timestep, on_host(scheduler.timesteps))


@contextmanager
def same_noise(values: Iterable[Any], device: torch.device) -> Iterator[None]:
    """Afterwards every generator among `values` (in lists, too), and torch's own, stands where it stood before."""
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else (value,))]
    generators = [item for item in flat if isinstance(item, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    is_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if is_cpu else [device], device_type="cuda" if is_cpu else device.type):
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
