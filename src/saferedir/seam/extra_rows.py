"""Extra rows of a denoiser call: which guard has some in it, what they are given, and which rows of the output are theirs.

Used by `session`. Rows of one call, B images each: the pipeline's own; then for each guard its E rows and, where these have
latents of their own, one unconditional row at the same latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import Guard, Run, SecondLatents, Step
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.denoiser_call import Extra, Layout
from saferedir.seam.guard_calls import Steps, call_guard
from saferedir.utils.device import refuse
from saferedir.utils.writes import MadeOf


class GuardRows(NamedTuple):
    """Extra rows of one guard in one call.

    Attributes:
        embeds: their conditioning, (E, B, ...); None for no rows.
        second: the latents they see, if these are not the image's.
        model_input: the same as the denoiser gets them.
    """

    embeds: PromptEmbeds | None = None
    second: SecondLatents | None = None
    model_input: Tensor | None = None

    @property
    def copies(self) -> int:
        """E."""
        return 0 if self.embeds is None else self.embeds.prompt.shape[0]


class ExtraRows:
    """Extra rows of one run: guards give them once, and say before each denoiser call which of them are in it."""

    def __init__(
        self,
        guards: Sequence[Guard[Any]],
        run: Run,
        layout: Layout,
        *,
        has_mask: bool = False,
        may_lengthen: bool = True,
    ) -> None:
        self._guards, self._layout, self._solver = tuple(guards), layout, run.solver
        self._has_mask, self._may_lengthen = has_mask, may_lengthen
        self._asked = [rows_of_run(guard, run) for guard in guards]
        self._rows = [GuardRows()] * len(self._guards)
        self._latents: Tensor | None = None  # what the last step returned
        self._blocks: list[MadeOf[PromptEmbeds]] = []

    def first(self, steps: Steps, used: Conditioning) -> Extra | None:
        """For the first denoiser call of an evaluation; `used`: conditioning of the pipeline's own rows."""
        self._rows = [
            self._scaled(rows_of_call(guard, steps, position, asked), steps)
            for position, (guard, asked) in enumerate(zip(self._guards, self._asked, strict=True))
        ]
        if "perturbed" in self._layout.parts and any(rows.embeds is not None for rows in self._rows):
            methods = [
                guard.method for guard, rows in zip(self._guards, self._rows, strict=True) if rows.embeds is not None
            ]
            raise GuardError(
                f"guard {methods[0]!r} adds rows to the denoiser's calls, and perturbed-attention guidance divides these by "
                "their number, so that it would take other rows than its own; call with pag_scale=0, or use a guard without rows."
            )
        extra = extra_of(self._rows, used.cond, used.uncond if self._layout.has_both else None, self._beside)
        length = used.cond.prompt.shape[1]
        if extra and not self._may_lengthen and any(block.prompt.shape[1] > length for block in extra.blocks):
            raise GuardError(
                f"a guard's words are longer than the prompt's {length} tokens, and this denoiser takes the mean of all tokens, "
                "padding included, so that the image would change; call it with a longer prompt, or use a guard without "
                "words of its own (saferedir, duo, safe_denoiser)."
            )
        return extra

    def _beside(self, extra: PromptEmbeds, embeds: PromptEmbeds) -> PromptEmbeds:
        """`block_beside`, made once for rows and embeddings that stay the same objects from step to step."""
        kept = next((block for block in self._blocks if block.is_of(*extra, *embeds)), None)
        if kept is not None:
            return kept.value
        rows = block_beside(extra, embeds, has_mask=self._has_mask)
        if not any(part is not None and part.requires_grad for part in rows):
            self._blocks = [*self._blocks, MadeOf(rows, *extra, *embeds)][-len(self._guards) :]
        return rows

    def second(self, uncond: PromptEmbeds) -> Extra | None:
        """For the unconditional call, where it comes after the conditional one."""
        latents = tuple(rows.model_input for rows in self._rows if rows.model_input is not None)
        copies = len(latents)
        return Extra((uncond,) * copies, (0,) * copies, latents) if copies else None

    def _scaled(self, rows: GuardRows, steps: Steps) -> GuardRows:
        """With latents of its own, if it has some, as the denoiser gets them."""
        solver, second = self._solver, rows.second
        if second is None or solver is None:
            return rows
        model_input, evaluation = steps.facts["model_input"], steps.facts["evaluation"]
        scaled = solver.scaled(second.latents, evaluation).to(model_input)
        expected = None if self._latents is None else solver.scaled(self._latents, evaluation)
        return rows._replace(model_input=followed(model_input, expected, second, scaled))

    def change_layout(self, layout: Layout) -> None:
        """Guidance has ended in the middle of the run."""
        self._layout = layout

    def blocks(self, values: Tensor, *, is_second: bool) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """(the pipeline's own rows, the extra rows of each guard) of values (R + extra, ...) from the denoiser."""
        batch, has_both = self._layout.batch_size, self._layout.has_both
        counts = [
            (rows.model_input is not None) if is_second else rows.copies + (rows.model_input is not None and has_both)
            for rows in self._rows
        ]
        return split_blocks(values, self._layout.num_rows, batch, counts)

    def conditional(self, position: int, block: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The rows of a guard that are not the unconditional one at latents of its own."""
        return block[: self._rows[position].copies]

    def add_latents(self, steps: Steps, x_t: Tensor) -> None:
        """Tell guards the latents of their own, beside `x_t` in the sampler's frame."""
        for position, rows in enumerate(self._rows):
            if rows.second is not None:
                latents = followed(x_t, self._latents, rows.second, rows.second.latents)
                steps.update_of(position, extra_latents=latents)

    def keep(self, latents: Tensor) -> None:
        """Remember what a step returned, where a second stream has to follow it."""
        self._latents = latents if self._solver is not None else None


def rows_of_run(guard: Guard[Any], run: Run) -> PromptEmbeds | None:
    """Extra rows that a guard asks for once a run: prompt (E, B, L, D), pooled (E, B, P) and mask (E, B, L), the latter two
    None for "as the image's own".
    """
    if not guard.uses("extra_prompts"):
        return None
    asked = call_guard(guard, "extra_prompts", guard.extra_prompts, run)
    if asked is None or len(asked) == 0:
        return None
    embeds = PromptEmbeds(asked) if isinstance(asked, Tensor) else run.encode(asked)
    if embeds.prompt.ndim == 3:
        embeds = embeds.map(lambda part: part[:, None].expand(-1, run.batch_size, *part.shape[1:]))
    return _checked(guard, embeds, run.batch_size)


def rows_of_call(guard: Guard[Any], steps: Steps, position: int, asked: PromptEmbeds | None) -> GuardRows:
    """Extra rows of a guard in this call; `asked`: what it wanted at the start of the run."""
    embeds = asked
    if guard.uses("extra_embeds"):
        embeds = call_guard(guard, "extra_embeds", guard.extra_embeds, steps.of(position), asked)
        if embeds is not None and not isinstance(embeds, PromptEmbeds):
            raise GuardError(
                f"guard {guard.method!r} returned {type(embeds).__name__} from extra_embeds; expected PromptEmbeds."
            )
        if embeds is not None:
            embeds = _checked(guard, embeds, steps.facts["run"].batch_size) if len(embeds.prompt) else None
    if embeds is None or not guard.uses("extra_latents"):
        return GuardRows(embeds)
    step = steps.of(position)
    second = call_guard(guard, "extra_latents", guard.extra_latents, step)
    _check_second(guard, second, step)
    return GuardRows(embeds, second)


def _check_second(guard: Guard[Any], second: SecondLatents | None, step: Step) -> None:
    if second is not None and second.latents.shape != step.model_input.shape:
        raise GuardError(
            f"guard {guard.method!r} returned {tuple(second.latents.shape)} from extra_latents; expected "
            f"{tuple(step.model_input.shape)}."
        )


def _checked(guard: Guard[Any], embeds: PromptEmbeds, batch: int) -> PromptEmbeds:
    if embeds.prompt.ndim != 4 or embeds.prompt.shape[1] != batch:
        raise GuardError(
            f"guard {guard.method!r} returned extra prompts of shape {tuple(embeds.prompt.shape)}; expected (E, L, D) "
            f"or (E, {batch}, L, D)."
        )
    return embeds


def extra_of(
    rows: Sequence[GuardRows],
    cond: PromptEmbeds,
    uncond: PromptEmbeds | None,
    beside: Callable[[PromptEmbeds, PromptEmbeds], PromptEmbeds],
) -> Extra | None:
    """The extra rows of a call whose own rows are `cond` and `uncond` (B, ...); `uncond` None where it has none of these.

    `beside`: as `block_beside`.
    """
    blocks: list[PromptEmbeds] = []
    halves: list[int] = []
    latents: list[Tensor | None] = []
    for each in rows:
        if each.embeds is not None:
            blocks.append(beside(each.embeds, cond))
            halves += [0] * each.copies
            latents += [each.model_input] * each.copies
        if each.model_input is not None and uncond is not None:
            blocks.append(uncond)
            halves.append(1)
            latents.append(each.model_input)
    return Extra(tuple(blocks), tuple(halves), tuple(latents)) if blocks else None


def block_beside(extra: PromptEmbeds, embeds: PromptEmbeds, *, has_mask: bool = False) -> PromptEmbeds:
    """Extra rows (E, B, ...) as rows (E*B, ...) of a call beside the image's `embeds` (B, ...); parts left out are the image's.

    Under a mask they may be longer or shorter than the image's; `has_mask`: whether the denoiser takes one, given or left out.
    """
    count, _, length, width = extra.prompt.shape
    mask, has_mask = extra.mask, has_mask or embeds.mask is not None
    if length != embeds.prompt.shape[1] and mask is None:
        mask = extra.prompt.new_ones(extra.prompt.shape[:3])
    if width != embeds.prompt.shape[2] or (length != embeds.prompt.shape[1] and not has_mask):
        raise GuardError(
            f"extra prompts {tuple(extra.prompt.shape[2:])} do not fit beside prompts {tuple(embeds.prompt.shape[1:])}; "
            "call the pipeline with its default max_sequence_length, or with a longer prompt where each has a length of its own."
        )

    def rows(part: Tensor | None, mine: Tensor | None) -> Tensor | None:
        if mine is None:
            return None
        return mine.repeat(count, *(1,) * (mine.ndim - 1)) if part is None else part.flatten(0, 1).to(mine)

    masks = rows(mask, embeds.mask)
    if embeds.mask is None and mask is not None and has_mask:
        masks = mask.flatten(0, 1)
    return PromptEmbeds(extra.prompt.flatten(0, 1).to(embeds.prompt), rows(extra.pooled, embeds.pooled), masks)


def split_blocks(
    values: Tensor, own_rows: int, batch: int, counts: Sequence[int]
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """(the pipeline's own rows, the extra rows of each guard) of values (R + extra, ...) from the denoiser."""
    at = own_rows
    image_rows = values if values.shape[0] == at else values[:at]
    blocks = []
    for count in counts:
        blocks.append(tuple(values[at + i * batch : at + (i + 1) * batch] for i in range(count)))
        at += count * batch
    if at != values.shape[0]:
        raise GuardError(f"the denoiser returned {values.shape[0]} rows where {at} were expected.")
    return image_rows, blocks


def followed(now: Tensor, expected: Tensor | None, second: SecondLatents, scaled: Tensor) -> Tensor:
    """Latents (B, ...) of a second stream: `scaled` in its rows, those of the image (`now`) in the others.

    A pipeline that overwrites latents between two steps (inpainting) does so in both streams: where `now` is not what was
    `expected`, it holds for the second one, too.
    """
    if expected is None:
        raise GuardError("a guard has latents of its own before the first step; they begin with the image's.")
    is_new = now != expected.to(now)
    refuse(
        is_new.flatten(1).all(dim=1) & second.rows,
        lambda: GuardError(
            "all latents were replaced between two steps (by a callback?), where a second latent cannot follow; leave them alone."
        ),
    )
    return torch.where(second.rows.view(-1, *(1,) * (now.ndim - 1)) & ~is_new, scaled.to(now), now)
