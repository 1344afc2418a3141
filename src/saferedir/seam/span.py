"""Which of the scheduler's timesteps a run goes through. Pure; imports nothing of ours but what it reads off a scheduler."""

from __future__ import annotations

from typing import Any


def evaluation_span(scheduler: Any, count: int | None, first: float | None) -> tuple[int, tuple[float, ...]]:
    """(offset, timesteps): where the run begins in `scheduler.timesteps`, and the timestep of each evaluation.

    `count`: evaluations the pipeline announces, fewer than the scheduler's where it starts late (img2img) or stops
    early (SDXL's denoising_end); None if it announces nothing. `first`: timestep of the first evaluation, if known.
    The start is the scheduler's `begin_index`; schedulers without one say nothing, and then it is the place where
    `first` stands, of several such places the one from which `count` evaluations reach the end.
    """
    every = [float(value) for value in scheduler.timesteps.tolist()]
    offset = getattr(scheduler, "begin_index", None)
    if offset is None:
        late = len(every) - (count or len(every))
        if first is None or first not in every:
            offset = 0
        else:
            offset = late if 0 <= late and every[late] == first else every.index(first)
    return offset, tuple(every[offset:][: count or None])
