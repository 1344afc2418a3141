"""Extra rows of a denoiser call: which guard's ride in it, what they are given, and which rows of the output are theirs.

Used by `session` and `edits`. Rows of one call, B images each: the pipeline's own; then for each guard its E rows and,
where these have latents of their own, one unconditional row at the same latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import Apart, Guard, Run, Step
from saferedir.pipelines.encoding import Encoded
from saferedir.seam.consult import ask, extra_rows, extra_rows_now, riders
from saferedir.seam.denoiser_call import Extra
from saferedir.seam.rows import Layout


class Riding(NamedTuple):
    """Extra rows of one guard in one call: conditioning (E, B, ...), and the latents they see if these are not the image's;
    `fed`: the same as the denoiser gets them.
    """

    extra: Encoded | None = None
    apart: Apart | None = None
    fed: Tensor | None = None

    @property
    def copies(self) -> int:
        """E."""
        return 0 if self.extra is None else self.extra.prompt.shape[0]


class ExtraRows:
    """Of one run. The guards are asked once for them, and before each denoiser call which of them ride in it."""

    def __init__(self, guards: Sequence[Guard[Any]], run: Run, layout: Layout) -> None:
        self._guards, self._layout, self._has_solver = tuple(guards), layout, run.solver is not None
        self._asked = [extra_rows(guard, run) for guard in guards]
        self._riding: list[Riding] = []
        self._latents: Tensor | None = None  # what the last step returned

    def first(self, steps: Sequence[Step], own: Encoded, uncond: Encoded | None) -> Extra | None:
        """For the denoiser call at `steps`, one a guard; `own`, `uncond`: the pipeline's rows, as `extra_of` has them."""
        self._riding = [
            self._fed(riding_now(guard, step, extra), step)
            for guard, step, extra in zip(self._guards, steps, self._asked, strict=True)
        ]
        return extra_of(self._riding, own, uncond)

    def second(self, uncond: Encoded) -> Extra | None:
        """For the unconditional call, where it comes after the conditional one."""
        return second_of(self._riding, uncond)

    def _fed(self, riding: Riding, step: Step) -> Riding:
        """With latents of its own, if it has some, as the denoiser gets them."""
        solver, apart = step.run.solver, riding.apart
        if apart is None or solver is None:
            return riding
        own = solver.scaled(apart.latents, step.evaluation).to(step.model_input)
        expected = None if self._latents is None else solver.scaled(self._latents, step.evaluation)
        return riding._replace(fed=followed(step.model_input, expected, apart, own))

    def change_layout(self, layout: Layout) -> None:
        """Guidance has ended in the middle of the run."""
        self._layout = layout

    @property
    def copies(self) -> list[int]:
        """E of each guard in this call."""
        return [riding.copies for riding in self._riding]

    def split(self, values: Tensor, *, is_second: bool) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """(the pipeline's own rows, the extra rows of each guard) of values (R + extra, ...) from the denoiser."""
        batch, has_both = self._layout.batch_size, self._layout.has_both
        counts = [
            (riding.fed is not None) if is_second else riding.copies + (riding.fed is not None and has_both)
            for riding in self._riding
        ]
        return split_blocks(values, batch * (2 if has_both else 1), batch, counts)

    def with_latents(self, steps: Sequence[Step], x_t: Tensor) -> list[Step]:
        """The steps, with the latents of their own that guards have, beside `x_t` in the sampler's frame."""
        return [
            step
            if riding.apart is None
            else replace(step, extra_latents=followed(x_t, self._latents, riding.apart, riding.apart.latents))
            for step, riding in zip(steps, self._riding, strict=True)
        ]

    def keep(self, latents: Tensor) -> None:
        """Remember what a step returned, where a second stream has to follow it."""
        self._latents = latents if self._has_solver else None


def riding_now(guard: Guard[Any], step: Step, extra: Encoded | None) -> Riding:
    """What a guard wants to ride in this call."""
    found = extra_rows_now(guard, step, extra)
    if found is None or not guard.uses("extra_latents"):
        return Riding(found)
    apart = ask(guard, "extra_latents", guard.extra_latents, step)
    if apart is not None and apart.latents.shape != step.model_input.shape:
        raise GuardError(
            f"guard {guard.method!r} returned {tuple(apart.latents.shape)} from extra_latents; expected "
            f"{tuple(step.model_input.shape)}."
        )
    return Riding(found, apart)


def extra_of(ridings: Sequence[Riding], own: Encoded, uncond: Encoded | None) -> Extra | None:
    """The extra rows of a call with conditional rows `own`; `uncond` (B, ...): of its unconditional rows, None if it has none."""
    blocks: list[Encoded] = []
    halves: list[int] = []
    latents: list[Tensor | None] = []
    for riding in ridings:
        if riding.extra is not None:
            blocks.append(riding.extra)
            halves += [0] * riding.copies
            latents += [riding.fed] * riding.copies
        if riding.fed is not None and uncond is not None:
            blocks.append(uncond.map(lambda part: part[None]))
            halves.append(1)
            latents.append(riding.fed)
    return Extra(riders(blocks, own), tuple(halves), tuple(latents)) if blocks else None


def second_of(ridings: Sequence[Riding], uncond: Encoded) -> Extra | None:
    """The extra rows of a call with unconditional rows alone."""
    latents = tuple(riding.fed for riding in ridings if riding.fed is not None)
    copies = len(latents)
    return Extra(uncond.cat(*[uncond] * (copies - 1)), (0,) * copies, latents) if copies else None


def split_blocks(
    values: Tensor, own_rows: int, batch: int, counts: Sequence[int]
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """(the pipeline's own rows, the extra rows of each guard) of values (R + extra, ...) from the denoiser."""
    at = own_rows
    own = values if values.shape[0] == at else values[:at]
    blocks = []
    for count in counts:
        blocks.append(tuple(values[at + i * batch : at + (i + 1) * batch] for i in range(count)))
        at += count * batch
    if at != values.shape[0]:
        raise GuardError(f"the denoiser returned {values.shape[0]} rows where {at} were expected.")
    return own, blocks


def followed(now: Tensor, expected: Tensor | None, apart: Apart, own: Tensor) -> Tensor:
    """Latents (B, ...) of a second stream: its `own` in its rows, those of the image (`now`) in the others.

    A pipeline that overwrites latents between two steps (inpainting) does so in both streams: where `now` is not what was
    `expected`, it holds for the second one, too.
    """
    if expected is None:
        raise GuardError("a guard has latents of its own before the first step; they begin with the image's.")
    is_new = now != expected.to(now)
    if bool((is_new.flatten(1).all(dim=1) & apart.rows).any()):
        raise GuardError(
            "all latents were replaced between two steps (by a callback?), where a second latent cannot follow; leave them alone."
        )
    return torch.where(apart.rows.view(-1, *(1,) * (now.ndim - 1)) & ~is_new, own.to(now), now)
