"""Arguments of one denoiser call: reading latents and conditioning from them, and writing others in, by family.

Pure functions; imports torch, `errors`, `families`, `encoding`. Made in `seam.hooks`, used by `seam.seam` and `seam.session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.pipelines.encoding import Encoded, cat_lengths
from saferedir.pipelines.families import Family


class Extra(NamedTuple):
    """Extra rows of one call: conditioning (K*B, ...); for each of the K the half of guidance whose other arguments it shares
    (0 conditional, 1 unconditional), and latents (B, C, h, w) as the denoiser gets them, None for those of its half.
    """

    rows: Encoded
    halves: tuple[int, ...]
    latents: tuple[Tensor | None, ...]


class Conditioning(NamedTuple):
    """Conditioning of one denoiser call, in the pipeline's row layout.

    prompt (R, L, D), pooled (R, P) or None, mask (R, L) or None; extra: rows to append, or None.
    """

    prompt: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    extra: Extra | None = None


class Call(NamedTuple):
    """One call of a denoiser, as its hooks see it."""

    family: Family
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def latents(self) -> Tensor:
        """(R, C, h, w), or the packed sequence (R, N, C)."""
        return _get(self.family.latents_arg, self.args, self.kwargs)

    @property
    def conditioning(self) -> Conditioning:
        """What the pipeline gives the denoiser."""
        path, mask = self.family.pooled_kwarg, self.family.mask_kwarg
        return Conditioning(
            prompt=_get(self.family.prompt_arg, self.args, self.kwargs),
            pooled=_get_nested(self.kwargs, path) if path else None,
            mask=self.kwargs.get(mask) if mask else None,
        )

    @property
    def time(self) -> float | None:
        """The scheduler's timestep, where this family's denoiser is given it."""
        if self.family.time_arg is None:
            return None
        position, name = self.family.time_arg
        value = self.kwargs.get(name, self.args[position] if position < len(self.args) else None)
        return float(torch.as_tensor(value).flatten()[0])

    @property
    def is_aside(self) -> bool:
        """Whether this call is beside the prediction proper."""
        return self.family.aside_kwarg is not None and self.kwargs.get(self.family.aside_kwarg) is not None

    def with_conditioning(
        self,
        used: Conditioning,
        halves: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        packed: Callable[[Tensor], Tensor] = lambda latents: latents,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with conditioning `used`. Extra rows ride at the end of the batch.

        Each has latents, unless it brings some, and everything else of its image: `halves` splits R rows into conditional and
        unconditional ones.
        """
        family, given, extra = self.family, self.conditioning, used.extra
        args, kwargs = list(self.args), dict(self.kwargs)
        prompt, pooled, mask = used.prompt, used.pooled, used.mask
        if extra is not None:
            rows = given.prompt.shape[0]

            def copies(value: Tensor) -> list[Tensor]:
                found = [halves(value)[half] for half in extra.halves]
                return [part for part in found if part is not None]

            def extend(value: Any) -> Any:
                if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
                    return torch.cat([value, *copies(value)])
                if isinstance(value, list | tuple):
                    return type(value)(map(extend, value))
                return {name: extend(part) for name, part in value.items()} if isinstance(value, dict) else value

            latents = [
                own if new is None else _with_rest(packed(new), own)
                for own, new in zip(copies(self.latents), extra.latents, strict=True)
            ]
            _put(family.latents_arg, args, kwargs, torch.cat([self.latents, *latents]))
            kwargs |= {name: extend(kwargs[name]) for name in family.row_kwargs if name in kwargs}
            prompt = cat_lengths((prompt, extra.rows.prompt.to(prompt)))
            if pooled is not None and extra.rows.pooled is not None:
                pooled = torch.cat([pooled, extra.rows.pooled.to(pooled)])
            mask = None if mask is None or extra.rows.mask is None else cat_lengths((mask, extra.rows.mask.to(mask)))
        _put(family.prompt_arg, args, kwargs, prompt)
        if pooled is not given.pooled:
            kwargs = _with_nested(kwargs, family.pooled_kwarg, pooled)
        if mask is not given.mask and family.mask_kwarg:
            kwargs[family.mask_kwarg] = mask
        return tuple(args), kwargs


def _with_rest(latents: Tensor, own: Tensor) -> Tensor:
    """`latents` and, behind them, the channels of `own` that are no latents: an inpainting model's mask and picture."""
    return latents if latents.shape == own.shape else torch.cat([latents, own[:, latents.shape[1] :]], dim=1)


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
