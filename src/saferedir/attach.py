"""attach(pipe, guards): guard a live pipeline. With its folder seam/, the only code that changes one.

Two torch hooks on the denoiser, `step` and `set_timesteps` of the scheduler *instance*, `progress_bar` and
`maybe_free_model_hooks` of the pipeline's: read-only, these are bit-identical to the bare pipeline. The hooks are in
seam/hooks.py, one run in seam/session.py. One
`Seam` (seam/seam.py) per denoiser serves every attachment, so attachments nest and detach in any order.

Fail closed: whatever breaks here raises inside the pipeline call, so that no image comes out of it. What never comes
through here is not visible here: latents that a callback rewrote after the last step. `protect` checks for these.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from torch import nn

from saferedir.decisions import Decision
from saferedir.errors import AlreadyAttachedError, GuardError, UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.pipelines.families import Family, family_of, unwrapped
from saferedir.pipelines.fingerprint import backbone_fingerprint, check_backbone
from saferedir.pipelines.lora import guard_adapters, remove_adapter
from saferedir.pipelines.own_adapters import fused_adapters
from saferedir.pipelines.schedules import check_scheduler
from saferedir.seam.anchors import check_anchors, encode_anchors
from saferedir.seam.feature_hooks import remove_foreign_feature_hooks, remove_marked_hooks
from saferedir.seam.hooks import owner_of_hooks, remove_foreign_wrappers
from saferedir.seam.requirements import check_requirements, warn_of_copies
from saferedir.seam.seam import Seam


def attach(pipe: Any, guards: Guard[Any] | Sequence[Guard[Any]], *, force: bool = False) -> Attached:
    """Guard a diffusers pipeline, in place, until `detach()` or the end of a `with` block.

    Nothing on the pipeline is changed if anything is wrong. A call of the pipeline that ends without one guarded step raises
    GuardError. Other weights of the architecture that a guard was trained on only warn, and so does a second copy of a guard.

    Args:
        pipe: a diffusers pipeline of a supported family (docs/pipelines.md).
        guards: one guard, or several that act in this order; guards of earlier attachments act before those of later ones.
        force: also accept a guard that was trained for another architecture.

    Returns:
        The handle: it carries the decisions of the last run, and takes the guards off again.

    Raises:
        UnsupportedPipelineError: the pipeline's family, scheduler or prediction type has no row in the tables.
        BackboneMismatchError: a guard was trained for another architecture, and `force` is false.
        AlreadyAttachedError: a guard is attached here already, or the denoiser belongs to another guarded pipeline.
        GuardError: two guards both replace guidance, or both the sampler's step; or a text encoder that a guard needs is gone;
            or a policy's anchor asks for what one of the guards keeps out, by its prompt verdict.

    Example:
        >>> import saferedir as sr
        >>> pipe = sr.load_pipeline("pictoworld")
        >>> with sr.attach(pipe, sr.Guard.from_pretrained("pictoworld/star")) as attached:
        ...     image = pipe("a red star", num_inference_steps=4).images[0]
        >>> attached.decisions[0].outcome
        'redirected'
    """
    chosen = (guards,) if isinstance(guards, Guard) else tuple(guards)
    if not chosen or not all(isinstance(guard, Guard) for guard in chosen):
        raise GuardError(f"attach needs one or more Guard objects, not {guards!r}; see Guard.from_pretrained.")
    if getattr(type(pipe), "is_protected", False):
        raise GuardError("this pipeline is protected already; detach() it, then protect it with all guards at once.")
    family = family_of(pipe)
    if getattr(pipe, family.denoiser, None) is None:
        raise UnsupportedPipelineError(f"this {type(pipe).__name__} has no {family.denoiser}; load one, then attach.")
    check_scheduler(pipe.scheduler)
    remove_foreign_hooks(pipe, family)
    seam = find_seam(pipe, family)
    check_not_shared(pipe, family, seam)
    if seam is not None and seam.pipe is not pipe:
        raise AlreadyAttachedError(
            f"this pipeline shares its {family.denoiser} with another guarded {type(seam.pipe).__name__}; "
            "detach the guards there first, or load a second copy of the weights."
        )
    present = [] if seam is None else seam.guards()
    for position, guard in enumerate(chosen):
        if any(guard is other for other in [*present, *chosen[:position]]):
            raise AlreadyAttachedError(
                f"guard {guard.method!r} is already attached to this pipeline; detach it first, or load a second one."
            )
    guiding = [guard for guard in [*present, *chosen] if guard.replaces_guidance]
    if len(guiding) > 1:
        raise GuardError(
            f"guards {guiding[0].method!r} and {guiding[1].method!r} both replace classifier-free guidance, so they cannot "
            "work on one pipeline; attach one of them, or name all concepts in one guard."
        )
    stepping = [guard for guard in [*present, *chosen] if guard.replaces_step]
    if len(stepping) > 1:
        raise GuardError(
            f"guards {stepping[0].method!r} and {stepping[1].method!r} both rewrite the sampler's step (they re-noise, or merge "
            "two latents), so they cannot work on one pipeline; attach one of them, or a safe_denoiser in default mode with "
            "renoise='none'."
        )
    check_requirements(pipe, family, chosen)
    if not force:
        _check_backbones(pipe, chosen)
    check_anchors(pipe, family, present, chosen)
    for guard in chosen:
        encode_anchors(pipe, family, guard)
    for guard in chosen:
        if (warning := guard.warning_text()) is not None:
            warnings.warn(warning, stacklevel=2)
    warn_of_copies(present, chosen, stacklevel=2)
    if seam is None:
        seam = Seam(pipe, family)
    denoiser = unwrapped(getattr(pipe, family.denoiser))
    try:
        for guard in chosen:
            if guard.enabled:
                guard.load(denoiser)
        attached = Attached(seam, chosen)
        if not force:
            seam.warn_of_adapters(chosen, is_attaching=True, stacklevel=3)
        return attached
    except BaseException:
        for guard in chosen:
            guard.unload(denoiser)
        raise


def detach(pipe: Any) -> None:
    """Remove every guard from a pipeline.

    From a deep copy of a guarded pipeline it removes the hooks that were copied with it.

    Args:
        pipe: a diffusers pipeline, guarded or not, or what `protect` returned.

    Example:
        >>> import saferedir as sr
        >>> pipe = sr.load_pipeline("pictoworld")
        >>> attached = sr.attach(pipe, sr.Guard.from_pretrained("pictoworld/star"))
        >>> sr.detach(pipe)
        >>> attached.is_attached
        False
    """
    if getattr(type(pipe), "is_protected", False):
        pipe.detach()
        return
    family = family_of(pipe)
    seam = find_seam(pipe, family)
    for attached in [] if seam is None else list(seam.attachments):
        attached.detach()
    remove_foreign_hooks(pipe, family)


class Attached:
    """Handle of a guarded pipeline: a context manager that carries the decisions of the last run.

    `attach` makes it.

    Attributes:
        guards: the guards, in the order in which they act.
        runs: number of runs that were guarded from first to last step; compare it before and after a call to be sure.
        retry_level: (B,) one level an image of the next run, or (): 0 acts as usual, n > 0 acts from step 0 on, more strongly the
            higher n is.

    Example:
        >>> import saferedir as sr
        >>> pipe = sr.load_pipeline("pictoworld")
        >>> with sr.attach(pipe, sr.Guard.from_pretrained("pictoworld/star")) as attached:
        ...     images = pipe(["a red star", "a blue circle"], num_inference_steps=4).images
        >>> [[decision.outcome for decision in decisions] for decisions in attached.by_image()]
        [['redirected'], ['untouched']]
    """

    def __init__(self, seam: Seam, guards: tuple[Guard[Any], ...]) -> None:
        self.guards = guards
        self._seam = seam
        #: number of runs guarded from first to last step; compare before and after a call to be sure it was
        self.runs = 0
        #: how strongly to act, one level an image of the next run: 0 as always, n from step 0 on and stronger with n
        self.retry_level: tuple[int, ...] = ()
        self._decisions: list[Decision] = []
        seam.add(self)

    @property
    def insist(self) -> tuple[int, ...]:
        """Old name of `retry_level`."""
        warnings.warn("Attached.insist is an old name; use Attached.retry_level.", DeprecationWarning, stacklevel=2)
        return self.retry_level

    @insist.setter
    def insist(self, levels: tuple[int, ...]) -> None:
        warnings.warn("Attached.insist is an old name; use Attached.retry_level.", DeprecationWarning, stacklevel=2)
        self.retry_level = levels

    @property
    def decisions(self) -> list[Decision]:
        """One Decision per image and guard of the last run, guard by guard; empty until that run has finished."""
        return list(self._decisions)

    def by_image(self) -> list[list[Decision]]:
        """The decisions of the last run by image.

        Returns:
            One list an image: entry i holds the decisions of all guards on image i.
        """
        count = max((decision.image + 1 for decision in self._decisions), default=0)
        return [[decision for decision in self._decisions if decision.image == row] for row in range(count)]

    def __repr__(self) -> str:
        state = f"{self.runs} runs guarded" if self.is_attached else "detached"
        return f"Attached({', '.join(map(repr, self.guards))}; {state})"

    @property
    def is_attached(self) -> bool:
        """Whether the guards are on the pipeline now, and on the very modules it holds."""
        return self in self._seam.attachments and self._seam.is_in_place

    def detach(self) -> None:
        """Take the guards off, leaving the pipeline exactly as it was found. Doing it twice is harmless.

        In the middle of a run (from a callback, or another thread) that run fails rather than go on unguarded.
        """
        self._seam.remove(self)

    def clear(self) -> None:
        """Forget the decisions of an earlier run. Called by the seam when a run begins."""
        self._decisions = []

    def record(self, decisions: list[Decision]) -> None:
        """Keep the decisions of a finished run. Called by the seam."""
        self._decisions = decisions
        self.runs += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seam.remove(self, aborted=kind is not None)


def _check_backbones(pipe: Any, guards: Sequence[Guard[Any]]) -> None:
    bound = [guard for guard in guards if guard.config.backbone is not None]
    actual = backbone_fingerprint(pipe) if bound else {}
    fused = [f"fused LoRA {name!r}" for name in sorted(fused_adapters(pipe))]
    for guard in bound:
        edited = check_backbone(guard.config.backbone or {}, actual, guard.method)
        if edited:
            warnings.warn(
                f"guard {guard.method!r} meets the architecture it was trained for with other weights "
                f"({'; '.join([*edited, *fused])}); recalibrate its thresholds on this checkpoint "
                "(`saferedir guards calibrate`).",
                stacklevel=3,
            )


def find_seam(pipe: Any, family: Family) -> Seam | None:
    """The seam whose hooks are on this pipeline's own denoiser, if there is one."""
    held = getattr(pipe, family.denoiser)
    for module in (held, unwrapped(held)):
        owner = owner_of_hooks(module)
        if isinstance(owner, Seam) and not _is_foreign(owner, module):
            return owner
    return None


