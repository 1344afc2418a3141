"""Torch hooks inside a denoiser, for guards that edit its features; on only while a guard needs them. No run in sight.

Each class holds the modules that it hooked: a deep copy of a denoiser brings the hooks along, and there they do nothing.

Under `torch.compile` the hooks are traced with the denoiser, and what they do is one operation, `saferedir::edited_features`,
into which nothing looks: it asks the guards of the run, as the hooks of a denoiser that is not compiled do. No graph breaks.
A graph that was made before the hooks came holds no longer while they are on, since the layers have another class then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from saferedir.errors import GuardError

MARK = "saferedir_seam"
_HOOK_DICTS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
HIDDEN, SKIPS = "hidden_states", "res_hidden_states_tuple"
#: blocks whose attention reads one sequence, the prompt's tokens first
_SINGLE_STREAM = "single_transformer_blocks"
#: places in a denoiser that are no stage of skip features: attention to the prompt, and a sequence with the prompt in front
_TO_PROMPT, _TAIL = 0, 1


class _Edits(Protocol):
    @property
    def modules(self) -> Sequence[nn.Module]: ...

    def edited(self, values: Tensor, location: int) -> Tensor: ...


#: by number, those that are on now; a compiled denoiser knows the number of its kind of hooks, which outlives a `release`
_ACTIVE: dict[int, _Edits] = {}
_NUMBERS: dict[type, WeakKeyDictionary[nn.Module, int]] = {}
_next_number = count()
#: class of a layer -> its class while hooks are on it (`_hooked_class`), and the inverse
_WITH_HOOKS: dict[type[nn.Module], type[nn.Module]] = {}
_WITHOUT_HOOKS: dict[type[nn.Module], type[nn.Module]] = {}


def _number(kind: type, denoiser: nn.Module) -> int:
    """The number that hooks of this kind have on this denoiser, each time they are put on."""
    return _NUMBERS.setdefault(kind, WeakKeyDictionary()).setdefault(denoiser, next(_next_number))


#: CUDA graphs would replay what the guards answered once; versions without the tag find no answer, and the run is refused
_TAGS: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


@torch.library.custom_op("saferedir::edited_features", mutates_args=(), **_TAGS)
def _edited_features(values: Tensor, number: int, location: int) -> Tensor:
    """Features as the hooks of that number have them now; as they are where those are off."""
    hooks = _ACTIVE.get(number)
    edited = values if hooks is None else hooks.edited(values, location)
    return values.clone(memory_format=torch.contiguous_format) if edited is values else edited.contiguous()


@_edited_features.register_fake
def _(values: Tensor, number: int, location: int) -> Tensor:
    return values.new_empty(values.shape)


class SkipHooks:
    """Pre-hooks on the up blocks of one UNet, until `release`.

    `edit` is given the skip features (R, C, h, w) of one layer and its stage, and answers those to use. The stage counts
    the halvings of the hidden width: 0 where it is widest (1280 channels in Stable Diffusion), 1 at the next width (640).
    `is_compiled`: whether there may be graphs of the UNet already.
    """

    def __init__(self, unet: Any, edit: Callable[[Tensor, int], Tensor], *, is_compiled: bool = False) -> None:
        self.modules: tuple[nn.Module, ...] = tuple(unet.up_blocks)
        self._edit, self._number = edit, _number(SkipHooks, unet)
        widths = sorted(set(unet.config.block_out_channels), reverse=True)

        # A plain function: see seam/hooks.py.
        def before(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if all(block is not hooked for hooked in self.modules):
                return None  # of a copy, whose denoiser refuses by itself
            if HIDDEN not in kwargs or SKIPS not in kwargs:
                raise GuardError(f"this {type(block).__name__} was called without {SKIPS!r}; not supported.")
            skips, width = list(kwargs[SKIPS]), kwargs[HIDDEN].shape[1]
            for position, layer in enumerate(block.resnets, start=1):  # they take the last one first
                skips[-position] = _edited(self, skips[-position], widths.index(width))
                width = layer.out_channels
            return args, {**kwargs, SKIPS: tuple(skips)}

        setattr(before, MARK, self)
        self._handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in self.modules]
        _activate(self, is_compiled)

    def edited(self, values: Tensor, location: int) -> Tensor:
        """Skip features (R, C, h, w) to use; `location` is their stage."""
        return self._edit(values, location)

    def release(self) -> None:
        """Take the hooks off."""
        _release(self)


class AttentionHooks:
    """Pre-hooks on the output projections of attention to the prompt, in every layer of the denoisers, until `release`.

    `edit` is given features (R, N, D) of N image tokens, and answers those to use. A layer attends to the prompt where it is
    called with `encoder_hidden_states`, or where it reads one sequence with the prompt in front (FLUX's single blocks).
    `is_compiled`: whether there may be graphs of a denoiser already.
    """

    def __init__(
        self, denoisers: Sequence[nn.Module], edit: Callable[[Tensor], Tensor], *, is_compiled: bool = False
    ) -> None:
        self._edit, self._number = edit, _number(AttentionHooks, denoisers[0])
        self._handles: list[Any] = []
        self._count = 0  # image tokens N, as the layers before showed it
        self.modules: list[nn.Module] = []
        for name, module in _attention_modules(denoisers):
            self._hook(module, is_single=_SINGLE_STREAM in name)
        _activate(self, is_compiled)

    def _hook(self, module: nn.Module, *, is_single: bool) -> None:
        layer = _Layer()

        def before(hooked: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            prompt = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            if hooked is module:
                layer.reads_prompt = isinstance(prompt, Tensor)

        def before_output(projection: nn.Module, args: tuple[Any, ...]) -> Any:
            if projection is not output:
                return None
            if layer.reads_prompt:
                return (_edited(self, args[0], _TO_PROMPT), *args[1:])
            return (_edited(self, args[0], _TAIL), *args[1:]) if is_single else None

        def after(hooked: nn.Module, args: tuple[Any, ...], value: Any) -> Any:
            return _edited(self, value, _TAIL) if hooked is module else None

        output = _output_projection(module)
        if output is None:  # the block itself projects, together with its MLP
            self._add(module, module.register_forward_hook, after)
        else:
            self._add(module, module.register_forward_pre_hook, before, with_kwargs=True)
            self._add(output, output.register_forward_pre_hook, before_output)

    def _add(self, module: nn.Module, register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> None:
        setattr(hook, MARK, self)
        self.modules.append(module)
        self._handles.append(register(hook, **options))

    def edited(self, values: Tensor, location: int) -> Tensor:
        """Features to use; `location` says whether `values` are (R, N, D) of image tokens, or (R, L + N, D) of both."""
        if location == _TAIL:
            return self._edited_tail(values)
        self._count = values.shape[1]
        return self._edit(values)

    def _edited_tail(self, values: Tensor) -> Tensor:
        """Values (R, L + N, D) of one sequence, the N image tokens at its end edited; as they are where N is unknown."""
        length = values.shape[1] - self._count
        if not self._count or length < 0:
            return values
        tail = values[:, length:]
        edited = self._edit(tail)
        return values if edited is tail else torch.cat([values[:, :length], edited], dim=1)

    def are_on(self, denoisers: Sequence[nn.Module]) -> bool:
        """Whether all that a fresh set of hooks would be on is what these are on."""
        wanted = [part for _, module in _attention_modules(denoisers) for part in _hooked_parts(module)]
        return len(wanted) == len(self.modules) and all(a is b for a, b in zip(wanted, self.modules, strict=True))

    def release(self) -> None:
        """Take the hooks off."""
        _release(self)


class _Layer:
    """What is known of one attention layer while it is called."""

    reads_prompt = False


def _edited(hooks: SkipHooks | AttentionHooks, values: Tensor, location: int) -> Tensor:
    """Features as the hooks have them; one operation of the graph where the denoiser is compiled."""
    if torch.compiler.is_compiling():
        answer: Tensor = _edited_features(values, hooks._number, location)
        return answer
    return hooks.edited(values, location)


def _activate(hooks: SkipHooks | AttentionHooks, is_compiled: bool) -> None:
    _ACTIVE[hooks._number] = hooks
    if is_compiled and not _replace_graphs(hooks.modules):
        torch.compiler.reset()
        _warn_once()


def _release(hooks: SkipHooks | AttentionHooks) -> None:
    for handle in hooks._handles:
        handle.remove()
    for module in hooks.modules:
        _restore_class(module)
    if _ACTIVE.get(hooks._number) is hooks:
        del _ACTIVE[hooks._number]


def _replace_graphs(modules: Sequence[nn.Module]) -> bool:
    """Have the graphs that these layers are part of hold no longer until `_restore_class`; False where PyTorch does not look.

    It looks at the class of every module that a graph has in it, and not at hooks. Graphs made before are in use again when the
    class is restored, and those made meanwhile when hooks come back.
    """
    if not getattr(torch._dynamo.config, "guard_nn_modules", False):
        return False
    for module in dict.fromkeys(modules):
        module.__class__ = _hooked_class(type(module))
    return True


def _hooked_class(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass that says of a layer that hooks are on it; the same each time, so that its graphs are known again."""
    if kind not in _WITH_HOOKS:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        hooked: type[nn.Module] = type(kind.__name__, (kind,), names)
        _WITH_HOOKS[kind], _WITHOUT_HOOKS[hooked] = hooked, kind
    return _WITH_HOOKS[kind]


def _restore_class(module: nn.Module) -> None:
    """The layer's class as it was; as it is where nobody replaced it, or somebody did so again."""
    module.__class__ = _WITHOUT_HOOKS.get(type(module), type(module))


@cache
def _warn_once() -> None:
    warnings.warn(
        "a guard edits features inside of a compiled denoiser, so all that this process has compiled is forgotten and will be "
        "compiled again (docs/howto/compile.md).",
        stacklevel=2,
    )


def _attention_modules(denoisers: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every attention layer."""
    for denoiser in denoisers:
        for name, module in denoiser.named_modules():
            if hasattr(module, "processor") and hasattr(module, "to_q"):
                yield name, module


def _hooked_parts(module: nn.Module) -> tuple[nn.Module, ...]:
    """What hooks are put on for one attention layer, in this order."""
    output = _output_projection(module)
    return (module,) if output is None else (module, output)


def _output_projection(module: nn.Module) -> nn.Module | None:
    """The linear layer behind an attention module's heads, None where it has none."""
    output = getattr(module, "to_out", None)
    if isinstance(output, nn.ModuleList | nn.Sequential):
        return output[0] if len(output) else None
    return output if isinstance(output, nn.Module) else None


def remove_foreign_feature_hooks(denoiser: nn.Module) -> None:
    """Remove hooks that came along with a deep copy of a denoiser."""
    hooked_now = {id(module) for hooks in _ACTIVE.values() for module in hooks.modules}
    for module in denoiser.modules():
        if id(module) not in hooked_now:
            _restore_class(module)
        remove_marked_hooks(
            module,
            lambda owner, each: (
                isinstance(owner, SkipHooks | AttentionHooks) and all(each is not hooked for hooked in owner.modules)
            ),
        )


def remove_marked_hooks(module: nn.Module, is_foreign: Callable[[object, nn.Module], bool]) -> None:
    """Remove the hooks of seams for which `is_foreign` holds: those that came along with a deep copy."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            owner = getattr(hook, MARK, None)
            if owner is not None and is_foreign(owner, module):
                for name in _HOOK_DICTS:
                    getattr(module, name, {}).pop(key, None)
