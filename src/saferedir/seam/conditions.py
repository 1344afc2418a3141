"""Conditions: the conditioning of one run, what the pipeline gives and what its guards make of it.

Made and used by `session`. Rows that no guard touched are answered with the very objects that came in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import Guard, Step
from saferedir.pipelines.encoding import Encoded
from saferedir.pipelines.families import Family
from saferedir.seam.consult import Rows, condition, fitted
from saferedir.seam.denoiser_call import Conditioning
from saferedir.seam.rows import Layout

#: places in `Rows` of what belongs to the unconditional half of guidance
UNCONDITIONAL = tuple(Rows._fields.index(name) for name in ("uncond", "uncond_pooled", "uncond_mask"))

#: (rows of the pipeline, prompts) -> the moment guards are asked at
MakeStep = Callable[[Rows, tuple[str | None, ...]], Step]


class Conditions:
    """Of one run. `texts`: the prompts of embeddings (B, L, D), where a guard needs them."""

    def __init__(
        self,
        guards: Sequence[Guard[Any]],
        states: Sequence[Any],
        family: Family,
        layout: Layout,
        texts: Callable[[Tensor], tuple[str | None, ...]] | None,
    ) -> None:
        self._guards, self._states, self._texts = guards, states, texts
        self._is_sequential, self._layout = family.is_sequential, layout
        self._prompts: tuple[str | None, ...] = ()
        self._from_pipeline: tuple[Tensor | None, ...] = (None, None, None)
        self._own: Rows | None = None
        self._standing: Rows | None = None
        self._asked: tuple[Step, Rows, Rows] | None = None
        self._used: tuple[Rows, Rows] | None = None

    def proper(self, given: Conditioning, make_step: MakeStep) -> tuple[Step, Rows, Conditioning]:
        """(step, rows to use, the same as the call takes them) for the denoiser call that makes the prediction."""
        step, own, rows = self._conditioned(given, make_step)
        self._asked, self._used = None, (own, rows)
        return step, rows, self._answer(given, own, rows)

    def beside(self, given: Conditioning, make_step: MakeStep) -> Conditioning:
        """For a call that makes no prediction of its own; it may have the conditional rows only."""
        if self._used is None:
            self._asked = self._conditioned(given, make_step)
            return self._answer(given, *self._asked[1:])
        own, rows = self._used
        if not self._layout.has_both or given.prompt.shape[0] != self._layout.batch_size:
            return self._answer(given, own, rows)
        is_touched = rows.cond is not own.cond or rows.pooled is not own.pooled
        return given._replace(prompt=rows.cond, pooled=rows.pooled) if is_touched else given

    def later(self, given: Conditioning) -> Conditioning:
        """For the unconditional call, where it comes after the conditional one."""
        if given.prompt.shape[0] != self._layout.batch_size:
            raise GuardError("the unconditional call has another batch size than the conditional one; not supported.")
        wanted = None if self._used is None else self._used[1]
        if wanted is None or all(wanted[i] is None for i in UNCONDITIONAL):
            return given
        prompt = fitted(wanted.uncond, given.prompt)
        assert prompt is not None
        pooled, mask = fitted(wanted.uncond_pooled, given.pooled), fitted(wanted.uncond_mask, given.mask)
        return given._replace(prompt=prompt, pooled=pooled, mask=mask)

    def halves(self, given: Conditioning, rows: Rows) -> tuple[Encoded, Encoded | None]:
        """(conditional, unconditional or None) rows (B, ...) of a call that uses `rows`."""
        mask = None if given.mask is None else self._layout.split(given.mask)[0]
        cond = Encoded(rows.cond, rows.pooled, mask)
        if rows.uncond is None or not self._layout.has_both:
            return cond, None
        return cond, Encoded(rows.uncond, rows.uncond_pooled, rows.uncond_mask)

    def change_layout(self, layout: Layout) -> None:
        """Guidance has ended in the middle of the run; guards are asked anew for what holds from now on."""
        self._layout, self._own, self._standing = layout, None, None
        self.close()

    def close(self) -> None:
        """An evaluation has ended; guards are asked anew in the next one."""
        self._asked, self._used = None, None

    def _conditioned(self, given: Conditioning, make_step: MakeStep) -> tuple[Step, Rows, Rows]:
        """(step, the pipeline's rows, rows to use) of this evaluation; guards are asked once for it."""
        own = self._rows(given)
        if self._asked is not None:
            step, asked, rows = self._asked
            if torch.equal(asked.cond, own.cond):
                return step, own if rows.same_as(asked) else asked, own if rows.same_as(asked) else rows
        is_new = any(now is not before for now, before in zip(given[:3], self._from_pipeline, strict=True))
        if is_new and self._texts is not None:
            self._prompts = self._texts(own.cond)
        step = make_step(own, self._prompts)
        if self._own is None or self._standing is None or is_new:
            self._from_pipeline, self._own = given[:3], own
            self._standing = self._condition("on_prompt", step, own)
        return step, self._own, self._condition("on_step_start", step, self._standing)

    def _condition(self, point: str, step: Step, rows: Rows) -> Rows:
        return condition(point, self._guards, self._states, step, rows, uncond_later=self._is_sequential)

    def _answer(self, given: Conditioning, own: Rows, rows: Rows) -> Conditioning:
        if (
            rows.cond is own.cond
            and rows.pooled is own.pooled
            and (self._is_sequential or all(rows[i] is own[i] for i in UNCONDITIONAL))
        ):
            return given
        layout, now = self._layout, self._rows(given)
        uncond_pooled = now.uncond_pooled if rows.uncond_pooled is own.uncond_pooled else rows.uncond_pooled
        mask = given.mask
        if mask is not None and rows.uncond_mask is not own.uncond_mask and layout.has_both:
            mask = layout.join(layout.split(mask)[0], rows.uncond_mask)
        pooled = None if rows.pooled is None else layout.join(rows.pooled, uncond_pooled)
        return given._replace(prompt=layout.join(rows.cond, rows.uncond), pooled=pooled, mask=mask)

    def _rows(self, given: Conditioning) -> Rows:
        """Rows of the pipeline."""
        split = self._layout.split
        cond, uncond = split(given.prompt)
        pooled, uncond_pooled = (None, None) if given.pooled is None else split(given.pooled)
        return Rows(cond, uncond, pooled, uncond_pooled, None if given.mask is None else split(given.mask)[1])