def check_not_shared(pipe: Any, family: Family, seam: Seam | None) -> None:
    """Refuse a pipeline of which a module (a ControlNet, a second denoiser) belongs to another guarded pipeline."""
    for name in (*family.more_denoisers, *family.conditioned_modules):
        module = getattr(pipe, name, None)
        if module is None:
            continue
        owner = owner_of_hooks(module)
        if isinstance(owner, Seam) and owner is not seam and not _is_foreign(owner, module):
            raise AlreadyAttachedError(
                f"the {name} of this pipeline is shared with a guarded {type(owner.pipe).__name__}; detach the guards there "
                "first, or load a second copy of it."
            )


def remove_foreign_hooks(pipe: Any, family: Family) -> None:
    """Remove hooks, wrappers and guards' adapters that came along with a deep copy of a guarded pipeline."""
    for name in (family.denoiser, *family.more_denoisers, *family.conditioned_modules):
        held = getattr(pipe, name, None)
        for module in () if held is None else {held, unwrapped(held)}:
            remove_marked_hooks(module, _is_foreign)
            remove_foreign_feature_hooks(module)
    remove_foreign_wrappers(pipe.scheduler)
    remove_foreign_wrappers(pipe)
    if find_seam(pipe, family) is None:
        denoiser = unwrapped(getattr(pipe, family.denoiser))
        for adapter in guard_adapters(denoiser):
            remove_adapter(denoiser, adapter)


def _is_foreign(owner: object, module: nn.Module) -> bool:
    return isinstance(owner, Seam) and all(module is not hooked for hooked in owner.hooks.modules.values())
