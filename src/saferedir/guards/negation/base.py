"""What Safe Denoiser and SPELL share as guards: the set they hold, one run's records, and noise of their own.

Imports checks, guard, decisions, errors, `bank`. A small set travels in the guard's model.safetensors; a large one stays in its
file, whose path the folder keeps relative to itself: move or copy both together.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from saferedir.checks import is_number, is_text
from saferedir.decisions import Decision
from saferedir.errors import GuardConfigError, GuardError
from saferedir.guard import Guard, GuardConfig, Run, Step
from saferedir.guards.negation.bank import FileRows, NegationSet

MODES = ("default", "faithful")
OUTSIDE_WINDOW = ("raise", "ignore")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NegationConfig(GuardConfig):
    """Settings of every guard with a negation set.

    Attributes:
        mode: "default" (this project's fixes) or "faithful" (the released code).
        bank: path of a set too large to travel with the guard; None where it is in model.safetensors.
        window: noise fractions u = sigma / (alpha + sigma), lowest and highest, at which to act.
        outside_window: what happens to a run none of whose denoiser calls is in the window (image to image at low strength, few
            steps), where the guard can do nothing: "raise" (no image), or "ignore" (its decision says so).
        seed: of the guard's own noise, drawn only where it re-noises.
    """

    file_fields: ClassVar[tuple[str, ...]] = ("bank",)

    mode: str = "default"
    bank: str | None = None
    window: tuple[float, float] = (0.0, 1.0)
    outside_window: str = "raise"
    seed: int = 0

    def validate(self) -> None:
        self.require_choice("mode", MODES)
        self.require_choice("outside_window", OUTSIDE_WINDOW)
        self.require(self.bank is None or is_text(self.bank), "bank", "a path, or None")
        is_pair = isinstance(self.window, tuple) and len(self.window) == 2 and all(map(is_number, self.window))
        is_window = is_pair and 0 <= self.window[0] <= self.window[1] <= 1
        self.require(is_window, "window", "two noise fractions in [0, 1], the lower one first")
        self.require_whole("seed")


class Numbers(NamedTuple):
    """What a step is remembered by, each (B,): score; shift, ||delta|| / ||x0||; ess, effective number of references."""

    score: Tensor
    shift: Tensor
    ess: Tensor | None = None


@dataclass
class NegationState:
    """One run: every tensor has B rows. pending: what re-noising adds to x (a function: the step to take
    instead); threshold: of the released code's gate.
    """

    negation: NegationSet
    insist: Tensor  # (B,) levels
    indices: list[int] = field(default_factory=list)  # of the steps acted at or looked at
    edits: list[Tensor | None] = field(default_factory=list)  # whether a row was edited; None: every row
    numbers: list[Callable[[], Numbers]] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)  # noise fractions met before one was in the window
    was_due: bool = False
    pending: Any = None
    threshold: float = 0.0
    frame: tuple[Tensor | None, float, float] = (None, 0.0, 0.0)  # a step's alpha; the same and its sigma as numbers
    generators: list[torch.Generator] | None = None

    def record(self, step: Step, is_edited: Tensor | None, numbers: Callable[[], Numbers]) -> None:
        """Keep one step's numbers, without a host synchronisation; they are worked out for the verdict, not at each step.

        is_edited: (B,), None for every row. `numbers` may hold on to little; under autograd it is asked at once.
        """
        if torch.is_grad_enabled():
            score, shift, ess = numbers()
            found = Numbers(score.detach(), shift.detach(), None if ess is None else ess.detach())
            self.numbers.append(lambda: found)
        else:
            self.numbers.append(numbers)
        self.indices.append(step.index)
        self.edits.append(is_edited)
        if self.is_logging:
            score, shift, ess = self.numbers[-1]()
            edited = torch.ones_like(score) if is_edited is None else is_edited.float()
            values = (score, torch.ones_like(score) if ess is None else ess, edited, shift * edited)
            text = "step %d: score %.4g, effective references %.3g, gates open %.2f, moved by %.4f of x0"
            logger.debug(text, step.index, *(float(value.mean()) for value in values))

    @property
    def is_logging(self) -> bool:
        """Whether anybody reads the log of single steps."""
        return logger.isEnabledFor(logging.DEBUG)

    def draw(self, step: Step, seed: int) -> Tensor:
        """Fresh noise like `step.x_t`, from generators of our own: one a row, seeded by `seed` and that row's first latents,
        so that a batch equals single runs and the pipeline's random stream stays as it is.
        """
        latents = step.x_t
        if self.generators is None:
            rows = [row.detach().float().cpu().numpy().tobytes() for row in latents]
            self.generators = [torch.Generator().manual_seed(seed ^ zlib.crc32(row)) for row in rows]
        shape = latents.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])
        return noise.to(latents.device)


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
    def from_set(cls, negation: NegationSet | str | Path, *, concept: str, **settings: Any) -> Self:
        """A guard of a negation set, or of its file; it will refuse a pipeline with another VAE than encoded the set.

        A set that does not say which VAE that was (facts["vae"]) cannot be checked, of which this warns; backbone=None says
        that you know.
        """
        found = negation if isinstance(negation, NegationSet) else NegationSet.open(negation)
        vae, rows = found.facts.get("vae"), found.references.rows
        if vae is None and "backbone" not in settings:
            warnings.warn(
                "this negation set does not say which VAE encoded it, so nothing will notice a pipeline with another one; give "
                "NegationSet.from_latents facts={'vae': saferedir.fingerprint.vae_fingerprint(pipe.vae)}, or this guard "
                "backbone=None if you are sure.",
                stacklevel=2,
            )
        settings.setdefault("backbone", None if vae is None else {"architecture": {"vae": vae}})
        settings.setdefault("training", {**found.facts, "references": len(found)})
        bank = str(rows.path) if isinstance(rows, FileRows) else None
        config: Any = cls.config_class.from_dict({"concept": concept, "bank": bank, **settings})
        return cls(config, found)

    def load(self, denoiser: nn.Module) -> None:
        self._opened()  # so that attaching tells what is missing

    def start(self, run: Run) -> NegationState:
        self.negation = self._opened().to(run.device)
        rows = run.batch_size
        return NegationState(
            negation=self.negation,
            insist=torch.tensor(run.insist or (0,) * rows, device=run.device),
        )

    def _opened(self) -> NegationSet:
        if self.negation is not None:
            return self.negation
        if self.config.bank is None:
            raise GuardError(
                f"this {self.method} guard has no negation set; make it with {type(self).__name__}.from_set(...), or load it "
                "with Guard.from_pretrained."
            )
        found = NegationSet.open(self.config.bank)
        bound = (self.config.backbone or {}).get("architecture", {}).get("vae")
        if bound is not None and found.facts.get("vae") != bound:
            theirs = found.facts.get("vae") or "unknown"
            raise GuardConfigError(
                f"{self.config.bank} was encoded by another VAE ({theirs}) than this guard's set ({bound}); "
                "make the guard again with from_set."
            )
        self.check_set(found)
        self.negation = found
        return found

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
            found = NegationSet.from_tensors(tensors, self.config.training)
            self.check_set(found)
            self.negation = found
        elif self.config.bank is None:
            raise GuardConfigError(f"this {self.method} guard's folder holds no negation set; save it again.")
        else:
            self._opened()

    def verdict(self, run: Run, state: NegationState) -> list[Decision]:
        if not state.numbers:
            message = f"Left alone: {self._outside(state)}." if state.noise and not state.was_due else ""
            return [replace(decision, message=message) for decision in super().verdict(run, state)]
        numbers = [found() for found in state.numbers]
        scores, shifts = torch.stack([n.score for n in numbers]).cpu(), torch.stack([n.shift for n in numbers]).cpu()
        every = torch.ones(run.batch_size, dtype=torch.bool)
        edits = torch.stack([every if is_edited is None else is_edited.cpu() for is_edited in state.edits])
        found = []
        for row in range(run.batch_size):
            steps = [index for index, is_edited in zip(state.indices, edits[:, row].tolist(), strict=True) if is_edited]
            message = ""
            if steps:
                share = 100 * float((shifts * edits)[:, row].max())
                where = f"at {len(steps)} steps from step {steps[0]}"
                message = f"Moved away from the negation set {where}, by {share:.1f} % at most."
            found.append(
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
        return found

    def is_due(self, step: Step) -> bool:
        """`is_in_window`, to be asked once a denoiser call; raises at the run's last one if it never was, unless told to "ignore"
        that.
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
        found = f"{max(state.noise):.3g} to {min(state.noise):.3g}" if len(state.noise) > 1 else f"{state.noise[0]:.3g}"
        exempt = ", and pure noise has no estimate to correct" if low <= max(state.noise) <= high else ""
        return f"none of this run's noise fractions ({found}) is in the window {low:g} to {high:g}{exempt}"

    def is_in_window(self, step: Step) -> bool:
        """Whether this step's noise fraction lies in the configured window; false where there is no noise, or no x0."""
        u = noise_fraction(step)
        has_x0 = u < 1 or step.run.prediction_type != "epsilon"
        return self.config.window[0] <= u <= self.config.window[1] and u > 0 and has_x0


def noise_fraction(step: Step) -> float:
    """u = sigma / (alpha + sigma): 0 at the clean end, 1 at pure noise, on every schedule; the same for all rows."""
    alpha, sigma = frame(step)
    return sigma / (alpha + sigma)


def frame(step: Step) -> tuple[float, float]:
    """(alpha, sigma) as numbers: all rows of a run are at the same step."""
    state: NegationState = step.state
    if state.frame[0] is not step.alpha:  # read once a step; on a GPU that waits for the device
        state.frame = step.alpha, step.alpha[0].item(), step.sigma[0].item()
    return state.frame[1:]


def channel_normalised(latents: Tensor) -> Tensor:
    """(M, C, ...) with each spatial position divided by its norm over channels, as the released code keeps references."""
    norms: Tensor = torch.linalg.vector_norm(latents, dim=1, keepdim=True)
    return latents / norms.clamp(min=1e-12)
