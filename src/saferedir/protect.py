"""protect(pipe, guards): policy around `attach`. Redirect, verify and retry, or block; it fails closed.

Knows no concrete guard and no judge. A verifier is any function of PIL images. What each policy promises, and against
whom: docs/security.md.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch

from saferedir.attach import Attached, attach
from saferedir.decisions import Decision
from saferedir.errors import BlockedError, GuardConfigError, GuardError
from saferedir.guards.base import Guard
from saferedir.guards.image_verifier import ImageVerifier
from saferedir.policy.call_arguments import by_name, generators_of, with_signature
from saferedir.policy.conflicts import named_conflicts
from saferedir.policy.input_images import with_input_images
from saferedir.policy.loading import allow_listed, distinct, guards_of, require_verifiers
from saferedir.policy.outputs import Result, blocked_error, copied, images_of, same
from saferedir.policy.rules import ConceptRule, Policy, strictest
from saferedir.policy.verifiers import (
    ON_BLOCK,
    POLICIES,
    InputVerifier,
    NamedVerifiers,
    Verifier,
    checked_policy,
    flags_of,
    input_verifiers,
    parts_by_name,
    refuse_judge,
    refuse_unverified,
)
from saferedir.policy.weak_verdicts import weak_verdict_texts

__all__ = [
    "ON_BLOCK",
    "POLICIES",
    "GuardedPipeline",
    "InputVerifier",
    "NamedVerifiers",
    "Verifier",
    "allow_listed",
    "checked_policy",
    "distinct",
    "guards_of",
    "input_verifiers",
    "prompt_decisions",
    "protect",
    "refuse_judge",
    "require_verifiers",
]


def protect(
    pipe: Any,
    guards: Guard[Any] | Sequence[Guard[Any]] | None = None,
    *,
    policy: Policy | str | Path | None = None,
    profile: str | None = None,
    on_unsafe: str = "redirect",
    verify: Verifier | Mapping[str, Verifier] | Guard[Any] | None = None,
    retries: int = 2,
    on_block: str = "blank",
    image_verifiers: bool = True,
    check_inputs: bool | Verifier = False,
    force: bool = False,
    load: Callable[[str], Guard[Any]] | None = None,
) -> GuardedPipeline:
    """Attach guards and put a policy around the pipeline; call the result as you would call the pipeline.

    An image is unsafe where a guard's decision is `unresolved` (by its own classifier of the final x0; of our methods saferedir
    has one), where a guard's image verifier sees the concept (its folder may bring one along), or where `verify` says so.
    A blocked image leaves as a blank of the same kind. What diffusers' own safety checker flags is blocked under every policy.

    Args:
        pipe: a diffusers pipeline of a supported family (docs/pipelines.md).
        guards: one guard, or several that act in this order; left out where a `policy` names them.
        policy: concepts with their guards and actions (`saferedir.Policy`, or the path of its TOML or JSON file), in place of
            `guards` and `on_unsafe`; decisions then have the concept's category and grade.
        profile: one of the policy's profiles, which is stricter.
        on_unsafe: what happens with an unsafe image, for all guards. "redirect" steers, and returns what came out. "verify"
            steers, checks every image, generates unsafe ones again from the same noise more strongly, and blocks those that stay
            unsafe, at once where every guard acted from step 0 on as strongly as it can (an anchor of the policy's): another try
            would be the same image. "block" blocks an image at once on which a guard acted, which is unsafe, or of which a
            guard's classifier cannot tell and nothing else looks for its concept.
        verify: a function of N finished PIL images that gives N bools, true where the concept is there (of a judge:
            `judge.verifier(rule)`), or several by the name of what each looks for; or one of `guards`; default: the guards' own
            decisions.
        retries: how often an unsafe image is generated again under "verify", >= 0, at most.
        image_verifiers: whether the guards' image verifiers look at the finished images; False to measure a guard without.
        check_inputs: whether images that a call is given (image-to-image, inpainting, editing, image prompts) are checked
            before anything is generated: True for the guards' image verifiers and `verify`, or a function like `verify` for
            these alone.
        on_block: "blank", or "raise" for a BlockedError that holds the decisions and the images that may be shown.
        force: also accept a guard that was trained for another architecture.
        load: gives the guard of a name that a policy has, so that several policies share weights; default: it is loaded anew.

    Returns:
        The protected pipeline; its output is the pipeline's own, with `decisions`, `blocked` and `blocked_by` (for each image
        the concepts of the guards and the names of the verifiers that blocked it).

    Raises:
        GuardConfigError: an unknown policy, "verify" with neither a verifier nor a guard that can call an image unresolved, or
            `check_inputs=True` with nothing to look with.
        BlockedError: in a call, of an input image that shows the concept, whatever `on_block` says.
        GuardError: as of `attach`, whose other errors it raises, too. A call under "verify" without a verifier raises it where a
            guard's own classifier is weak by the guard's record for that run: at few steps, or at a guidance scale for which
            nobody calibrated it.

    Example:
        >>> import saferedir as sr
        >>> pipe = sr.load_pipeline("pictoworld")
        >>> safe = sr.protect(pipe, sr.Guard.from_pretrained("pictoworld/star"), on_unsafe="block")
        >>> output = safe(["a red star", "a blue circle"], num_inference_steps=4)
        >>> output.blocked
        [True, False]
        >>> safe.detach()
    """
    rules: tuple[ConceptRule, ...] = ()
    if policy is not None:
        if guards is not None or on_unsafe != "redirect":
            raise GuardConfigError("a policy names the guards and what they do; leave out guards and on_unsafe.")
        chosen, rules = guards_of(policy, profile, force=force, load=load)
        on_unsafe = strictest("redirect", *(rule.action for rule in rules))
        require_verifiers(chosen, rules, verify, image_verifiers=image_verifiers)
        for conflict in named_conflicts(chosen, rules):
            warnings.warn(conflict.sentence, stacklevel=2)
        acting = tuple(guard for guard, rule in zip(chosen, rules, strict=True) if rule.action != "log")
        of_rules, chosen = chosen, distinct(chosen)
    elif profile is not None or guards is None:
        raise GuardConfigError("give guards, or a policy (saferedir.Policy); a profile is one of a policy's.")
    else:
        of_rules = acting = chosen = (guards,) if isinstance(guards, Guard) else tuple(guards)
    verifier, of_guards = checked_policy(chosen, on_unsafe, verify, retries, on_block, image_verifiers)
    names = [guard.name or guard.config.concept for guard in of_rules]
    asked = rules or [ConceptRule(concept=name, guard=name, action=on_unsafe) for name in names]
    for text in weak_verdict_texts(of_rules, asked, verify, image_verifiers=image_verifiers):
        warnings.warn(text, stacklevel=2)
    of_inputs = input_verifiers(distinct(acting), check_inputs, verifier)
    attached = attach(pipe, chosen, force=force)
    return GuardedPipeline(pipe, attached, on_unsafe, verifier, retries, on_block, of_guards, of_inputs, rules)


def prompt_decisions(pipe: Any, guard: Guard[Any], prompts: Sequence[str]) -> list[Decision]:
    """What a guard decides on prompts in one step of the pipeline, which has nothing attached; one decision each."""
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    guard = (
        guard.with_anchors({}) if guard.anchor_prompts else guard
    )  # they change no score, and may be what is asked about
    with attach(pipe, guard) as attached, torch.no_grad():
        pipe(prompt=list(prompts), generator=generators, num_inference_steps=1, output_type="latent")
        return attached.decisions


_MISSING = object()
_WHY = {"verify": "it was still found unsafe", "block": "a guard acted on it, or it was found unsafe"}


class GuardedPipeline:
    """A pipeline under a policy; its output is the pipeline's own, with `decisions`, `blocked` and `blocked_by`.

    `blocked` has one bool an image, `blocked_by` the names of those that blocked it: concepts of guards, and of verifiers.

    `protect` makes it. Threads take turns. Everything else (`scheduler`, `unet`, `set_progress_bar_config`, …) is the
    pipeline's. Calling the pipeline itself stays guarded by the seam, but without a policy. Its `__call__` has the signature of
    the pipeline's.

    Example:
        >>> import saferedir as sr
        >>> pipe = sr.load_pipeline("pictoworld")
        >>> with sr.protect(pipe, sr.Guard.from_pretrained("pictoworld/star"), on_unsafe="block") as safe:
        ...     output = safe("a blue circle", num_inference_steps=4)
        >>> output.blocked, output.decisions[0].outcome
        ([False], 'untouched')
    """

    #: `attach` and `detach` know a protected pipeline by this
    is_protected = True

    _pipe: Any
    _attached: Attached
    _on_unsafe: str
    _verifier: Verifier | None
    _retries: int
    _on_block: str
    _image_verifiers: tuple[ImageVerifier, ...]
    _input_verifiers: tuple[InputVerifier, ...]
    _rules: tuple[ConceptRule, ...]
    _lock: threading.RLock
    _is_running: bool
    _decisions: list[Decision]

    def __new__(cls, pipe: Any, *settings: Any, **more: Any) -> Self:
        made: Self = object.__new__(with_signature(cls, type(pipe)))
        return made

    def __init__(
        self,
        pipe: Any,
        attached: Attached,
        on_unsafe: str,
        verifier: Verifier | None,
        retries: int,
        on_block: str = "blank",
        image_verifiers: tuple[ImageVerifier, ...] = (),
        input_verifiers: tuple[InputVerifier, ...] = (),
        rules: tuple[ConceptRule, ...] = (),
    ) -> None:
        self.__dict__.update(  # not by assignment: that goes to the pipeline
            _pipe=pipe, _attached=attached, _on_unsafe=on_unsafe, _verifier=verifier, _retries=retries, _on_block=on_block,
            _image_verifiers=image_verifiers, _input_verifiers=input_verifiers, _rules=rules,
            _lock=threading.RLock(), _is_running=False, _decisions=[],
        )  # fmt: skip

    # --- the call
    # ------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline with its own arguments; no image leaves but under the policy."""
        with self._lock:
            if self._is_running:
                raise GuardError("a protected pipeline was called from within its own run; wait until that has ended.")
            self._is_running, self._decisions = True, []
            try:
                output, self._decisions = self._under_policy(copied(by_name(self._pipe, args, kwargs)))
            finally:
                self._is_running = False
            if self._on_block == "raise" and any(output.blocked):
                raise blocked_error(output)
            return output

    def _with_checked_inputs(self, call: dict[str, Any]) -> dict[str, Any]:
        """The call, its images those that were checked; BlockedError where one of them shows what is guarded against."""
        if not self._input_verifiers:
            return call
        are_latents_tested = any(guard.latents_test != "off" for guard in self.guards)
        call, given = with_input_images(call, are_latents_tested=are_latents_tested)
        flagged_by: list[tuple[str, str, int]] = []
        for guard, concept, verifier in self._input_verifiers if given else ():
            flags = flags_of(verifier, [item.image for item in given])
            flagged_by += [(guard, concept, index) for index, flag in enumerate(flags) if flag]
        if flagged_by:
            flagged = [given[index] for index in sorted({index for _, _, index in flagged_by})]
            places = ", ".join(f"{item.argument}[{item.number}]" for item in flagged)
            message = f"{len(flagged)} of {len(given)} input images show what is guarded against: {places}."
            self._decisions = [
                Decision(guard=guard, concept=concept, image=given[index].number, action="blocked", message=message)
                for guard, concept, index in flagged_by
            ]
            raise BlockedError(f"Nothing was generated: {message}", self._decisions)
        return call

    def _under_policy(self, call: dict[str, Any]) -> tuple[Any, list[Decision]]:
        call = self._with_checked_inputs(call)
        looks = any(self._image_verifiers_of(action) for action in ("verify", "block"))
        if (self._verifier is not None or looks) and call.get("output_type") == "latent":
            raise GuardError(
                'output_type="latent" leaves the verifier nothing to read; ask for "pil", "np" or "pt", or protect '
                "with verify=None and image_verifiers=False."
            )
        generators = generators_of(call)
        before = [generator.get_state() for generator in generators]
        result = self._run(call, ())
        blocked = self._unsafe(result, range(result.count), "block")
        verified = self._unsafe(result, range(result.count), "verify")
        blocked = {row: tuple(dict.fromkeys((*by, *verified.get(row, ())))) for row, by in blocked.items()}
        unsafe = {row: by for row, by in verified.items() if row not in blocked}
        after = [generator.get_state() for generator in generators]
        try:
            for attempt in range(1, self._retries + 1 if unsafe else 1):
                if all(self._would_repeat(result, row) for row in unsafe):
                    break
                for generator, state in zip(generators, before, strict=True):
                    generator.set_state(state)
                levels = tuple(attempt if row in unsafe else 0 for row in range(result.count))
                result.take(self._run(call, levels), tuple(unsafe), attempts=attempt + 1)
                blocked |= self._unsafe(result, unsafe, "block")
                verified = self._unsafe(result, unsafe, "verify")
                unsafe = {row: by for row, by in verified.items() if row not in blocked}
                if not unsafe:
                    break
        finally:
            for generator, state in zip(generators, after, strict=True):
                generator.set_state(state)
        reasons = dict.fromkeys(sorted(blocked), _WHY["block"]) | dict.fromkeys(unsafe, _WHY["verify"])
        return result.finished(reasons, {**blocked, **unsafe})

    def _would_repeat(self, result: Result, row: int) -> bool:
        """Whether another try of an image would be the last one over again, for every guard that acts in the end."""
        of_guard: dict[int, bool] = {}
        for number, decision in enumerate(result.decisions):
            guard, action = self._deciding[number // result.count], self._actions[number // result.count]
            if decision.image == row and action != "log":
                of_guard[id(guard)] = of_guard.get(id(guard), False) or guard.would_repeat(decision)
        return bool(of_guard) and all(of_guard.values())

    def _run(self, call: dict[str, Any], levels: tuple[int, ...]) -> Result:
        """One run of the pipeline, of which every step was guarded, or a GuardError."""
        attached = self._attached
        disabled = [guard.method for guard in attached.guards if not guard.enabled]
        if disabled:
            raise GuardError(f"guard {disabled[0]!r} is disabled, so nothing is generated; set its `enabled` to True.")
        if not attached.is_attached:
            raise GuardError(
                "the guards are no longer on this pipeline's modules (detached, or a module was replaced), so nothing is "
                "generated; protect it again."
            )
        runs = attached.runs
        try:
            attached.retry_level = levels
            if self._rules:
                allow_listed(self._deciding, self._rules, call)
            output = self._call_pipeline(self._with_watched_callbacks(copied(call)))
        finally:
            attached.retry_level = ()
            for guard in attached.guards if self._rules else ():
                guard.allowed = {}
        result = Result(output, attached.decisions)
        covered = [row for _ in self._deciding for row in range(result.count)]
        if (attached.runs, attached.is_attached) != (runs + 1, True) or covered != [d.image for d in result.decisions]:
            raise GuardError(
                "this call was not guarded from first to last step, so no image is returned; let it run to its end, "
                "and protect the pipeline again if its parts were replaced."
            )
        result.check_finite()
        result.decisions = self._graded(result.decisions, result.count)
        if self._verifier is None:
            owners = [action for action in self._actions for _ in range(result.count)]
            refuse_unverified([d for d, action in zip(result.decisions, owners, strict=True) if action == "verify"])
        return result

    def _call_pipeline(self, call: dict[str, Any]) -> Any:
        """The pipeline's output; `Target` generates parts of a run here."""
        return self._pipe(**call)

    @property
    def _actions(self) -> tuple[str, ...]:
        """What happens with an unsafe image, guard by guard."""
        return tuple(rule.action for rule in self._rules) or (self._on_unsafe,) * len(self._deciding)

    @property
    def _deciding(self) -> list[Guard[Any]]:
        """The guard of each B decisions of a run; one that decides concept by concept is there as often as it has names."""
        return [guard for guard in self._attached.guards for _ in range(max(1, len(guard.decision_names)))]

    def _image_verifiers_of(self, action: str) -> list[ImageVerifier]:
        """The image verifiers, of those that are asked, of the guards with this action."""
        asked = set(map(id, self._image_verifiers))
        of_guard: dict[int, str] = {}
        for guard, of in zip(self._deciding, self._actions, strict=True):
            of_guard[id(guard)] = strictest(of, of_guard.get(id(guard), of))
        verifiers = [guard.image_verifier for guard in self.guards if of_guard[id(guard)] == action]
        return [verifier for verifier in verifiers if verifier is not None and id(verifier) in asked]

    def _graded(self, decisions: list[Decision], count: int) -> list[Decision]:
        """The decisions with the category and the grade of their concept's rule."""
        if not self._rules:
            return decisions
        rules = [rule for rule in self._rules for _ in range(count)]
        return [decision.under(rule.category, rule.grade) for decision, rule in zip(decisions, rules, strict=True)]

    def _unsafe(self, result: Result, rows: Iterable[int], action: str) -> dict[int, tuple[str, ...]]:
        """Those of `rows` that may not be shown, for the guards with this action ("verify" or "block"), by name."""
        rows, blocks = list(rows), action == "block"
        actions = [of for of in self._actions for _ in range(result.count)]
        decisions = [d for d, of in zip(result.decisions, actions, strict=True) if of == action]
        name_of = _rule_name if self._rules else _concept
        unsafe = [(d.image, name_of(d)) for d in decisions if d.unresolved or (blocks and _acted(d))]
        image_verifiers = self._image_verifiers_of(action)
        if blocks:
            rules = [rule for rule in self._rules for _ in range(result.count)]
            graded = zip(result.decisions, rules, strict=False)
            unsafe += [(d.image, name_of(d)) for d, rule in graded if rule.blocks(d.grade)]
        if blocks and self._verifier is None:  # "verify" refuses a run of which a guard cannot tell
            asked = set(map(id, image_verifiers))
            looks = [id(guard.image_verifier) in asked for guard in self._deciding for _ in range(result.count)]
            decided = zip(result.decisions, looks, actions, strict=True)
            unsafe += [
                (d.image, name_of(d))
                for d, is_checked, of in decided
                if of == action and d.unverified and not is_checked
            ]
        verifiers: list[tuple[str, Verifier]] = [
            (verifier.config.concept, verifier.sees) for verifier in image_verifiers
        ]
        is_users = "verify" if "verify" in self._actions else "block"  # who acts on what the caller's own verifier says
        verifiers += parts_by_name(self._verifier, "verify").items() if action == is_users else []
        shown = [(row, image) for row in rows for image in images_of(result.images[row])] if verifiers else []
        for name, verifier in verifiers:
            flags = flags_of(verifier, [image for _, image in shown])
            unsafe += [(row, name) for (row, _), flag in zip(shown, flags, strict=True) if flag]
        names = {row: tuple(dict.fromkeys(name for image, name in unsafe if image == row)) for row in rows}
        return {row: by for row, by in names.items() if by}

    # --- callbacks
    # ----------------------------------------------------------------------------------------------

    def _with_watched_callbacks(self, call: dict[str, Any]) -> dict[str, Any]:
        watched = dict(call)
        for name, value in call.items():
            if name == "callback" or name.endswith("callback_on_step_end"):
                inputs = getattr(value, "tensor_inputs", None)  # diffusers' PipelineCallback says what it wants to read
                if inputs is not None:
                    watched[f"{name}_tensor_inputs"] = inputs
                watched[name] = None if value is None else self._watched(value)
            elif callable(value):
                raise GuardError(f"{name!r} is a function, which no guard can watch; leave it out.")
        return watched

    def _watched(self, callback: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
        """`callback` on copies; raises if it changed them, answered others, or touched pipeline or scheduler."""

        function = callback if inspect.isroutine(callback) else type(callback)
        name = getattr(function, "__name__", "of yours")

        def checked(*given: Any) -> dict[str, Any]:
            values, shown, around = given[-1], copied(given), self._surroundings()
            answer = callback(*shown)
            unchanged = same(given, shown) and same(self._surroundings(), around)
            if isinstance(answer, dict) and isinstance(values, dict):
                unchanged = unchanged and same(answer, {name: values.get(name, _MISSING) for name in answer})
            if not unchanged:
                raise GuardError(
                    f"a callback of a protected pipeline may read but not write, and {name} writes; return what it was given, or "
                    "call without it."
                )
            return {}

        return checked

    def _surroundings(self) -> list[Any]:
        pipe, attached = self._pipe, self._attached
        enabled = [guard.enabled for guard in attached.guards]
        return [dict(vars(pipe)), copied(dict(vars(pipe.scheduler))), attached.runs, attached.is_attached, enabled]

    # --- the handle
    # ---------------------------------------------------------------------------------------------

    @property
    def decisions(self) -> list[Decision]:
        """The decisions of the last call, guard by guard; empty if it failed."""
        return list(self._decisions)

    @property
    def guards(self) -> tuple[Guard[Any], ...]:
        """The guards, in the order they act."""
        return self._attached.guards

    def detach(self) -> None:
        """Take the guards off; this object then refuses to generate, the pipeline itself is as it was found."""
        self._attached.detach()

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline, and return this guarded one."""
        self._pipe.to(*args, **kwargs)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attached.__exit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        if name == "_pipe" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self._pipe, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self._pipe, name, value)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise GuardError("a protected pipeline cannot be copied or pickled; copy the pipeline and protect the copy.")

    def __repr__(self) -> str:
        names = ", ".join(f"{guard.method}: {guard.config.concept}" for guard in self.guards)
        state = "" if self._attached.is_attached else ", detached"
        kind = type(self._pipe).__name__
        return (
            f"GuardedPipeline({kind}, guards=[{names}], on_unsafe={self._on_unsafe!r}, retries={self._retries}{state})"
        )


def _concept(decision: Decision) -> str:
    return decision.concept


def _rule_name(decision: Decision) -> str:
    """The name of a decision's concept in the policy, which its guard was given."""
    return decision.name or decision.concept


def _acted(decision: Decision) -> bool:
    """Whether a guard acted because of what it scored; in a retry it may also act because it was asked to."""
    if decision.attempts == 1 or not decision.thresholds:
        return decision.fired
    scores = {"prompt": None if decision.allowed else decision.prompt_score, "image": decision.image_score}
    reached = [s is not None and s >= decision.thresholds.get(kind, s) for kind, s in scores.items()]
    return decision.fired and any(reached)
