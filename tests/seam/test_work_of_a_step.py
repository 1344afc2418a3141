"""What the seam does in one evaluation, counted: steps that it builds for a guard, and how often it re-packs the prompt."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tests.tiny_pipelines import PIPELINES, PipelineCase, run
from torch import Tensor
from torch.overrides import TorchFunctionMode

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Run, Step
from saferedir.pipelines.families import family_of

CASES = ("sd", "sdxl", "sd-controlnet", "sd3", "flux-true-cfg", "pixart-sigma")
#: names of functions of torch that take embeddings apart or put them together
PACKING = {"cat", "concat", "stack", "pad", "split", "chunk", "repeat", "new_zeros"}


class Everywhere(Guard[GuardConfig]):
    """Edits the prompt, the prediction, the estimate and the latents of every evaluation."""

    method = "everywhere"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="star"))

    def on_prompt(self, step: Step) -> Tensor:
        return 0.9 * step.prompt_embeds

    def on_step_start(self, step: Step) -> Tensor:
        return 0.9 * step.prompt_embeds

    def on_prediction(self, step: Step) -> Tensor:
        assert step.pred is not None
        return 0.9 * step.pred

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        return 0.9 * x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        assert step.pred is not None and step.x0 is not None
        return 0.9 * latents


class Rows(Everywhere):
    """The same, with an extra row of its own beside them: of zeros."""

    method = "rows"

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def extra_prompts(self, run: Run) -> Tensor:
        return torch.zeros(1, *self.shape)


class Reader(Guard[GuardConfig]):
    """Reads the prompt of every evaluation, and edits nothing."""

    method = "reader"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="star"))
        self.shapes: list[torch.Size] = []

    def on_step_start(self, step: Step) -> Tensor:
        self.shapes.append(step.prompt_embeds.shape[1:])
        return step.prompt_embeds


class Packings(TorchFunctionMode):
    """Counts calls that pack or unpack tensors (…, L, D), outside the modules of `pipe` that read them."""

    def __init__(self, pipe: Any, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count, self.counts = shape, 0, list[int]()
        family = family_of(pipe)
        for name in (family.denoiser, "controlnet"):
            if (module := getattr(pipe, name, None)) is not None:
                module.forward = self._uncounted(module.forward)
        self._step = pipe.scheduler.step
        pipe.scheduler.step = self._noted

    def _uncounted(self, forward: Any) -> Any:
        def plain(*args: Any, **kwargs: Any) -> Any:
            before = self.count
            try:
                return forward(*args, **kwargs)
            finally:
                self.count = before

        return plain

    def _noted(self, *args: Any, **kwargs: Any) -> Any:
        output = self._step(*args, **kwargs)
        self.counts.append(self.count)
        self.count = 0
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_slice = name == "__getitem__" and isinstance(args[1], slice)
        if (is_slice or name in PACKING) and any(value.shape[-2:] == self.shape for value in tensors(args)):
            self.count += 1
        return func(*args, **(kwargs or {}))


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


@contextmanager
def built_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, int]]]:
    """Counts the steps that are built, by guard and evaluation."""
    counts: Counter[tuple[str, int]] = Counter()
    original = Step.__init__

    def counted(self: Step, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        counts["step", self.evaluation] += 1

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__init__", counted)
        yield counts


def shape_of(case: PipelineCase) -> torch.Size:
    """(L, D) of the prompt embeddings of a run."""
    pipe, reader = case.build(), Reader()
    with sr.attach(pipe, reader):
        run(case, pipe, ["a"], steps=2)
    return reader.shapes[0]


def guard_of(case: PipelineCase, has_rows: bool) -> Everywhere:
    return Rows(shape_of(case)) if has_rows else Everywhere()


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_built_at_most_twice_an_evaluation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = PIPELINES[name]
    guard, pipe = guard_of(case, has_rows=True), case.build()
    with built_steps(monkeypatch) as steps, sr.attach(pipe, guard):
        run(case, pipe, ["a", "b"])
    assert len(steps) >= 2 and max(steps.values()) == 2, steps


@pytest.mark.parametrize("has_rows", [False, True], ids=["edits", "edits-and-rows"])
@pytest.mark.parametrize("name", CASES)
def test_the_prompt_is_repacked_at_most_three_times_an_evaluation(name: str, has_rows: bool) -> None:
    case = PIPELINES[name]
    guard, pipe = guard_of(case, has_rows), case.build()
    packings = Packings(pipe, shape_of(case))
    with sr.attach(pipe, guard), packings:
        run(case, pipe, ["a", "b"])
    # before the first evaluation the pipeline itself encodes prompts and puts both halves of guidance together
    later = packings.counts[1:]
    assert later and max(later) <= 3, packings.counts
    assert min(later) >= (has_rows or not family_of(pipe).is_sequential), "the guard's edits were not counted"


@pytest.mark.parametrize("name", CASES)
def test_reading_repacks_nothing(name: str) -> None:
    case = PIPELINES[name]
    pipe = case.build()
    packings = Packings(pipe, shape_of(case))
    with sr.attach(pipe, Reader()), packings:
        run(case, pipe, ["a", "b"])
    assert not any(packings.counts[1:]), packings.counts


def python_calls(steps: int, guard: Guard[Any] | None) -> int:
    """Functions of Python that a run calls, without those of the denoiser."""
    case, counted = PIPELINES["sd"], 0
    pipe: Any = case.build()
    pipe.unet.forward = lambda sample, *args, **kwargs: (sample * 0.1,)

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event == "call"

    with nullcontext() if guard is None else sr.attach(pipe, guard):
        run(case, pipe, steps=steps)  # fills what is remembered of classes
        gc.disable()
        sys.setprofile(note)
        try:
            run(case, pipe, steps=steps)
        finally:
            sys.setprofile(None)
            gc.enable()
    return counted


def test_an_idle_guard_makes_few_calls_of_python() -> None:
    """Between two calls of a real denoiser they run cold, so that their number is what a step of a small model pays."""

    class Idle(Guard[GuardConfig]):
        method = "idle"

    guard = Idle(GuardConfig(concept="nothing"))
    short, long = (python_calls(steps, guard) - python_calls(steps, None) for steps in (3, 4))
    assert 0 < long - short <= 110
    assert short - 3 * (long - short) <= 600
