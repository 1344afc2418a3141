"""Caches: features that a denoiser keeps from one call to the next, and what a guarded run does about each kind.

`CACHES` is the one table of them. A run begins with empty caches. From the first edit of a guard on (of the conditioning,
a prediction, skip features or latents) they are emptied before every call of that run, which is then computed in full:
features of the old prompt, or of the path that the edit left, would answer for the new one. What cannot be emptied, or would
mix rows, is refused. What was measured with each: docs/pipelines.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from saferedir.errors import GuardError
from saferedir.guards.base import Guard
from saferedir.pipelines.families import unwrapped
from saferedir.pipelines.families.facts import Part

#: points at which a guard adds rows of its own to the denoiser's calls
ROW_POINTS = ("extra_prompts", "extra_embeds", "extra_latents")


@dataclass(frozen=True, kw_only=True)
class CacheKind:
    """One kind of cache.

    Attributes:
        name: as its users know it.
        hooks: names under which diffusers' hook registry has it.
        has_contexts: whether it keeps the two calls of sequential guidance apart, where the pipeline names them.
        halves_rows: whether it takes a call's first half of rows for the unconditional and its second for the conditional ones.
        refusal: why no guard works beside it; "" where one does.
    """

    name: str
    hooks: tuple[str, ...] = ()
    has_contexts: bool = True
    halves_rows: bool = False
    refusal: str = ""


DEEPCACHE = CacheKind(name="DeepCache", has_contexts=False)
CACHES = (
    CacheKind(name="FirstBlockCache", hooks=("fbc_leader_block_hook", "fbc_block_hook")),
    CacheKind(name="TaylorSeerCache", hooks=("taylorseer_cache",)),
    CacheKind(name="MagCache", hooks=("mag_cache_leader_block_hook", "mag_cache_block_hook")),
    CacheKind(
        name="SeaCache",
        hooks=("sea_cache_root", "sea_cache_leader_block", "sea_cache_block", "sea_cache_post_norm"),
    ),
    CacheKind(name="PyramidAttentionBroadcast", hooks=("pyramid_attention_broadcast",), has_contexts=False),
    CacheKind(
        name="FasterCache",
        hooks=("faster_cache_denoiser", "faster_cache_block"),
        has_contexts=False,
        halves_rows=True,
    ),
    CacheKind(
        name="TextKVCache",
        hooks=("text_kv_cache_transformer", "text_kv_cache_block"),
        refusal="it knows a prompt by its place in memory, where a guard may have put another one",
    ),
    DEEPCACHE,
)
#: attributes by which caches of other projects mark a denoiser, and what they are
MARKS = {"_is_cached": "a cache of para-attn or cache-dit", "enable_teacache": "TeaCache"}
_BY_HOOK = {name: kind for kind in CACHES for name in kind.hooks}


class Held(NamedTuple):
    """One stateful hook of diffusers, or (`module` None) one helper of DeepCache."""

    kind: CacheKind
    hook: Any
    module: nn.Module | None

    def clear(self) -> None:
        """Forget all features; the name of the call in progress, which diffusers keeps beside them, stays."""
        if self.module is None:
            self.hook.cached_output, self.hook.start_timestep = {}, None
            return
        contexts = [(states, context_of(states)) for states in states_of(self.hook)]
        self.hook.reset_state(self.module)
        for states, context in contexts:
            states.set_context(context)
        if getattr(self.hook, "is_guidance_distilled", False) and hasattr(self.hook, "block_skip_range"):
            # FasterCache without guidance skips its first call, too, and has nothing to answer with
            self.hook.state.iteration = self.hook.block_skip_range


class Caches:
    """Those on the denoisers, and what reads beside them, of one pipeline, by attribute; empty until a run begins."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._marks: tuple[object, ...] = ()
        self._held: dict[int, list[Held]] = {}
        self._first: dict[int, object] = {}
        self._is_off = False
        self._find()

    def _find(self) -> None:
        self._marks = tuple(map(marks_of, self._modules.values()))
        self._held = {id(unwrapped(module)): list(held_by(module, name)) for name, module in self._modules.items()}

    @property
    def are_there(self) -> bool:
        """Whether there is any."""
        return any(self._held.values())

    def _all(self) -> list[Held]:
        return [held for each in self._held.values() for held in each]

    def clear(self) -> None:
        """Forget the features of earlier calls: a run begins, or has broken off."""
        self._is_off = False
        for held in self._all():
            held.clear()

    def check(self, guards: Sequence[Guard[Any]]) -> None:
        """Raise GuardError where a cache cannot serve these guards."""
        adding = [guard.method for guard in guards if any(guard.uses(point) for point in ROW_POINTS)]
        for held in self._all():
            kind = held.kind
            if kind.halves_rows and adding:
                raise GuardError(
                    f"guard {adding[0]!r} adds rows to the denoiser's calls, which {kind.name} would take for rows of guidance; "
                    "disable it, or use another cache."
                )

    def check_layout(self, parts: tuple[Part, ...]) -> None:
        """Raise GuardError where a cache would take rows of a call, in blocks of `parts`, for what they are not."""
        for held in self._all():
            if not held.kind.halves_rows or getattr(held.hook, "is_guidance_distilled", True):
                continue
            if parts != ("uncond", "cond"):
                raise GuardError(
                    f"{held.kind.name} expects unconditional and conditional rows in one call, in this order, which this run "
                    "does not have, so it would mix images; disable it, or set is_guidance_distilled=True where there is no "
                    "guidance."
                )

    def before(self, module: nn.Module, position: str, *, is_edited: bool) -> None:
        """Before a call of `module`: from the first edit of a guard on, every call of the run is computed in full.

        `position`: "first", "second" (the unconditional one, where it has a call of its own) or "auxiliary". `is_edited`: whether
        a guard edits this call's conditioning, or has edited anything in an earlier evaluation.
        """
        if tuple(map(marks_of, self._modules.values())) != self._marks:  # a cache came or went in the middle of the run
            self._find()
            self.clear()
        owner = id(unwrapped(module))
        held = self._held.get(owner)
        if not held:
            return
        if position == "first":
            self._first[owner] = context_of_call(held)
        elif position == "second":
            self._check_apart(held, self._first.get(owner))
        self._is_off |= is_edited
        if self._is_off:
            for each in held:
                each.clear()

    def _check_apart(self, held: Sequence[Held], first: object) -> None:
        for kind in (each.kind for each in held):
            if not kind.has_contexts or first is None or context_of_call(held) == first:
                raise GuardError(
                    f"{kind.name} keeps one set of features for the two calls of guidance of this pipeline, so the negative "
                    "prompt's would serve for the prompt, past the guards; disable it, or switch guidance off."
                )


