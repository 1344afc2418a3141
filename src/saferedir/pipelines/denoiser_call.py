"""Call: one call of a denoiser. Reads latents and conditioning from its arguments and writes others in, by family.

Nothing else knows where a family keeps them, nor how the rows of classifier-free guidance lie. Pure functions of arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds, cat_lengths, flat_layers, no_prompt
from saferedir.pipelines.families import Family
from saferedir.pipelines.families.facts import CONDITIONAL, Part
from saferedir.utils.device import refuse


class Layout(NamedTuple):
    """Rows of one denoiser call: blocks of B rows, one for each of `parts`.

    Attributes:
        batch_size: B, images.
        parts: what each block is, in the order of the call, as `families.facts.Part` has it.
    """

    batch_size: int
    parts: tuple[Part, ...]

    @property
    def has_both(self) -> bool:
        """Whether the call has both halves of classifier-free guidance."""
        return "uncond" in self.parts

    @property
    def num_rows(self) -> int:
        """R, the pipeline's own rows of a call."""
        return self.batch_size * len(self.parts)

    def check(self, rows: Tensor) -> None:
        """Raise GuardError unless there are R rows."""
        if rows.shape[0] != self.batch_size * len(self.parts):
            raise GuardError(
                f"the denoiser got {rows.shape[0]} rows where {self.num_rows} were expected (batch {self.batch_size}, guidance "
                f"{'on' if self.has_both else 'off'}); this way of calling the pipeline is not supported. A callback that ends "
                "guidance in the middle of a run must keep a row for every image (diffusers' cutoff callbacks keep one)."
            )

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(conditional, unconditional) rows (B, ...) of rows (R, ...); without guidance (`rows` itself, None)."""
        self.check(rows)
        if len(self.parts) == 1:
            return rows, None
        return self._block(rows, "cond"), self._block(rows, "uncond") if self.has_both else None

    def with_cond(self, rows: Tensor, cond: Tensor) -> Tensor:
        """Rows (R, ...) with others (B, ...) in the place of the conditional ones."""
        if len(self.parts) == 1:
            return cond
        at = self.batch_size * self.parts.index("cond")
        return torch.cat([part for part in (rows[:at], cond, rows[at + self.batch_size :]) if len(part)])

    def read(self, rows: PromptEmbeds) -> Conditioning:
        """The conditioning in embeddings (R, ...) of a call."""
        halves = [(None, None) if part is None else self.split(part) for part in rows]
        cond, uncond = (PromptEmbeds(*half) for half in zip(*halves, strict=True))
        return Conditioning(cond, uncond if self.has_both else None)

    def halves(self, given: Conditioning) -> list[PromptEmbeds]:
        """The embeddings of each block that a call has, in its order."""
        by_part = {part: given.cond if part in CONDITIONAL else given.uncond for part in self.parts}
        return [embeds for embeds in by_part.values() if embeds is not None]

    def _block(self, rows: Tensor, part: Part) -> Tensor:
        at = self.batch_size * self.parts.index(part)
        return rows[at : at + self.batch_size]


class Extra(NamedTuple):
    """Extra rows of one call, behind the pipeline's own: K rows for each image.

    Attributes:
        blocks: their conditioning, one (E*B, ...) after the other, K*B rows in all.
        halves: for each of the K the half of guidance whose other arguments it shares, 0 conditional, 1 unconditional.
        latents: for each of the K latents (B, C, h, w) as the denoiser gets them, None for those of its half.
    """

    blocks: tuple[PromptEmbeds, ...]
    halves: tuple[int, ...]
    latents: tuple[Tensor | None, ...]


class Edit(NamedTuple):
    """What to write into a call: `used` in place of the `given` conditioning, in rows of `layout`, and extra rows."""

    given: Conditioning
    used: Conditioning
    layout: Layout
    extra: Extra | None = None


class Call(NamedTuple):
    """One call of a denoiser, as its hooks see it."""

    family: Family
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def latents(self) -> Tensor:
        """(R, C, h, w), or the packed sequence (R, N, C); behind the latents there may be further channels and tokens."""
        return _get(self.family.latents_arg, self.args, self.kwargs)

    @property
    def embeds(self) -> PromptEmbeds:
        """Embeddings (R, ...) that the pipeline gives the denoiser: the very objects, in its own order of rows."""
        if not self.family.has_text:
            return no_prompt(self.latents)
        path, mask = self.family.pooled_kwarg, self.family.mask_kwarg
        return PromptEmbeds(
            prompt=self._prompt(),
            pooled=_get_nested(self.kwargs, path) if path else None,
            mask=self.kwargs.get(mask) if mask else None,
        )

    def _prompt(self) -> Tensor:
        """(R, L, D); where the denoiser is given them for each frame, those of the first one, if all are the same."""
        prompt = _get(self.family.prompt_arg, self.args, self.kwargs)
        if self.family.prompt_layers:
            return flat_layers(prompt)
        if not self.family.is_prompt_per_frame:
            return prompt
        frames = prompt.unflatten(0, (self.latents.shape[0], -1))
        refuse(
            frames != frames[:, :1],
            lambda: GuardError(
                "prompts that change from frame to frame cannot be guarded; give one prompt for the video."
            ),
        )
        first: Tensor = frames[:, 0]
        return first

    @property
    def time(self) -> Tensor | float | None:
        """The scheduler's timestep, where this family's denoiser is given it."""
        if self.family.time_arg is None:
            return None
        position, name = self.family.time_arg
        value = self.kwargs.get(name, self.args[position] if position < len(self.args) else None)
        return value.flatten()[0] if isinstance(value, Tensor) else float(value)

    @property
    def is_auxiliary(self) -> bool:
        """Whether this call makes no prediction of its own (SD3's skip-layer guidance)."""
        return self.family.auxiliary_kwarg is not None and self.kwargs.get(self.family.auxiliary_kwarg) is not None

    def with_left_out(self, variables: Mapping[str, Any]) -> Call:
        """This call with the embeddings of the pipeline's `variables` where it is given zeros or nothing in their place."""
        names = self.family.denoiser_variables
        if names is None:
            return self
        kwargs = dict(self.kwargs)
        for argument, variable in zip((self.family.prompt_arg[1], *self.family.pooled_kwarg), names, strict=True):
            value = kwargs.get(argument)
            if value is None or not bool(value.any()):
                kwargs[argument] = variables[variable]
        return self._replace(kwargs=kwargs)

    def write(self, edit: Edit) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) with the conditioning of `edit`; each part that it changes is put together once.

        A denoiser that takes lists (`listed`) has the masks of its blocks apart, whose rows are cut by them.
        An extra row has latents, unless it brings some, and everything else of its image.
        """
        family, extra = self.family, edit.extra
        args, kwargs = list(self.args), dict(self.kwargs)
        if extra is not None:
            self._write_rows(args, kwargs, extra, edit.layout)
        prompt, pooled, mask = (_joined(edit, name) for name in PromptEmbeds._fields)
        if prompt is not None and family.has_text:
            if family.is_prompt_per_frame:
                prompt = prompt.repeat_interleave(self.latents.shape[2], dim=0)
            _put(family.prompt_arg, args, kwargs, prompt)
            positions = kwargs.get(family.positions_kwarg) if family.positions_kwarg else None
            if positions is not None and len(positions) != prompt.shape[1]:
                kwargs[str(family.positions_kwarg)] = torch.arange(prompt.shape[1], device=positions.device)
        if pooled is not None:
            kwargs = _with_nested(kwargs, family.pooled_kwarg, pooled)
        if mask is not None and family.mask_kwarg:
            kwargs[family.mask_kwarg] = _masks(edit) if family.listed else mask
        return tuple(args), kwargs

    def _write_rows(self, args: list[Any], kwargs: dict[str, Any], extra: Extra, layout: Layout) -> None:
        """Latents of extra rows, and every argument with an entry a row that is no conditioning."""
        latents, rows = self.latents, self.embeds.prompt.shape[0]
        with_latents = _with_latents if self.family.packing is None else self.family.packing.into

        def copies(value: Tensor) -> list[Tensor]:
            halves = [layout.split(value)[half] for half in extra.halves]
            return [part for part in halves if part is not None]

        def extend(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
                return torch.cat([value, *copies(value)])
            if isinstance(value, list) and len(value) == rows and all(isinstance(each, list) for each in value):
                return value * (1 + len(extra.halves))  # sizes of each row's images, the same for all rows of an image
            if isinstance(value, list | tuple):
                return type(value)(map(extend, value))
            return {name: extend(part) for name, part in value.items()} if isinstance(value, dict) else value

        added = [
            current if new is None else with_latents(current, new)
            for current, new in zip(copies(latents), extra.latents, strict=True)
        ]
        _put(self.family.latents_arg, args, kwargs, torch.cat([latents, *added]))
        kwargs |= {name: extend(kwargs[name]) for name in self.family.row_kwargs if name in kwargs}
        conditioning = (self.family.latents_arg[0], self.family.prompt_arg[0])
        args[:] = [value if index in conditioning else extend(value) for index, value in enumerate(args)]


def _joined(edit: Edit, name: str) -> Tensor | None:
    """One part (R + extra, ...) of what a call is to be given; None where that is the pipeline's own object."""
    given, used = ([getattr(half, name) for half in edit.layout.halves(each)] for each in (edit.given, edit.used))
    added = [] if edit.extra is None else [getattr(block, name) for block in edit.extra.blocks]
    added = [part for part in added if part is not None]
    if name == "mask" and added:  # one that hides nothing may have been left out
        return cat_lengths(_masks(edit))
    if used[0] is None or (not added and all(new is old for new, old in zip(used, given, strict=True))):
        return None
    parts: list[Tensor] = [*used, *(part.to(used[0]) for part in added)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if name == "pooled" else cat_lengths(parts)


def _masks(edit: Edit) -> list[Tensor]:
    """The masks (N, L) of the blocks of a call, whose lengths may differ; those that stay are the same objects in every step."""
    rows = [*edit.layout.halves(edit.used), *(edit.extra.blocks if edit.extra else ())]
    return [_mask_of(each).to(_mask_of(rows[0])) for each in rows]


def _mask_of(rows: PromptEmbeds) -> Tensor:
    """(N, L): the mask, all true where it was left out."""
    return torch.ones_like(rows.prompt[..., 0], dtype=torch.bool) if rows.mask is None else rows.mask


def _with_latents(current: Tensor, latents: Tensor) -> Tensor:
    """`current` with `latents` in the place of its own: an inpainting model's mask and image in the channels behind them stay."""
    if latents.shape == current.shape:
        return latents
    whole = current.clone()
    whole[tuple(slice(size) for size in latents.shape)] = latents.to(whole)
    return whole


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
