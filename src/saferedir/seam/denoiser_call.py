"""Arguments of one denoiser call: reading latents and conditioning from them, and writing others in, by
family.

Pure functions; imports torch, `errors`, `families`, `session`. Used by `seam` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.families import Family
from saferedir.seam.session import Conditioning


def read_call(family: Family, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Conditioning]:
    """(latents (R, C, h, w), conditioning) of a denoiser call."""
    return _get(family.latents_arg, args, kwargs), Conditioning(
        prompt=_get(family.prompt_arg, args, kwargs),
        pooled=_get_nested(kwargs, family.pooled_kwarg) if family.pooled_kwarg else None,
        mask=kwargs.get(family.mask_kwarg) if family.mask_kwarg else None,
    )


def write_call(
    family: Family,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    given: Conditioning,
    used: Conditioning,
    conditional_latents: Tensor,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call's arguments with conditioning `used` in place of `given`.

    Extra rows ride at the end of the batch: each has the latents of its image, `conditional_latents` (B, C,
        h, w).
    """
    new_args, new_kwargs = list(args), dict(kwargs)
    prompt = used.prompt
    if used.extra is not None:
        if given.pooled is not None or given.mask is not None:
            raise GuardError(f"extra prompts are not supported for family {family.name!r} yet.")
        prompt = torch.cat([used.prompt, used.extra])
        batch = conditional_latents.shape[0]
        copies = used.extra.shape[0] // batch
        latents = _get(family.latents_arg, args, kwargs)
        _put(family.latents_arg, new_args, new_kwargs, torch.cat([latents, *[conditional_latents] * copies]))
        for name in family.row_kwargs:
            value = new_kwargs.get(name)
            if isinstance(value, Tensor):
                new_kwargs[name] = torch.cat([value, *[value[-batch:]] * copies])
    _put(family.prompt_arg, new_args, new_kwargs, prompt)
    if used.pooled is not given.pooled:
        new_kwargs = _with_nested(new_kwargs, family.pooled_kwarg, used.pooled)
    return tuple(new_args), new_kwargs


def _get(where: tuple[int, str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    position, name = where
    value = kwargs.get(name, args[position] if position < len(args) else None)
    if not isinstance(value, Tensor):
        raise GuardError(f"the denoiser was called without {name!r}; this way of calling it is not supported.")
    return value


def _put(where: tuple[int, str], args: list[Any], kwargs: dict[str, Any], value: Tensor) -> None:
    position, name = where
    if name in kwargs:
        kwargs[name] = value
    else:
        args[position] = value


def _get_nested(kwargs: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = kwargs
    for name in path:
        value = None if value is None else value.get(name)
    return value


def _with_nested(kwargs: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {**kwargs, head: _with_nested(kwargs[head], tuple(rest), value) if rest else value}
