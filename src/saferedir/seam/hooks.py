"""Hooks: what is put on one live pipeline while it is guarded, and taken off again. No run in sight.

Torch hooks on the denoisers and on modules that read the same conditioning, and wrapped methods of the scheduler and of the
pipeline; only while a guard needs them, a watch on the prompts' texts and hooks on skip features. Used by `seam`, which
decides what is done at each moment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MethodType, TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saferedir.errors import GuardError
from saferedir.guards.base import Guard
from saferedir.pipelines.denoiser_call import Call
from saferedir.pipelines.families import Family, is_compiled, unwrapped
from saferedir.pipelines.joined import Joined
from saferedir.pipelines.listed import Layers, Lists, Rows
from saferedir.pipelines.schedules import check_scheduler
from saferedir.seam.feature_hooks import MARK, AttentionHooks, SkipHooks
from saferedir.seam.given_latents import PREPARE, GivenLatents
from saferedir.seam.texts import PromptTexts

#: called as moment(instance, original, *args, **kwargs)
Wrapper = Callable[..., Any]


class Moments(Protocol):
    """What the hooks call at every denoiser call and scheduler step, and whose mark they bear. Its answers go to the pipeline."""

    def failing_closed(self) -> AbstractContextManager[None]: ...
    def before_denoiser(self, module: nn.Module, call: Call) -> Any: ...
    def after_denoiser(self, call: Call, output: Any) -> Any: ...
    def before_auxiliary(self, module: nn.Module, call: Call) -> Any: ...
    def skip_features(self, values: Tensor, stage: int) -> Tensor: ...
    def attention(self, values: Tensor) -> Tensor: ...
    def set_timesteps(self, scheduler: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...
    def scheduler_step(
        self, scheduler: Any, original: Callable[..., Any], model_output: Any, timestep: Any, sample: Any,
        *args: Any, **kwargs: Any,
    ) -> Any: ...  # fmt: skip
    def progress_bar(self, pipe: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any: ...
    def end_of_call(self, pipe: Any, original: Callable[..., Any]) -> Any: ...


class Hooks:
    """On one pipeline, none at first. They hold on to a seam's moments only while they are on."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self._pipe, self._family = pipe, family
        #: denoisers and their conditioned_modules by attribute, as the pipeline held them when the hooks were put on
        self.modules: dict[str, nn.Module] = {}
        self._inner: dict[str, nn.Module] = {}  # the same without torch.compile's wrapper
        #: there only while a guard needs them
        self.texts: PromptTexts | None = None
        self.latents: GivenLatents | None = None
        self._encoding: WrappedMethods | None = None
        self._preparing: WrappedMethods | None = None
        self._skips: SkipHooks | None = None
        self._attention: AttentionHooks | None = None
        self._wrapped: WrappedMethods | None = None
        self._call: WrappedMethods | None = None
        self._handles: list[Any] = []
        self._prompts: tuple[Lists | Layers | Joined, ...] = ()
        #: the scheduler whose methods are wrapped now
        self.scheduler: Any = None

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser that the hooks are on."""
        module: nn.Module = unwrapped(self.modules[self._family.denoiser])
        return module

    def put_on(self, moments: Moments) -> None:
        """Put on what every guard needs."""
        family = self._family

        # Plain functions, because deepcopy copies a bound method's owner, and with it the whole pipeline again;
        # not to be compiled, because they decide anew at every call.
        lists = Lists(family)
        layers = Layers(family) if family.prompt_layers else Joined(family, self._pipe)
        self._prompts = lists, layers
        is_flat = isinstance(layers, Joined) and layers.is_idle

        def listed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            with moments.failing_closed():
                return Call(family, (), lists.tensors(args, kwargs))

        def flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            with moments.failing_closed():
                return Call(family, args, layers.flat(kwargs))

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if family.listed:
                answer = moments.before_denoiser(module, listed(args, kwargs))
                return None if answer is None else lists.lists(answer[1], args)
            if is_flat:
                return moments.before_denoiser(module, Call(family, args, kwargs))
            return layers.apart(moments.before_denoiser(module, flat(args, kwargs)))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if family.listed:
                rows: Rows = output[0] if isinstance(output, tuple) else output.sample
                answer = moments.after_denoiser(Call(family, args, kwargs), (torch.stack(rows).squeeze(2),))
                kept = rows if answer is None else rows[: len(answer[0])]
                return (kept, *output[1:]) if isinstance(output, tuple) else type(output)(sample=kept)
            return moments.after_denoiser(Call(family, args, kwargs), output)

        def beside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if family.listed:
                answer = moments.before_auxiliary(module, listed(args, kwargs))
                return None if answer is None else lists.lists(answer[1], args)
            return layers.apart(moments.before_auxiliary(module, flat(args, kwargs)))

        hooks = []
        for hook in (before, after, beside):
            hooks.append(torch.compiler.disable(hook))
            setattr(hooks[-1], MARK, moments)
        self.wrap_scheduler(moments)
        # every pipeline calls the first around its loop, and nearly all the second when it is done
        methods = {"progress_bar": moments.progress_bar, "maybe_free_model_hooks": moments.end_of_call}
        self._call = WrappedMethods(self._pipe, methods, moments)
        self.modules = self.held_now()
        self._inner = {name: unwrapped(module) for name, module in self.modules.items()}
        for name, module in self.modules.items():
            if name in family.conditioned_modules:
                self._handles.append(module.register_forward_pre_hook(hooks[2], with_kwargs=True))
            else:
                self._handles.append(module.register_forward_pre_hook(hooks[0], with_kwargs=True))
                self._handles.append(module.register_forward_hook(hooks[1], with_kwargs=True))

    def forget_prompts(self) -> None:
        """Let the prompts go that a run has been given."""
        for each in self._prompts:
            each.forget()

    def held_now(self) -> dict[str, nn.Module]:
        """The denoisers and their conditioned_modules that the pipeline holds at this moment, by attribute."""
        family = self._family
        names = (family.denoiser, *family.more_denoisers, *family.conditioned_modules)
        return {name: module for name in names if (module := getattr(self._pipe, name, None)) is not None}

    def take_off(self) -> None:
        """Take off what `put_on` put on; harmless where there is nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.modules, self._inner, self._prompts = [], {}, {}, ()
        self._unwrap_scheduler()
        if self._call is not None:
            self._call.release()
        self._call = None

    def fit(self, guards: Sequence[Guard[Any]], moments: Moments) -> None:
        """Put on what only some guards need, and take off what none needs any more."""
        if not any(guard.needs_text for guard in guards):
            if self._encoding is not None:
                self._encoding.release()
            self._encoding, self.texts = None, None
        elif self.texts is None:
            self.texts = PromptTexts(self._family)
            if hasattr(self._pipe, "encode_prompt"):  # else nobody knows which texts embeddings were made of
                self._encoding = WrappedMethods(self._pipe, {"encode_prompt": self.texts.encode_prompt}, self.texts)
        if not any(guard.latents_test != "off" for guard in guards) or not hasattr(self._pipe, PREPARE):
            if self._preparing is not None:
                self._preparing.release()
            self._preparing, self.latents = None, None
        elif self.latents is None:
            self.latents = GivenLatents(self._family)
            self._preparing = WrappedMethods(self._pipe, {PREPARE: self.latents.prepare_latents}, self.latents)
        if self.latents is not None:
            self.latents.guards = tuple(guards)
        if not any(guard.uses("on_skip_features") for guard in guards):
            if self._skips is not None:
                self._skips.release()
            self._skips = None
        elif self._skips is None:
            held = self.held_now()[self._family.denoiser]
            self._skips = SkipHooks(self.denoiser, moments.skip_features, is_compiled=is_compiled(held))
        if not any(guard.uses("on_attention") for guard in guards):
            if self._attention is not None:
                self._attention.release()
            self._attention = None
        else:
            self.renew_attention(moments)

    def renew_attention(self, moments: Moments) -> None:
        """Put hooks of attention on the layers that the denoisers have now, unless they are there: adapters replace layers."""
        held = [each for name, each in self.held_now().items() if name not in self._family.conditioned_modules]
        denoisers = [unwrapped(each) for each in held]
        if self._attention is not None:
            if self._attention.are_on(denoisers):
                return
            self._attention.release()
        self._attention = AttentionHooks(denoisers, moments.attention, is_compiled=any(map(is_compiled, held)))

    def wrap_scheduler(self, moments: Moments) -> None:
        """Wrap the methods of the scheduler that the pipeline has now, and let go of another one."""
        self._unwrap_scheduler()
        check_scheduler(self._pipe.scheduler)
        methods = {"step": moments.scheduler_step, "set_timesteps": moments.set_timesteps}
        self._wrapped = WrappedMethods(self._pipe.scheduler, methods, moments)
        self.scheduler = self._pipe.scheduler

    def _unwrap_scheduler(self) -> None:
        if self._wrapped is not None:
            self._wrapped.release()
        self._wrapped = self.scheduler = None

    def check_module(self, module: nn.Module) -> None:
        """Raise unless `module` is ours, and the pipeline still holds all the modules that are."""
        module, is_ours, replaced = unwrapped(module), False, None
        for name, hooked in self._inner.items():
            is_ours = is_ours or hooked is module
            if replaced is None and unwrapped(getattr(self._pipe, name, None)) is not hooked:
                replaced = name
        if not is_ours:
            raise GuardError(
                f"this {type(module).__name__} is a copy of a guarded one, without guards of its own; attach guards to its "
                "pipeline, or free it with saferedir.detach(pipe)."
            )
        if replaced is not None:
            raise GuardError(f"{replaced} of the guarded pipeline was replaced; detach and attach the guards again.")

    @property
    def are_in_place(self) -> bool:
        """Whether there are hooks, and the pipeline still holds the modules they are on."""
        held = [unwrapped(getattr(self._pipe, name, None)) is inner for name, inner in self._inner.items()]
        return bool(held) and all(held)


