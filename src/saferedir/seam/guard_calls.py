"""Guard calls: every call into a guard, and the checks on what it answers. No pipeline, no scheduler.

Values pass through the guards in order; what no guard touched comes back as the very object that went in. A guard's exception
or misfit answer leaves here as a GuardError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardError
from saferedir.guards.base import AttentionFeatures, Guard, Run, SkipFeatures, Step
from saferedir.guards.step import Embeds
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.denoiser_call import Layout
from saferedir.pipelines.schedules import from_x0, to_x0
from saferedir.utils.device import refuse, refuse_nonfinite
from saferedir.utils.host_copies import on_host

T = TypeVar("T")

_ALLOWED = "The policy allows this prompt, so that its prompt score decided nothing."

#: points at which a guard is asked before or during the denoiser call, and after it
EARLY_POINTS = (
    "on_prompt",
    "on_step_start",
    "extra_prompts",
    "extra_embeds",
    "extra_latents",
    "on_skip_features",
    "on_attention",
)
LATE_POINTS = ("on_prediction", "on_denoised", "on_step_end")
POINTS = (*EARLY_POINTS, *LATE_POINTS)
#: point -> (position, guard) of each guard that uses it, in order
Users = Mapping[str, Sequence[tuple[int, Guard[Any]]]]


class Steps:
    """The `Step` of every guard in one evaluation: built when it is first asked before the denoiser call, and anew after it.

    `facts`: the fields of a step that all guards share.
    """

    def __init__(self, states: Sequence[Any], **facts: Any) -> None:
        self.facts = facts
        self._states = states
        self._of_guard: list[dict[str, Any]] = [{} for _ in states]
        self._built: list[Step | None] = [None] * len(states)
        self._changed: dict[str, Any] = {}  # since the first was built

    def of(self, position: int) -> Step:
        """The step of one guard, as of now."""
        step = self._built[position]
        if step is None:
            step = Step(state=self._states[position], **{**self.facts, **self._of_guard[position]})
            self._built[position] = step
        else:
            for name, value in self._changed.items():
                object.__setattr__(step, name, value)  # of a frozen dataclass: the seam may, guards may not
        return step

    def update(self, **facts: Any) -> None:
        """Set facts that changed, or are known now, for the guards that are called from here on."""
        self.facts |= facts
        self._changed |= facts

    def update_of(self, position: int, **facts: Any) -> None:
        """Set facts for one guard only, before it is given a new step."""
        self._of_guard[position] |= facts

    def renew(self) -> None:
        """From here on guards are given new steps; those that they were given stay as they are."""
        self._built, self._changed = [None] * len(self._states), {}


def users_of(guards: Sequence[Guard[Any]]) -> Users:
    """Point -> the guards that use it; guards are asked once a run which they use."""
    return {point: [(i, guard) for i, guard in enumerate(guards) if guard.uses(point)] for point in POINTS}


def call_guard(guard: Guard[Any], point: str, method: Callable[..., T], *arguments: Any) -> T:
    """Call one method of a guard; whatever it raises becomes a GuardError naming guard and point."""
    try:
        return method(*arguments)
    except GuardError:
        raise
    except Exception as error:
        raise GuardError(
            f"guard {guard.method!r} failed in {point} ({type(error).__name__}: {error}); no image is returned."
        ) from error


def validated(guard: Guard[Any], point: str, new: object, old: Tensor) -> Tensor:
    """`old` itself if untouched, else `new` with old's dtype and device; a wrong type or shape raises."""
    if new is old:  # the very object: the pipeline keeps its own tensor
        return old
    if not isinstance(new, Tensor) or new.shape != old.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise GuardError(f"guard {guard.method!r} returned {got} from {point}; expected a tensor {tuple(old.shape)}.")
    return new.to(device=old.device, dtype=old.dtype)


# --- conditioning


def edited_conditioning(
    point: str, users: Users, steps: Steps, given: Conditioning, *, is_uncond_later: bool
) -> Conditioning:
    """`given` after one point ("on_prompt", "on_step_start") of every guard that has it.

    With `is_uncond_later` the unconditional half comes in a later call, unseen as yet; what a guard wants there is kept.
    """
    for position, guard in users[point]:
        steps.update(conditioning=given)
        answer = call_guard(guard, point, getattr(guard, point), steps.of(position))
        given = _merged(guard, point, answer, given, is_uncond_later)
    steps.update(conditioning=given)
    return given


