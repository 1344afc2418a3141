"""What a contract check is, and the few helpers all of them share: bare runs, guarded runs, cleanliness.

Imports tests.contract.guards. The checks are in guard_features.py and pipeline_features.py, listed in features.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from tests.contract.guards import PROMPT, GuardCase, GuardKind, shared_pipeline
from tests.newer_pipelines import EVERY
from tests.tiny_pipelines import PipelineCase, run
from torch import Tensor

import saferedir as sr
from saferedir.attach import Attached, find_seam
from saferedir.guard import Guard
from saferedir.pipelines.families import FAMILIES, Family, family_of

CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # other batch sizes round otherwise, and three steps add up


class NotApplicable(Exception):
    """The pipeline, or the guard, lacks what the feature is about."""


class Refused(Exception):
    """saferedir refuses this by design; the sentence says so. The check has seen the refusal."""


@dataclass(frozen=True)
class Feature:
    """One row of the table: a promise, and the check that it holds on a pipeline with a guard.

    Attributes:
        name: short, unique; text: one line for the table.
        check: raises AssertionError where the promise is broken, NotApplicable, or Refused.
        about: "guard": every guard has its own way to break it; "pipeline": any guard of one kind shows it, so that one of
            each of `kinds` is enough; "script": it is the seam's own.
        cases: "all" pipelines, or one of each "family", for what is slow or cannot differ within a family.
        scripts: rows of GUARDS that a "script" feature is seen with; () where its check brings the guards along.
        kinds: of guards that a "pipeline" feature is seen with; one that is left out behaves as "steps".
        tested: families that the tests see it with, () for all; the page is made of all.
    """

    name: str
    text: str
    check: Callable[[PipelineCase, GuardCase], None]
    about: Literal["guard", "pipeline", "script"] = "guard"
    cases: Literal["all", "family"] = "family"
    scripts: tuple[str, ...] = ()
    kinds: tuple[GuardKind, ...] = ("steps", "weights")
    tested: tuple[str, ...] = ()


def family_row(case: PipelineCase) -> Family:
    return FAMILIES[case.family]


def denoiser_of(case: PipelineCase, pipe: Any) -> Any:
    return getattr(pipe, family_row(case).denoiser)


def representative(family: str) -> PipelineCase:
    """The first pipeline of a family, with guidance if there is one with it."""
    cases = [case for case in EVERY.values() if case.family == family]
    return next((case for case in cases if case.guidance), cases[0])


_BARE: dict[tuple[str, str], Tensor] = {}


def bare(case: PipelineCase, prompt: Any = PROMPT, **changes: Any) -> Tensor:
    """What the pipeline makes without guards; remembered, unless tensors are among the arguments."""
    pipe = shared_pipeline(case.name)
    assert find_seam(pipe, family_of(pipe)) is None, "ask for the bare images before attaching a guard"
    if any(isinstance(value, Tensor) for value in changes.values()):
        return run(case, shared_pipeline(case.name), prompt, **changes)
    key = (case.name, repr((prompt, sorted(changes.items()))))
    if key not in _BARE:
        _BARE[key] = run(case, shared_pipeline(case.name), prompt, **changes)
    return _BARE[key]


def guarded(
    case: PipelineCase, guard: GuardCase | Guard[Any], prompt: Any = PROMPT, pipe: Any = None, **changes: Any
) -> tuple[Tensor, Attached]:
    """(images, handle) of one guarded run, on the shared pipeline unless told otherwise; the guard is off again."""
    pipe = shared_pipeline(case.name) if pipe is None else pipe
    with sr.attach(pipe, guard.make(pipe, case) if isinstance(guard, GuardCase) else guard) as attached:
        images = run(case, pipe, prompt, **changes)
    assert attached.runs == 1, f"{attached.runs} guarded runs were counted in one call"
    return images, attached


def on_shared(case: PipelineCase, guard: GuardCase) -> Tensor:
    """The plain guarded run, remembered: what a feature must come to as well."""
    key = (case.name, f"guard {guard.name}")
    if key not in _BARE:
        _BARE[key] = guarded(case, guard)[0]
    return _BARE[key]


def same(one: Tensor, other: Tensor, what: str) -> None:
    """Assert bit-identity."""
    assert torch.equal(one, other), f"{what}: differs by up to {(one - other).abs().max().item():.2g}"


def close(one: Tensor, other: Tensor, what: str) -> None:
    """All but one value, or one in a thousand, are close, and those nearly.

    Guards decide by comparisons (SLD, value by value); a processor's rounding may turn one of them.
    """
    is_far = ~torch.isclose(one, other, **CLOSE)
    few = int(is_far.sum()) <= max(1, one.numel() / 1000)
    nearly = {name: 10 * limit if few else limit for name, limit in CLOSE.items()}
    torch.testing.assert_close(one, other, **nearly, msg=lambda found: f"{what}: {found}")


def is_apart(one: Tensor, other: Tensor) -> bool:
    """Whether every image differs visibly."""
    return bool(((one - other).flatten(1).abs().amax(1) > 1e-3).all())


def acts(guard: GuardCase, case: PipelineCase, images: Tensor, unguarded: Tensor, what: str = "guarded images") -> None:
    """Assert that the guard changed every image, or no bit if it is not one that acts."""
    assert images.isfinite().all(), f"{what}: not finite"
    if guard.is_acting:
        assert is_apart(images, unguarded), f"{what}: an image is as without the guard"
    else:
        same(images, unguarded, what)


def clean(case: PipelineCase, pipe: Any) -> None:
    """Assert that nothing of ours is left on the pipeline."""
    assert not {"step", "set_timesteps"} & set(pipe.scheduler.__dict__), "the scheduler is still wrapped"
    family = family_row(case)
    for name in (family.denoiser, *family.more_denoisers, *family.conditioned_modules):
        module = getattr(pipe, name, None)
        if module is not None:
            left = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs)
            assert not any(left), f"hooks are left on {name}"


def must_refuse(call: Callable[[], object], error: type[sr.GuardError], words: str, sentence: str) -> NoReturn:
    """Assert that `call` raises `error` naming `words`, and report it as a refusal."""
    refuses(call, error, words)
    raise Refused(sentence)


def refuses(call: Callable[[], object], error: type[sr.GuardError] = sr.GuardError, words: str = "") -> None:
    """Assert that `call` raises `error` naming `words`."""
    try:
        call()
    except error as found:
        assert words in str(found), f"the error does not name {words!r}: {found}"
        return
    raise AssertionError(f"{error.__name__} was expected")
