"""SkipHooks: a UNet's skip features on their way into its up blocks, shown to the guards that use them.

Made by `hooks` while a guard with `on_skip_features` is attached. A UNet compiled before that may not notice hooks on
its inside; the session then finds that it was never asked, and raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from saferedir.errors import GuardError
from saferedir.seam.wrapping import MARK, remove_marked_hooks

HIDDEN, SKIPS = "hidden_states", "res_hidden_states_tuple"


class SkipHooks:
    """Pre-hooks on the up blocks of one UNet, until `release`.

    `edit` is given the skip features (R, C, h, w) of one layer and its stage, and answers those to use. The stage counts
    the halvings of the hidden width: 0 where it is widest (1280 channels in Stable Diffusion), 1 at the next width (640).
    """

    def __init__(self, unet: Any, edit: Callable[[Tensor, int], Tensor]) -> None:
        self.blocks: tuple[nn.Module, ...] = tuple(unet.up_blocks)
        widths = sorted(set(unet.config.block_out_channels), reverse=True)

        # A plain function, not to be compiled: see hooks.py.
        def before(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if all(block is not own for own in self.blocks):
                return None  # of a copy, whose denoiser refuses by itself
            if HIDDEN not in kwargs or SKIPS not in kwargs:
                raise GuardError(f"this {type(block).__name__} was called without {SKIPS!r}; not supported.")
            skips, width = list(kwargs[SKIPS]), kwargs[HIDDEN].shape[1]
            for place, layer in enumerate(block.resnets, start=1):  # they take the last one first
                skips[-place] = edit(skips[-place], widths.index(width))
                width = layer.out_channels
            return args, {**kwargs, SKIPS: tuple(skips)}

        hook = torch.compiler.disable(before)
        setattr(hook, MARK, self)
        self._handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in self.blocks]

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def remove_foreign_skip_hooks(denoiser: Any) -> None:
    """Remove hooks that came along with a deep copy of a denoiser."""
    for block in getattr(denoiser, "up_blocks", ()):
        remove_marked_hooks(block, lambda owner, own: isinstance(owner, SkipHooks) and own not in owner.blocks)
