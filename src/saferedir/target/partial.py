"""Some steps of one pipeline call and no others, from latents of one's own, with gradients.

The pipeline's own loop runs, with its guards, its guidance and its scheduler: nothing of it is written a second time,
so what is differentiated is what is deployed. Steps before the first wanted one cost nothing: the denoiser is not asked
and the scheduler does not step; after the last one the loop is left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from saferedir.guards.base import Guard, GuardConfig, Step
from saferedir.guards.gates import Gate
from saferedir.pipelines.denoiser_call import Call
from saferedir.pipelines.families import Family
from saferedir.pipelines.guiders import guided_call
from saferedir.seam.hooks import WrappedMethods
from saferedir.seam.seam import Seam
from saferedir.target.given_images import Inpainting
from saferedir.target.prediction import Prediction, prediction_of


class _Left(Exception):
    """Out of the pipeline's loop, once the wanted steps are done."""


class Probe(Guard[GuardConfig]):
    """Records every step after all guards, and changes nothing."""

    method = "probe"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="none"))
        self.predictions: list[Prediction] = []
        #: reads the gates of the guards of the run under way
        self.read_gates: Callable[[], Mapping[str, Gate]] = dict
        self._step: Step | None = None

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        self._step = step
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        assert self._step is not None
        self.predictions.append(prediction_of(self._step, latents, self.read_gates()))
        return latents


class _PassingOver:
    """In a denoiser's place while steps are passed over: has its attributes, answers its own input."""

    def __init__(self, module: Any, family: Family) -> None:
        self._module, self._family = module, family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        latents = Call(self._family, args, kwargs).latents
        return SimpleNamespace(sample=latents) if return_dict else (latents,)


def run_part(
    seam: Seam,
    call: Mapping[str, Any],
    latents: Tensor | None,
    start: int = 0,
    stop: int | None = None,
    on_pass: Callable[[Any, Any], None] = lambda scheduler, timestep: None,
    inpainting: Inpainting | None = None,
) -> Any:
    """Call the pipeline, but only evaluations start..stop - 1; its output, or None where the loop was left before its end.

    Args:
        latents: (B, C, h, w) before evaluation `start`, in the sampler's frame; None for the pipeline's own noise.
        start: the scheduler must be able to begin there: multistep solvers begin with a step of first order.
        on_pass: called with the scheduler and the timestep of every evaluation that is skipped.
        inpainting: what is put back after every other one, when the guards are done with it; None for nothing.

    Raises:
        GuardError: a check of what was generated failed, be it that its outcome was still on the device when the loop was left.
    """
    pipe, family = seam.pipe, seam.family

    def prepare(instance: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prepared = original(*args, **kwargs)
        if latents is None:
            return prepared
        sequence = prepared[0] if isinstance(prepared, tuple) else prepared
        mine = latents if family.packing is None else family.packing.into(sequence, latents)
        return (mine, *prepared[1:]) if isinstance(prepared, tuple) else mine

    replaced = WrappedMethods(pipe, {"prepare_latents": prepare}, seam)
    try:
        with seam.part_from(start):  # at whose end every check of the run is read, however it was left
            try:
                with _window(pipe, family, start, stop, on_pass, inpainting), guided_call(pipe, call) as given:
                    return inspect.unwrap(type(pipe).__call__)(pipe, **given)  # without its `no_grad`
            except _Left:
                return None
    finally:
        replaced.release()


@contextmanager
def _window(
    pipe: Any,
    family: Family,
    start: int,
    stop: int | None,
    on_pass: Callable[[Any, Any], None],
    inpainting: Inpainting | None,
) -> Iterator[None]:
    """Inside, the scheduler passes over evaluations before `start`, and leaves the loop after evaluation `stop` - 1."""
    names = (family.denoiser, *family.more_denoisers)
    modules = {name: module for name in names if (module := getattr(pipe, name, None)) is not None}
    done = 0

    def put_back() -> None:
        for name, module in modules.items():
            pipe.__dict__[name] = module

    def step(
        scheduler: Any, original: Callable[..., Any], pred: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any
    ) -> Any:
        nonlocal done
        done += 1
        if done <= start:
            on_pass(scheduler, timestep)
            _pass_over(scheduler)
            if done == start:
                put_back()
            output = (sample,)
        else:
            output = original(pred, timestep, sample, *args, **kwargs)
            if inpainting is not None:
                output = inpainting.after_step(output, scheduler, done, family)
        if done == stop:
            raise _Left
        return output

    wrapped = WrappedMethods(pipe.scheduler, {"step": step}, pipe)
    if start:
        for name, module in modules.items():
            pipe.__dict__[name] = _PassingOver(module, family)
    try:
        yield
    finally:
        put_back()
        wrapped.release()


def _pass_over(scheduler: Any) -> None:
    """Count one step, for schedulers that count. One that got its first step from the caller has not counted yet."""
    index = getattr(scheduler, "_step_index", None)
    if index is None:
        index = getattr(scheduler, "begin_index", None)
    if index is not None:
        scheduler._step_index = index + 1
