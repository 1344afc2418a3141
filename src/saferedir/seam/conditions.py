"""Conditions: the conditioning of one run, what the pipeline gives and what its guards make of it.

Made and used by `session`. It is taken apart once for as long as the pipeline gives the same objects; parts that no guard
touched are answered with the very objects that came in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from saferedir.errors import GuardError
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.denoiser_call import Edit, Layout
from saferedir.seam.guard_calls import Steps, Users, edited_conditioning, match_shape
from saferedir.seam.texts import RowTexts
from saferedir.utils.writes import Remembered

#: (conditioning of the pipeline, what is known of its texts) -> the steps that guards are asked at
MakeSteps = Callable[[Conditioning, RowTexts], Steps]


class Asked(NamedTuple):
    """What guards made of the conditioning of an evaluation: the pipeline's `given`, and what is `used` in its place."""

    steps: Steps
    given: Conditioning
    used: Conditioning


class Conditions:
    """The conditioning of one run, as the pipeline gives it and as the guards change it.

    Args:
        layout: rows of its denoiser calls.
        is_sequential: whether the unconditional half comes in a later call.
        has_set_lengths: whether that half has the length of the conditional one.
        texts: what is known of the texts of a conditioning, where a guard needs them.
    """

    def __init__(
        self,
        users: Users,
        layout: Layout,
        *,
        is_sequential: bool,
        has_set_lengths: bool = True,
        texts: Callable[[Conditioning], RowTexts] | None,
    ) -> None:
        self._users, self._layout, self._is_sequential, self._texts = users, layout, is_sequential, texts
        self._has_set_lengths = has_set_lengths
        self._known = RowTexts()
        self._read_from: PromptEmbeds | None = None
        self._read: Conditioning | None = None
        self._standing_for: Remembered | None = None
        self._standing: Conditioning | None = None  # after on_prompt
        self._asked: Asked | None = None  # in this evaluation, by an auxiliary call
        self._used: Asked | None = None  # in this evaluation, by the call that makes the prediction

    def before_prediction(self, embeds: PromptEmbeds, make_steps: MakeSteps) -> Asked:
        """For the denoiser call that makes the prediction; `embeds`: what the pipeline gives it."""
        self._used, self._asked = self._ask(embeds, make_steps), None
        return self._used

    def before_auxiliary(self, embeds: PromptEmbeds, make_steps: MakeSteps) -> Edit | None:
        """For a call that makes no prediction of its own; it may have the conditional half only."""
        if self._used is None:
            self._asked = self._ask(embeds, make_steps)
            return self.edit(embeds, self._asked)
        is_half = embeds.prompt.shape[0] == self._layout.batch_size
        return self.edit(embeds, self._used, self._layout._replace(parts=("cond",)) if is_half else self._layout)

    def before_unconditional(self, embeds: PromptEmbeds) -> PromptEmbeds:
        """For the unconditional call, where it comes after the conditional one; `embeds` itself where no guard wants others."""
        if embeds.prompt.shape[0] != self._layout.batch_size:
            raise GuardError("the unconditional call has another batch size than the conditional one; not supported.")
        wanted = None if self._used is None else self._used.used.uncond
        used = embeds if wanted is None else match_shape(wanted, embeds, has_set_lengths=self._has_set_lengths)
        return embeds if used.is_same(embeds) else used

    def edit(self, embeds: PromptEmbeds, asked: Asked, layout: Layout | None = None) -> Edit | None:
        """What to write into a call that is given `embeds`, in rows of `layout`; None where guards touched nothing of it."""
        if asked.used is asked.given:
            return None
        used_layout = layout or self._layout
        halves = zip(used_layout.halves(asked.used), used_layout.halves(asked.given), strict=True)
        if all(used.is_same(given) for used, given in halves):
            return None
        now = self.read(embeds) if used_layout == self._layout else used_layout.read(embeds)
        return Edit(now, _moved(asked.used, asked.given, now), used_layout)

    def change_layout(self, layout: Layout) -> None:
        """Guidance has ended in the middle of the run; guards are asked anew for what holds from now on."""
        self._layout, self._read_from, self._standing_for, self._standing = layout, None, None, None
        self.close()

    def forget(self) -> None:
        """Let the prompts go: the run has ended."""
        self._read_from, self._read, self._standing_for, self._standing = None, None, None, None
        self.close()

    def close(self) -> None:
        """An evaluation has ended; guards are asked anew in the next one."""
        self._asked, self._used = None, None

    def read(self, embeds: PromptEmbeds) -> Conditioning:
        """The conditioning that the pipeline gives; taken apart only where it is not the one of before."""
        if self._read is None or self._read_from is None or not embeds.is_same(self._read_from):
            self._read_from, self._read = embeds, self._layout.read(embeds)
        return self._read

    def _ask(self, embeds: PromptEmbeds, make_steps: MakeSteps) -> Asked:
        """Guards are asked once in an evaluation, about the prompt once for as long as nobody writes to it."""
        is_judged = bool(self._users["on_prompt"]) or self._texts is not None
        is_new = is_judged and (self._standing_for is None or not self._standing_for.is_same(embeds))
        given = self.read(embeds)
        if self._asked is not None and torch.equal(self._asked.given.cond.prompt, given.cond.prompt):
            return self._asked
        if is_new and self._texts is not None:
            self._known = self._texts(given)
        steps = make_steps(given, self._known)
        if not is_judged:
            self._standing = given
        elif is_new or self._standing is None:
            self._standing_for = Remembered(embeds)
            self._standing = self._condition("on_prompt", steps, given)
        return Asked(steps, given, self._condition("on_step_start", steps, self._standing))

    def _condition(self, point: str, steps: Steps, given: Conditioning) -> Conditioning:
        return edited_conditioning(point, self._users, steps, given, is_uncond_later=self._is_sequential)


def _moved(used: Conditioning, given: Conditioning, now: Conditioning) -> Conditioning:
    """`now` with those parts replaced that differ between `given` and `used`: one edit, made again on another call's objects."""
    if now is given:
        return used

    def half(new: PromptEmbeds | None, old: PromptEmbeds | None, present: PromptEmbeds | None) -> PromptEmbeds | None:
        if new is None or old is None or present is None:
            return present
        parts = (there if mine is theirs else mine for mine, theirs, there in zip(new, old, present, strict=True))
        return PromptEmbeds(*parts)  # type: ignore[arg-type]

    cond = half(used.cond, given.cond, now.cond)
    assert cond is not None
    return Conditioning(cond, half(used.uncond, given.uncond, now.uncond))