def _merged(guard: Guard[Any], point: str, answer: object, given: Conditioning, is_uncond_later: bool) -> Conditioning:
    """`given` with what a guard answered in place of it; `given` itself where that is nothing new."""
    if answer is given or answer is given.cond.prompt:
        return given
    if isinstance(answer, Embeds):
        answer = answer.onto(given)
    elif not isinstance(answer, Conditioning):
        answer = Conditioning(PromptEmbeds(validated(guard, point, answer, given.cond.prompt)), given.uncond)
    for half in answer:
        if half is not None and not isinstance(half, PromptEmbeds):
            raise GuardError(
                f"guard {guard.method!r} returned a {type(half).__name__} as half of a Conditioning from {point}; expected "
                "PromptEmbeds."
            )
    if answer.cond.pooled is not None and given.cond.pooled is None:
        raise GuardError(f"guard {guard.method!r} returned pooled embeddings, which this family has not.")
    if answer.cond.mask is not None and given.cond.mask is None:
        raise GuardError(f"guard {guard.method!r} returned a mask of the prompt, which this family has not.")
    cond, uncond = _merged_half(guard, point, answer.cond, given.cond), given.uncond
    if uncond is not None and answer.uncond is not None:
        uncond = _merged_half(guard, point, answer.uncond, uncond)
    elif is_uncond_later:
        uncond = uncond or answer.uncond
    is_same = cond is given.cond and uncond is given.uncond
    return given if is_same else Conditioning(cond, uncond)


def _merged_half(guard: Guard[Any], point: str, new: PromptEmbeds, old: PromptEmbeds) -> PromptEmbeds:
    """`old` with the parts of `new` that are there in both; `old` itself where none is another object."""
    merged = PromptEmbeds(
        *(
            mine if theirs is None or mine is None else validated(guard, point, theirs, mine)
            for theirs, mine in zip(new, old, strict=True)
        )  # type: ignore[arg-type]
    )
    if merged.mask is not None and merged.mask is not old.mask:
        check_mask(merged.mask)
    return old if merged.is_same(old) else merged


def match_shape(wanted: PromptEmbeds, given: PromptEmbeds, *, has_set_lengths: bool = True) -> PromptEmbeds:
    """What a guard wants in a later call than the one it was asked in, as that call takes it.

    Without `has_set_lengths` that call has prompts of another length, which a guard's own replace together with their mask.
    """
    if not has_set_lengths and (len(wanted.prompt), wanted.prompt.shape[2]) == (
        len(given.prompt),
        given.prompt.shape[2],
    ):
        prompt, mask = wanted.prompt.to(given.prompt), wanted.mask
        if mask is None and given.mask is not None:
            mask = given.mask.new_ones(prompt.shape[:2])
        if mask is not None and given.mask is None and bool(on_host(mask).all()):
            mask = None
        return PromptEmbeds(prompt, given.pooled, mask)

    def part(new: Tensor | None, old: Tensor | None) -> Tensor | None:
        if new is None or old is None or new is old:
            return old
        if new.shape != old.shape:
            raise GuardError(
                f"a guard wants negative embeddings {tuple(new.shape)} where the pipeline has {tuple(old.shape)}."
            )
        return new.to(old)

    return PromptEmbeds(*map(part, wanted, given))  # type: ignore[arg-type]


def check_mask(mask: Tensor, is_nothing: Tensor | None = None) -> None:
    """Raise GuardError unless a prompt mask (R, L) holds 0 and 1 only, and a 1 in every row.

    Denoisers turn a mask into a bias on attention: of other numbers, or of zeros alone, they make something else than a
    guard reads. `is_nothing`: (R,) rows of negative prompts whose embeddings are zeros; they hide nothing, and need no token.
    """
    if mask.dtype != torch.bool:
        refuse(
            (mask != 0) & (mask != 1),
            lambda: GuardError(
                "a prompt mask holds other values than 0 and 1; pass the mask that encode_prompt returns."
            ),
        )
    has_token = (mask != 0).any(dim=1)
    refuse(
        ~(has_token if is_nothing is None else has_token | is_nothing),
        lambda: GuardError("a prompt's mask leaves no token, so no guard can read it; pass the mask of the prompt."),
    )


# --- what comes out of the denoiser, and of the scheduler


def edited_skip_features(
    guard: Guard[Any],
    step: Step,
    values: Tensor,
    image_rows: Tensor,
    extra: tuple[Tensor, ...],
    stage: int,
    layout: Layout,
) -> Tensor:
    """Skip features (R + extra, C, h, w) of one layer after "on_skip_features" of a guard.

    `image_rows` are the R rows of the pipeline itself.
    """
    cond, uncond = layout.split(image_rows)
    skip = SkipFeatures(cond, uncond, extra, stage)
    new = validated(
        guard, "on_skip_features", call_guard(guard, "on_skip_features", guard.on_skip_features, step, skip), cond
    )
    return values if new is cond else torch.cat([layout.with_cond(image_rows, new), values[image_rows.shape[0] :]])


