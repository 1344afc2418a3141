"""NegationGuard: what Safe Denoiser and SPELL share as guards: the set they hold, when they are due, and their decisions.

A small set travels in the guard's model.safetensors; a large one stays in its file, whose path the folder keeps
relative to itself: move or copy both together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guards.base import Guard, Run, Step
from saferedir.guards.negation.bank import NegationSet
from saferedir.guards.negation.config import NegationConfig
from saferedir.guards.negation.reference_rows import FileRows
from saferedir.guards.negation.released import channel_normalised
from saferedir.guards.negation.state import NegationState, noise_fraction
from saferedir.utils.device import to_host

ConfigT = TypeVar("ConfigT", bound=NegationConfig)
T = TypeVar("T")


class NegationGuard(Guard[ConfigT]):
    """Base class: holds, saves, loads and checks the set."""

    def __init__(self, config: ConfigT, negation: NegationSet | None = None) -> None:
        super().__init__(config)
        self.negation = negation
        self._cache: dict[str, tuple[NegationSet | None, Any]] = {}  # made from the set, not from a run
        if negation is not None:
            self.check_set(negation)

    def check_set(self, negation: NegationSet) -> None:
        """Raise unless this guard can work with `negation` under its settings. Called once for every set it is given."""

    @classmethod
    def defaults_for(cls, negation: NegationSet, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings that `from_set` takes for this set where `settings` say nothing else, if they are not the config's own."""
        return {}

    @classmethod
    def from_set(cls, negation: NegationSet | str | Path, *, concept: str, **settings: Any) -> Self:
        """A guard of a negation set, or of its file; it will refuse a pipeline with another VAE than encoded the set.

        A set that does not say which VAE that was (facts["vae"]) cannot be checked, of which this warns; backbone=None says
        that you know.
        """
        opened = negation if isinstance(negation, NegationSet) else NegationSet.open(negation)
        vae, rows = opened.facts.get("vae"), opened.references.rows
        if vae is None and "backbone" not in settings:
            warnings.warn(
                "this negation set does not say which VAE encoded it, so nothing will notice a pipeline with another one; give "
                "NegationSet.from_latents facts={'vae': saferedir.pipelines.fingerprint.vae_fingerprint(pipe.vae)}, or this "
                "guard backbone=None if you are sure.",
                stacklevel=2,
            )
        settings.setdefault("backbone", None if vae is None else {"architecture": {"vae": vae}})
        settings = {**cls.defaults_for(opened, settings), **settings}
        settings.setdefault("training", {**opened.facts, "references": len(opened)})
        bank = str(rows.path) if isinstance(rows, FileRows) else None
        config: Any = cls.config_class.from_dict({"concept": concept, "bank": bank, **settings})
        return cls(config, opened)

    def load(self, denoiser: nn.Module) -> None:
        self._opened()  # so that attaching tells what is missing

    def start(self, run: Run) -> NegationState:
        self.negation = self._opened().to(run.device)
        return NegationState(
            negation=self.negation,
            retry_level=run.retry_levels,
        )

    def _opened(self) -> NegationSet:
        if self.negation is not None:
            return self.negation
        if self.config.bank is None:
            raise GuardError(
                f"this {self.method} guard has no negation set; make it with {type(self).__name__}.from_set(...), or load it "
                "with Guard.from_pretrained."
            )
        opened = NegationSet.open(self.config.bank)
        bound = (self.config.backbone or {}).get("architecture", {}).get("vae")
        if bound is not None and opened.facts.get("vae") != bound:
            theirs = opened.facts.get("vae") or "unknown"
            raise GuardConfigError(
                f"{self.config.bank} was encoded by another VAE ({theirs}) than this guard's set ({bound}); "
                "make the guard again with from_set."
            )
        self.check_set(opened)
        self.negation = opened
        return opened

    def cached(self, name: str, make: Callable[[], T]) -> T:
        """`make()` once for the set now held."""
        known = self._cache.get(name)
        if known is None or known[0] is not self.negation:
            known = self._cache[name] = (self.negation, make())
        value: T = known[1]
        return value

    def normalised(self) -> NegationSet:
        """The set as the released code keeps it."""
        negation = self._opened()
        return self.cached("normalised", lambda: negation.mapped(channel_normalised))

    def tensors(self) -> dict[str, Tensor]:
        if self.config.bank is not None or self.negation is None:
            return {}
        return self.negation.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            loaded = NegationSet.from_tensors(tensors, self.config.training)
            self.check_set(loaded)
            self.negation = loaded
        elif self.config.bank is None:
            raise GuardConfigError(f"this {self.method} guard's folder holds no negation set; save it again.")
        else:
            self._opened()

    def verdict(self, run: Run, state: NegationState) -> list[Decision]:
        if not state.numbers:
            message = f"Left alone: {self._outside(state)}." if state.noise and not state.was_due else ""
            return [replace(decision, message=message) for decision in super().verdict(run, state)]
        numbers = [numbers_of() for numbers_of in state.numbers]
        every = torch.ones(run.batch_size, dtype=torch.bool, device=run.device)
        scores, shifts, edits = to_host(
            torch.stack([n.score for n in numbers]),
            torch.stack([n.shift for n in numbers]),
            torch.stack([every if is_edited is None else is_edited for is_edited in state.edits]),
        )
        decisions = []
        for row in range(run.batch_size):
            steps = [index for index, is_edited in zip(state.indices, edits[:, row].tolist(), strict=True) if is_edited]
            message = ""
            if steps:
                share = 100 * float((shifts * edits)[:, row].max())
                where = f"at {len(steps)} steps from step {steps[0]}"
                message = f"Moved away from the negation set {where}, by {share:.1f} % at most."
            decisions.append(
                Decision(
                    guard=self.method,
                    concept=self.config.concept,
                    image=row,
                    fired=bool(steps),
                    action="edited" if steps else "none",
                    image_score=float(scores[:, row].max()),
                    image_scores=tuple(scores[:, row].tolist()),
                    first_fired_step=steps[0] if steps else None,
                    steps_redirected=len(steps),
                    message=message,
                )
            )
        return decisions

    def is_due(self, step: Step) -> bool:
        """`is_in_window`, to be called once a denoiser call; raises at the run's last one if no call was in the window, unless
        the setting is "ignore".
        """
        state: NegationState = step.state
        is_due = self.is_in_window(step)
        state.was_due = state.was_due or is_due
        if state.was_due:
            return is_due
        state.noise.append(noise_fraction(step))
        if self.config.outside_window == "raise" and step.evaluation + 1 >= step.run.num_evaluations:
            raise GuardError(
                f"guard {self.method!r} never got to act, so no image is returned: {self._outside(state)}; give the run more "
                "steps or (image to image) more strength, widen the guard's window, or set outside_window='ignore' to let such "
                "runs pass unguarded."
            )
        return False

    def _outside(self, state: NegationState) -> str:
        low, high = self.config.window
        fractions = (
            f"{max(state.noise):.3g} to {min(state.noise):.3g}" if len(state.noise) > 1 else f"{state.noise[0]:.3g}"
        )
        exempt = ", and pure noise has no estimate to correct" if low <= max(state.noise) <= high else ""
        return f"none of this run's noise fractions ({fractions}) is in the window {low:g} to {high:g}{exempt}"

    def is_in_window(self, step: Step) -> bool:
        """Whether this step's noise fraction lies in the configured window; false where there is no noise, or no x0."""
        u = noise_fraction(step)
        has_x0 = u < 1 or step.run.prediction_type != "epsilon"
        return self.config.window[0] <= u <= self.config.window[1] and u > 0 and has_x0
