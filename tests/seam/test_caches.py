"""Caches of a guarded denoiser: an edit that begins in the middle is heard in full, no run inherits another's features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import hooks
from tests.contract.guards import GUARDS, ExtraRows, Redirect, Watcher, X0Editor
from tests.seam.cache_kinds import STEPS, put_on
from tests.tiny_pipelines import PIPELINES, run
from torch import Tensor, nn

import saferedir as sr
from saferedir.guard import Guard, GuardConfig, Step
from saferedir.seam.caches import all_modules

#: caches and pipelines that diffusers puts them on, one of each way of calling a denoiser
PAIRS = (
    ("PyramidAttentionBroadcast", "sd"),
    ("PyramidAttentionBroadcast", "flux"),
    ("FasterCache", "aura-flow"),
    ("FasterCache", "flux"),
    ("FirstBlockCache", "wan"),
    ("MagCache", "wan"),
    ("SeaCache", "wan"),
    ("TaylorSeerCache", "flux"),
)


class Late(Redirect):
    """Redirects from evaluation `first` on."""

    method = "late"

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def on_step_start(self, step: Step) -> Tensor:
        return super().on_step_start(step) if step.evaluation >= self.first else step.prompt_embeds


class Breaking(Guard[GuardConfig]):
    """Raises in the middle of a run."""

    method = "breaking"

    def __init__(self) -> None:
        super().__init__(GuardConfig(concept="star"))

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        if step.evaluation == STEPS // 2:
            raise ZeroDivisionError("scripted")
        return x0


def draw(name: str, pipe: Any, *guards: Guard[Any], **changes: Any) -> Tensor:
    if not guards:
        return run(PIPELINES[name], pipe, "a star", steps=STEPS, **changes)
    with sr.attach(pipe, guards):
        return run(PIPELINES[name], pipe, "a star", steps=STEPS, **changes)


def built(cache: str, name: str) -> Any:
    pipe = PIPELINES[name].build()
    put_on(cache, pipe, PIPELINES[name])
    return pipe


def apart(one: Tensor, other: Tensor, scale: Tensor) -> float:
    return float((one - other).norm() / scale.norm())


@pytest.mark.parametrize(("cache", "name"), PAIRS)
def test_a_late_redirection_is_heard_in_full(cache: str, name: str) -> None:
    plain, pipe = PIPELINES[name].build(), built(cache, name)
    bare, cached = draw(name, plain), draw(name, pipe)
    own = apart(cached, bare, bare)
    assert own > 1e-4, "this cache skips nothing, so the check is empty"
    wanted = draw(name, plain, Late(STEPS // 2))
    found = draw(name, pipe, Late(STEPS // 2))
    assert apart(found, wanted, bare) <= own
    effect = apart(wanted, bare, bare)
    assert apart(found, cached, bare) >= effect - own
    torch.testing.assert_close(draw(name, pipe, Watcher()), draw(name, built(cache, name)), rtol=0, atol=0)


@pytest.mark.parametrize(("cache", "name"), PAIRS)
def test_a_run_after_one_that_broke_off_equals_a_fresh_one(cache: str, name: str) -> None:
    fresh, pipe = draw(name, built(cache, name)), built(cache, name)
    with pytest.raises(sr.GuardError, match="scripted"):
        draw(name, pipe, Breaking())
    assert torch.equal(draw(name, pipe), fresh), "unguarded, after detaching"
    with sr.attach(pipe, Watcher()):
        handle = interrupted_after(pipe, STEPS // 2)
        with pytest.raises(KeyboardInterrupt):
            run(PIPELINES[name], pipe, "a star", steps=STEPS)
        handle.remove()
        assert torch.equal(run(PIPELINES[name], pipe, "a star", steps=STEPS), fresh), "guarded still"


def interrupted_after(pipe: Any, calls: int) -> Any:
    """Ctrl-C in a call of the denoiser."""
    left = [calls]

    def interrupt(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    return denoiser(pipe).register_forward_hook(interrupt)


def denoiser(pipe: Any) -> nn.Module:
    found: nn.Module = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return found


@pytest.mark.parametrize("name", ["aura-flow", "flux"])
def test_faster_cache_and_rows_of_a_guard_are_refused_wherever_they_meet(name: str) -> None:
    pipe = built("FasterCache", name)
    with pytest.raises(sr.GuardError, match=r"'extra-rows' adds rows .* FasterCache"):
        draw(name, pipe, ExtraRows())
    pipe = PIPELINES[name].build()
    with sr.attach(pipe, ExtraRows()):
        put_on("FasterCache", pipe, PIPELINES[name])
        with pytest.raises(sr.GuardError, match=r"'extra-rows' adds rows .* FasterCache"):
            run(PIPELINES[name], pipe, "a star", steps=2)


@pytest.mark.parametrize(
    ("cache", "name"), [("PyramidAttentionBroadcast", "wan"), ("PyramidAttentionBroadcast", "flux-true-cfg")]
)
def test_features_of_the_negative_prompt_never_serve_for_the_prompt(cache: str, name: str) -> None:
    pipe = built(cache, name)
    with pytest.raises(sr.GuardError, match="two calls of guidance"):
        draw(name, pipe, Watcher())
    unguided = PIPELINES[name].unguided
    assert torch.equal(draw(name, pipe, Watcher(), **unguided), draw(name, built(cache, name), **unguided))


@pytest.mark.parametrize("name", ["lumina", "pixart-sigma"])
def test_faster_cache_is_refused_where_halves_are_not_what_it_takes_them_for(name: str) -> None:
    pipe, case = built("FasterCache", name), PIPELINES[name]
    changes = {} if name == "lumina" else case.unguided
    with pytest.raises(sr.GuardError, match="mix images"):
        draw(name, pipe, Watcher(), **changes)


def test_rows_that_come_and_go_empty_the_caches() -> None:
    """Rows of a second latent begin in the middle: features of fewer rows would not fit."""
    case = PIPELINES["sd"]
    plain, pipe = case.build(), built("PyramidAttentionBroadcast", "sd")
    guard = GUARDS["dual_latent_r2"]
    own = apart(draw("sd", pipe), bare := draw("sd", plain), bare)
    wanted = draw("sd", plain, guard.make(plain, case))
    assert apart(draw("sd", pipe, guard.make(pipe, case)), wanted, bare) <= own


def test_a_prediction_edited_from_the_middle_on_is_heard() -> None:
    class LateEdit(X0Editor):
        def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
            return super().on_denoised(step, x0) if step.evaluation >= STEPS // 2 else x0

    plain, pipe = PIPELINES["sd"].build(), built("PyramidAttentionBroadcast", "sd")
    bare = draw("sd", plain)
    own = apart(draw("sd", pipe), bare, bare)
    assert apart(draw("sd", pipe, LateEdit()), draw("sd", plain, LateEdit()), bare) <= own


def test_a_cache_that_cannot_be_emptied_is_refused() -> None:
    pipe = PIPELINES["flux"].build()
    pipe.transformer.enable_cache(hooks.TextKVCacheConfig())
    with pytest.raises(sr.GuardError, match="TextKVCache"):
        sr.attach(pipe, Watcher())
    pipe.transformer.disable_cache()
    pipe.transformer._is_cached = True
    with pytest.raises(sr.GuardError, match="cache-dit"):
        sr.attach(pipe, Watcher())
    del pipe.transformer._is_cached

    class Memory(hooks.ModelHook):
        _is_stateful = True

    hooks.HookRegistry.check_if_exists_or_initialize(pipe.transformer).register_hook(Memory(), "memory")
    with pytest.raises(sr.GuardError, match="'memory'"):
        sr.attach(pipe, Watcher())
    pipe.transformer._diffusers_hook.remove_hook("memory")
    draw("flux", pipe, Watcher())


def test_a_cache_enabled_by_a_callback_is_seen() -> None:
    pipe, case = PIPELINES["flux"].build(), PIPELINES["flux"]

    def enable(pipe: Any, index: int, *_: Any) -> dict[str, Any]:
        if index == 1:
            pipe.transformer.enable_cache(hooks.TextKVCacheConfig())
        return {}

    with sr.attach(pipe, Watcher()), pytest.raises(sr.GuardError, match="TextKVCache"):
        run(case, pipe, "a star", steps=4, callback_on_step_end=enable)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_every_module_is_looked_at_once(name: str) -> None:
    """Also what is in two places, and where a module has none in the place of one."""
    module: Any = PIPELINES[name].build()
    module = getattr(module, "unet", None) or module.transformer
    module.again, module.nothing = next(module.children()), None
    module.register_module("nobody", None)
    assert list(map(id, all_modules(module))) == list(map(id, module.modules()))