class Loop:
    """Behaves as the `bar` it is given; as a context it calls `at_end` when the loop has come to its end."""

    def __init__(self, bar: Any, at_end: Callable[[], None]) -> None:
        self._bar, self._at_end = bar, at_end
        #: whether the loop is under way; not after an exception in it
        self.is_open = False

    def __enter__(self) -> Any:
        self.is_open = True
        return self._bar.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self.is_open = False
        answer = self._bar.__exit__(kind, error, trace)
        if kind is None:
            self._at_end()
        return answer

    def __iter__(self) -> Iterator[Any]:
        was_open, self.is_open = self.is_open, True
        try:
            yield from self._bar
        finally:
            self.is_open = was_open

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


class WrappedMethods:
    """Methods of one instance, replaced until `release`; then inert, even where somebody wrapped them again."""

    def __init__(self, instance: Any, moments: Mapping[str, Wrapper], owner: object) -> None:
        self.instance, self._is_active = instance, True
        self._found = {name: instance.__dict__[name] for name in moments if name in instance.__dict__}
        self._wrappers = {name: self._wrapped(name, moment, owner) for name, moment in moments.items()}
        for name, wrapper in self._wrappers.items():
            setattr(instance, name, wrapper)

    def release(self) -> None:
        """Put the instance's own methods back."""
        self._is_active = False
        for name, wrapper in self._wrappers.items():
            if self.instance.__dict__.get(name) is not wrapper:
                continue  # somebody wrapped ours since; it stays below theirs and passes everything through
            if name in self._found:
                setattr(self.instance, name, self._found[name])
            else:
                delattr(self.instance, name)

    def _wrapped(self, name: str, moment: Wrapper, owner: object) -> MethodType:
        original = getattr(self.instance, name)

        # The type's function is the one pipelines inspect for `eta`, `generator`, `timesteps`, `sigmas`.
        @functools.wraps(getattr(type(self.instance), name))
        def wrapped(instance: Any, *args: Any, **kwargs: Any) -> Any:
            if instance is not self.instance:
                raise GuardError(
                    f"this {type(instance).__name__} is a copy of a guarded one, without guards of its own; attach guards "
                    "to its pipeline, or free it with saferedir.detach(pipe)."
                )
            if not self._is_active:
                return original(*args, **kwargs)
            return moment(instance, original, *args, **kwargs)

        setattr(wrapped, MARK, (owner, self))
        return MethodType(wrapped, self.instance)


def owner_of_hooks(module: nn.Module) -> Any:
    """The seam whose hooks are on `module`, its own or copied along from another."""
    for hook in module._forward_pre_hooks.values():
        owner = getattr(hook, MARK, None)
        if owner is not None:
            return owner
    return None


def remove_foreign_wrappers(instance: Any) -> None:
    """Remove wrapped methods that a copied scheduler or pipeline brought along."""
    for name, method in list(instance.__dict__.items()):
        mark = getattr(method, MARK, None)
        if mark is not None and mark[1].instance is not instance:
            delattr(instance, name)