def edited_attention(
    users: Users,
    steps: Steps,
    cond: Tensor,
    uncond: Tensor | None,
    extra: Sequence[tuple[Tensor, ...]],
    layer: int,
) -> Tensor:
    """Attention features (B, N, D) of the conditional rows in one layer, after "on_attention"; `extra`: each guard's own rows."""
    for position, guard in users["on_attention"]:
        attention = AttentionFeatures(cond, uncond, extra[position], layer)
        answer = call_guard(guard, "on_attention", guard.on_attention, steps.of(position), attention)
        cond = validated(guard, "on_attention", answer, cond)
    return cond


def edited_prediction(users: Users, steps: Steps, pred: Tensor) -> Tensor:
    """The guided prediction (B, C, h, w) after "on_prediction" and "on_denoised"; the steps know it, and its estimate."""
    facts = steps.facts
    kind, x_t, alpha, sigma = facts["run"].prediction_type, facts["x_t"].float(), facts["alpha"], facts["sigma"]

    def x0_of(rows: Tensor) -> Tensor:
        return to_x0(kind, rows.float(), x_t, alpha, sigma)

    uncond, edited = facts.get("pred_uncond"), pred
    steps.update(pred=pred, x0=x0_of(pred), x0_uncond=None if uncond is None else x0_of(uncond))
    for position, guard in users["on_prediction"]:
        answer = call_guard(guard, "on_prediction", guard.on_prediction, steps.of(position))
        new = validated(guard, "on_prediction", answer, edited)
        if new is not edited:
            edited = new
            steps.update(pred=edited, x0=x0_of(edited))
    for position, guard in users["on_denoised"]:
        x0 = facts["x0"]
        answer = call_guard(guard, "on_denoised", guard.on_denoised, steps.of(position), x0)
        new = validated(guard, "on_denoised", answer, x0)
        if new is not x0:
            meant = from_x0(kind, new, x_t, alpha, sigma).to(edited.dtype)
            edited = torch.where(changed_rows(new, x0), meant, edited)
            steps.update(pred=edited, x0=new)
    if edited is not pred:
        check_finite(edited, "the prediction edited by a guard")
    return edited


def edited_latents(users: Users, steps: Steps, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) of the next step, after "on_step_end"."""
    for position, guard in users["on_step_end"]:
        answer = call_guard(guard, "on_step_end", guard.on_step_end, steps.of(position), latents)
        latents = validated(guard, "on_step_end", answer, latents)
    return latents


def decisions_of(guard: Guard[Any], run: Run, state: Any) -> list[Decision]:
    """The B decisions of a guard at the end of a run; B for each of its names, of one that decides concept by concept."""
    decisions = call_guard(guard, "verdict", guard.verdict, run, state)
    expected = run.batch_size * max(1, len(guard.decision_names))
    if len(decisions) != expected:
        raise GuardError(
            f"guard {guard.method!r} returned {len(decisions)} decisions for {run.batch_size} images, of which {expected} "
            "were due."
        )
    if run.input_notes and guard.latents_test != "off":
        notes = dict(enumerate(run.input_notes))
        decisions = [
            replace(decision, message=f"{notes[decision.image]} {decision.message}".strip())
            if notes.get(decision.image)
            else decision
            for decision in decisions
        ]
    named = [
        replace(decision, name=guard.name) if guard.name and not decision.name else decision for decision in decisions
    ]
    return [
        replace(decision, allowed=True, message=f"{_ALLOWED} {decision.message}".strip())
        if decision.image < len(flags := guard.allowed.get(decision.name, ())) and flags[decision.image]
        else decision
        for decision in named
    ]


def changed_rows(new: Tensor, old: Tensor) -> Tensor:
    """(B, 1, ...) bool: which rows of `new` (B, ...) differ from `old` in at least one value."""
    changed = (new != old).flatten(1).any(dim=1)
    return changed.view(-1, *(1,) * (new.ndim - 1))


def check_finite(values: Tensor, what: str) -> None:
    """Raise GuardError if `values` holds NaN or infinity: a guard cannot judge such an image, so it must not be shown."""
    refuse_nonfinite(
        values,
        lambda: GuardError(
            f"{what} holds NaN or infinity, so no image is returned; check dtype, scheduler and inputs."
        ),
    )
