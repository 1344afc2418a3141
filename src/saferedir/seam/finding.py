"""Finding the seam of a pipeline again, and removing what came along with a deep copy of a guarded one.

Used by `attach` only.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from saferedir.errors import AlreadyAttachedError
from saferedir.pipelines.families import Family, unwrapped
from saferedir.pipelines.lora import guard_adapters, remove_adapter
from saferedir.seam.seam import Seam
from saferedir.seam.skip import remove_foreign_skip_hooks
from saferedir.seam.wrapping import owner_of_hooks, remove_foreign_wrappers, remove_marked_hooks


def find_seam(pipe: Any, family: Family) -> Seam | None:
    """The seam whose hooks are on this pipeline's own denoiser, if there is one."""
    held = getattr(pipe, family.denoiser)
    for module in (held, unwrapped(held)):
        owner = owner_of_hooks(module)
        if isinstance(owner, Seam) and not _is_foreign(owner, module):
            return owner
    return None


def check_not_shared(pipe: Any, family: Family, seam: Seam | None) -> None:
    """Refuse a pipeline of which a module (a ControlNet, a second denoiser) belongs to another guarded pipeline."""
    for name in (*family.more_denoisers, *family.companions):
        module = getattr(pipe, name, None)
        if module is None:
            continue
        owner = owner_of_hooks(module)
        if isinstance(owner, Seam) and owner is not seam and not _is_foreign(owner, module):
            raise AlreadyAttachedError(
                f"the {name} of this pipeline is shared with a guarded {type(owner.pipe).__name__}; detach the guards there "
                "first, or load a second copy of it."
            )


def remove_foreign_hooks(pipe: Any, family: Family) -> None:
    """Remove hooks, wrappers and guards' adapters that came along with a deep copy of a guarded pipeline."""
    for name in (family.denoiser, *family.more_denoisers, *family.companions):
        held = getattr(pipe, name, None)
        for module in () if held is None else {held, unwrapped(held)}:
            remove_marked_hooks(module, _is_foreign)
            remove_foreign_skip_hooks(module)
    remove_foreign_wrappers(pipe.scheduler)
    remove_foreign_wrappers(pipe)
    if find_seam(pipe, family) is None:
        denoiser = unwrapped(getattr(pipe, family.denoiser))
        for adapter in guard_adapters(denoiser):
            remove_adapter(denoiser, adapter)


def _is_foreign(owner: object, module: nn.Module) -> bool:
    return isinstance(owner, Seam) and all(module is not own for own in owner.hooks.modules.values())