def held_by(module: nn.Module, name: str) -> Iterator[Held]:
    """The caches on a module, called `name` in the sentence for one that saferedir does not know."""
    inner = unwrapped(module)
    for mark, project in MARKS.items():
        if getattr(inner, mark, False):
            raise GuardError(
                f"{project} is on the {name} of a guarded pipeline, and saferedir cannot empty it; disable it."
            )
    if (helper := deepcache_of(inner)) is not None:
        yield Held(DEEPCACHE, helper, None)
    visited: set[int] = set()
    for part in all_modules(inner):
        registry = vars(part).get("_diffusers_hook")  # what a wrapper wraps is one of the modules, too
        if registry is None or id(registry) in visited:
            continue
        visited.add(id(registry))
        for label, hook in registry.hooks.items():
            if not getattr(hook, "_is_stateful", False):
                continue
            if label not in _BY_HOOK:
                raise GuardError(
                    f"the {name} of a guarded pipeline has a hook {label!r} with a memory, which saferedir does not know; "
                    "remove it."
                )
            if (kind := _BY_HOOK[label]).refusal:
                raise GuardError(f"{kind.name} is on the {name} of a guarded pipeline, and {kind.refusal}; disable it.")
            yield Held(kind, hook, part)


def all_modules(module: nn.Module) -> list[nn.Module]:
    """What `module.modules()` gives, in the same order, without its generator in a generator for every level."""
    answers: dict[int, nn.Module] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in answers:
            answers[id(part)] = part
            waiting += reversed(part._modules.values())
    return list(answers.values())


def marks_of(module: nn.Module) -> tuple[object, ...]:
    """What changes when a cache is put on a module, or taken off; cheap to ask for."""
    inner = unwrapped(module)
    values, kind = vars(inner), type(inner)  # a module is slow to say that it has no attribute
    config = values.get("_cache_config", getattr(kind, "_cache_config", None))
    marks = [bool(values.get(mark, getattr(kind, mark, False))) for mark in MARKS]
    return (id(config), id(values.get("forward")), *marks)


def deepcache_of(module: nn.Module) -> Any:
    """The DeepCacheSDHelper that wrapped the `forward` of this UNet and of its blocks, or None."""
    for part in (module, getattr(module, "mid_block", None)):
        closure = () if part is None else getattr(vars(part).get("forward"), "__closure__", None)
        for cell in closure or ():
            if type(cell.cell_contents).__name__ == "DeepCacheSDHelper":
                return cell.cell_contents
    return None


def states_of(hook: Any) -> list[Any]:
    """The containers of states, by named call, that a hook of diffusers holds."""
    return [value for value in vars(hook).values() if hasattr(value, "set_context") and hasattr(value, "get_state")]


def context_of(states: Any) -> Any:
    """The named call that a container of states is in; None where the pipeline names none."""
    return getattr(states, "_context", getattr(states, "_current_context", None))


def context_of_call(held: Sequence[Held]) -> object:
    """Name of the call in progress, as these caches know it."""
    contexts = (context_of(states) for each in held for states in states_of(each.hook))
    return next((getattr(context, "name", context) for context in contexts if context is not None), None)
