"""Asking a guard: every call into guard code, and the checks on what it answers. No pipeline, no scheduler.

Imports guard, errors. Used by `session`; a guard's exception or misfit answer leaves here as a GuardError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guard import Embeds, Guard, Run, Step

T = TypeVar("T")
#: texts -> embeddings (E, L, D), by the pipeline's own text encoder
Encode = Callable[[list[str]], Tensor]


class Rows(NamedTuple):
    """The same, split: cond (B, L, D), uncond (B, L, D) or None, pooled (B, P) or None. Order as in
    `Embeds`.
    """

    cond: Tensor
    uncond: Tensor | None
    pooled: Tensor | None

    def same_as(self, other: Rows) -> bool:
        """Whether every part is the very same object."""
        return all(mine is theirs for mine, theirs in zip(self, other, strict=True))


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


def condition(point: str, guards: Sequence[Guard[Any]], states: Sequence[Any], step: Step, rows: Rows) -> Rows:
    """Pass conditioning rows through one point ("on_prompt", "on_step_start") of every guard that has it, in
    order.
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
        if parts.negative is not None and rows.uncond is None:
            parts = parts._replace(negative=None)  # guidance is off: there are no unconditional rows
        if parts.pooled is not None and rows.pooled is None:
            raise GuardError(f"guard {guard.method!r} returned pooled embeddings, which this family has not.")
        cond, uncond, pooled = (
            old if new is None or old is None else checked(guard, point, new, old)
            for new, old in zip(parts, rows, strict=True)
        )
        assert cond is not None
        rows = Rows(cond, uncond, pooled)
    return rows


def checked(guard: Guard[Any], point: str, new: object, old: Tensor) -> Tensor:
    """`old` itself if untouched, else `new` with old's dtype and device; a wrong type or shape raises."""
    if new is old:  # the very object: the pipeline keeps its own tensor
        return old
    if not isinstance(new, Tensor) or new.shape != old.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise GuardError(f"guard {guard.method!r} returned {got} from {point}; expected a tensor {tuple(old.shape)}.")
    return new.to(device=old.device, dtype=old.dtype)


def extra_rows(guard: Guard[Any], run: Run, encode: Encode) -> Tensor | None:
    """Extra rows of a guard as (E, B, L, D)."""
    if not guard.uses("extra_prompts"):
        return None
    asked = ask(guard, "extra_prompts", guard.extra_prompts, run)
    if asked is None or len(asked) == 0:
        return None
    embeds = asked if isinstance(asked, Tensor) else encode(list(asked))
    if embeds.ndim == 3:
        embeds = embeds[:, None].expand(-1, run.batch_size, -1, -1)
    if embeds.ndim != 4 or embeds.shape[1] != run.batch_size:
        raise GuardError(
            f"guard {guard.method!r} returned extra prompts of shape {tuple(embeds.shape)}; expected (E, L, "
            f"D) or "
            f"(E, {run.batch_size}, L, D)."
        )
    return embeds
