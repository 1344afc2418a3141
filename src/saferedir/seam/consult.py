"""Asking a guard: every call into guard code, and the checks on what it answers. No pipeline, no scheduler.

Used throughout this folder; a guard's exception or misfit answer leaves here as a GuardError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardError
from saferedir.guards.base import Embeds, Guard, Run, Step
from saferedir.pipelines.encoding import Encoded

T = TypeVar("T")


class Rows(NamedTuple):
    """The same, split: cond (B, L, D), uncond (B, L, D), pooled (B, P); of the unconditional rows uncond_pooled (B, P) and
    uncond_mask (B, L). None where there is none. Order as in `Embeds`.
    """

    cond: Tensor
    uncond: Tensor | None
    pooled: Tensor | None
    uncond_pooled: Tensor | None = None
    uncond_mask: Tensor | None = None

    def same_as(self, other: Rows) -> bool:
        """Whether every part is the very same object."""
        return all(mine is theirs for mine, theirs in zip(self, other, strict=True))


def users(guards: Sequence[Guard[Any]], *points: str) -> list[tuple[int, Guard[Any]]]:
    """(position, guard) of the guards that use at least one of these points."""
    return [(i, guard) for i, guard in enumerate(guards) if any(guard.uses(point) for point in points)]


def ask(guard: Guard[Any], point: str, method: Callable[..., T], *arguments: Any) -> T:
    """Call one method of a guard; whatever it raises becomes a GuardError naming guard and point."""
    try:
        return method(*arguments)
    except GuardError:
        raise
    except Exception as error:
        raise GuardError(
            f"guard {guard.method!r} failed in {point} ({type(error).__name__}: {error}); no image is returned."
        ) from error


def condition(
    point: str,
    guards: Sequence[Guard[Any]],
    states: Sequence[Any],
    step: Step,
    rows: Rows,
    uncond_later: bool = False,
) -> Rows:
    """Pass conditioning rows through one point ("on_prompt", "on_step_start") of every guard that has it, in order.

    With `uncond_later` the unconditional rows come in a later call, unseen as yet; what a guard wants there is kept.
    """
    for guard, state in zip(guards, states, strict=True):
        if not guard.uses(point):
            continue
        current = replace(
            step,
            state=state,
            prompt_embeds=rows.cond,
            negative_prompt_embeds=rows.uncond,
            pooled=rows.pooled,
        )
        answer = ask(guard, point, getattr(guard, point), current)
        if not isinstance(answer, Embeds):
            answer = Embeds(prompt=checked(guard, point, answer, rows.cond))
        parts = answer
        if parts.pooled is not None and rows.pooled is None:
            raise GuardError(f"guard {guard.method!r} returned pooled embeddings, which this family has not.")
        cond, *others = (
            old if new is None or old is None else checked(guard, point, new, old)
            for new, old in zip(parts, rows, strict=True)
        )
        assert cond is not None
        rows = Rows(cond, *others)
        if uncond_later and rows.uncond is None:
            rows = rows._replace(
                uncond=parts.negative, uncond_pooled=parts.negative_pooled, uncond_mask=parts.negative_mask
            )
    return rows


def fitted(wanted: Tensor | None, given: Tensor | None) -> Tensor | None:
    """What a guard wants in a later call than the one it was asked in, as that call takes it; `given` if it wants nothing."""
    if wanted is None or given is None:
        return given
    if wanted.shape != given.shape:
        raise GuardError(
            f"a guard wants negative embeddings {tuple(wanted.shape)} where the pipeline has {tuple(given.shape)}."
        )
    return wanted.to(given)


def checked(guard: Guard[Any], point: str, new: object, old: Tensor) -> Tensor:
    """`old` itself if untouched, else `new` with old's dtype and device; a wrong type or shape raises."""
    if new is old:  # the very object: the pipeline keeps its own tensor
        return old
    if not isinstance(new, Tensor) or new.shape != old.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise GuardError(f"guard {guard.method!r} returned {got} from {point}; expected a tensor {tuple(old.shape)}.")
    return new.to(device=old.device, dtype=old.dtype)


def decisions_of(guard: Guard[Any], run: Run, state: Any) -> list[Decision]:
    """The B decisions of a guard at the end of a run."""
    decisions = ask(guard, "verdict", guard.verdict, run, state)
    if len(decisions) != run.batch_size:
        raise GuardError(f"guard {guard.method!r} returned {len(decisions)} decisions for {run.batch_size} images.")
    return list(decisions)


def extra_rows(guard: Guard[Any], run: Run) -> Encoded | None:
    """Extra rows of a guard: prompt (E, B, L, D), pooled (E, B, P) and mask (E, B, L), the latter two None for "as the
    image's own".
    """
    if not guard.uses("extra_prompts"):
        return None
    asked = ask(guard, "extra_prompts", guard.extra_prompts, run)
    if asked is None or len(asked) == 0:
        return None
    found = Encoded(asked) if isinstance(asked, Tensor) else run.encode(asked)
    if found.prompt.ndim == 3:
        found = found.map(lambda part: part[:, None].expand(-1, run.batch_size, *part.shape[1:]))
    return _checked_extra(guard, found, run.batch_size)


def extra_rows_now(guard: Guard[Any], step: Step, extra: Encoded | None) -> Encoded | None:
    """Extra rows of a guard in this call, or None."""
    if not guard.uses("extra_embeds"):
        return extra
    found = ask(guard, "extra_embeds", guard.extra_embeds, step, extra)
    if found is not None and not isinstance(found, Encoded):
        raise GuardError(f"guard {guard.method!r} returned {type(found).__name__} from extra_embeds; expected Encoded.")
    return None if found is None or not len(found.prompt) else _checked_extra(guard, found, step.run.batch_size)


def _checked_extra(guard: Guard[Any], found: Encoded, batch: int) -> Encoded:
    if found.prompt.ndim != 4 or found.prompt.shape[1] != batch:
        raise GuardError(
            f"guard {guard.method!r} returned extra prompts of shape {tuple(found.prompt.shape)}; expected (E, L, D) "
            f"or (E, {batch}, L, D)."
        )
    return found


def riders(blocks: Sequence[Encoded], own: Encoded) -> Encoded:
    """Extra rows of all guards as rows of one call: (E*B, L, D) and so on; parts a guard left out are the image's `own`.

    Under a mask they may be longer or shorter than the image's; L is then the longest of all.
    """

    def rows(part: Tensor | None, mine: Tensor, count: int) -> Tensor:
        return mine.repeat(count, *(1,) * (mine.ndim - 1)) if part is None else part.flatten(0, 1).to(mine)

    columns = []
    for block in blocks:
        count, _, length, width = block.prompt.shape
        given = block.mask
        if length != own.prompt.shape[1] and given is None:
            given = block.prompt.new_ones(block.prompt.shape[:3])
        if width != own.prompt.shape[2] or (length != own.prompt.shape[1] and own.mask is None):
            raise GuardError(
                f"extra prompts {tuple(block.prompt.shape[2:])} do not fit beside prompts {tuple(own.prompt.shape[1:])}; "
                "call the pipeline with its default max_sequence_length."
            )
        pooled = None if own.pooled is None else rows(block.pooled, own.pooled, count)
        mask = None if own.mask is None else rows(given, own.mask, count)
        columns.append(Encoded(rows(block.prompt, own.prompt, count), pooled, mask))
    return columns[0].cat(*columns[1:])
