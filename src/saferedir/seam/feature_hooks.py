"""Torch hooks inside a denoiser, for guards that edit its features; on only while a guard needs them. No run in sight.

Each class holds the modules that it hooked: a deep copy of a denoiser brings the hooks along, and there they do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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


class SkipHooks:
    """Pre-hooks on the up blocks of one UNet, until `release`.

    `edit` is given the skip features (R, C, h, w) of one layer and its stage, and answers those to use. The stage counts
    the halvings of the hidden width: 0 where it is widest (1280 channels in Stable Diffusion), 1 at the next width (640).
    """

    def __init__(self, unet: Any, edit: Callable[[Tensor, int], Tensor]) -> None:
        self.modules: tuple[nn.Module, ...] = tuple(unet.up_blocks)
        widths = sorted(set(unet.config.block_out_channels), reverse=True)

        # A plain function, not to be compiled: see seam/hooks.py.
        def before(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if all(block is not hooked for hooked in self.modules):
                return None  # of a copy, whose denoiser refuses by itself
            if HIDDEN not in kwargs or SKIPS not in kwargs:
                raise GuardError(f"this {type(block).__name__} was called without {SKIPS!r}; not supported.")
            skips, width = list(kwargs[SKIPS]), kwargs[HIDDEN].shape[1]
            for position, layer in enumerate(block.resnets, start=1):  # they take the last one first
                skips[-position] = edit(skips[-position], widths.index(width))
                width = layer.out_channels
            return args, {**kwargs, SKIPS: tuple(skips)}

        hook = torch.compiler.disable(before)
        setattr(hook, MARK, self)
        self._handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in self.modules]

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class AttentionHooks:
    """Pre-hooks on the output projections of attention to the prompt, in every layer of the denoisers, until `release`.

    `edit` is given features (R, N, D) of N image tokens, and answers those to use. A layer attends to the prompt where it is
    called with `encoder_hidden_states`, or where it reads one sequence with the prompt in front (FLUX's single blocks).
    """

    def __init__(self, denoisers: Sequence[nn.Module], edit: Callable[[Tensor], Tensor]) -> None:
        self._edit = edit
        self._handles: list[Any] = []
        self._reads_prompt: dict[nn.Module, bool] = {}
        self._count = 0  # image tokens N, as the layers before showed it
        self.modules: list[nn.Module] = []
        for name, module in _attention_modules(denoisers):
            self._hook(module, is_single=_SINGLE_STREAM in name)

    def _hook(self, module: nn.Module, *, is_single: bool) -> None:
        def before(hooked: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            prompt = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            if hooked is module:
                self._reads_prompt[module] = isinstance(prompt, Tensor)

        def before_output(projection: nn.Module, args: tuple[Any, ...]) -> Any:
            if projection is not output:
                return None
            if not self._reads_prompt.get(module):
                return (self._edited_tail(args[0]), *args[1:]) if is_single else None
            self._count = args[0].shape[1]
            return (self._edit(args[0]), *args[1:])

        def after(hooked: nn.Module, args: tuple[Any, ...], value: Any) -> Any:
            return self._edited_tail(value) if hooked is module else None

        output = _output_projection(module)
        if output is None:  # the block itself projects, together with its MLP
            self._add(module, module.register_forward_hook, after)
        else:
            self._add(module, module.register_forward_pre_hook, before, with_kwargs=True)
            self._add(output, output.register_forward_pre_hook, before_output)

    def _add(self, module: nn.Module, register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> None:
        kept = torch.compiler.disable(hook)
        setattr(kept, MARK, self)
        self.modules.append(module)
        self._handles.append(register(kept, **options))

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
        for handle in self._handles:
            handle.remove()
        self._reads_prompt.clear()


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
    for module in denoiser.modules():
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
