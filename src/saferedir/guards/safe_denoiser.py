"""Safe Denoiser: move the denoised estimate away from a kernel-weighted mean of images that must not appear.

Implements "Training-Free Safe Denoisers for Safe Use of Diffusion Models" (arXiv:2502.08011),
docs/methods/safe_denoiser.md (1) to (6): with beta* the posterior odds
unsafe : safe, E[x0 | x, safe] = E + beta* (E - E_unsafe), where E_unsafe = sum_n softmax_n(log q_t(x | r_n)) r_n.
Shapes: x_t, x0 (B, C, h, w); references (M, C, h, w) in the sampler's frame; everything per row.
Deviations of `default`: a tempered kernel (kappa), because literal weights pick one reference in high dimension. With benign
references the same shift is written as pi (E_safe - E_unsafe), pi the posterior probability of unsafe: equal where all is
exact, but (at eta 1, outside of retries) never longer than the distance of two means, where beta* (E - E_unsafe), a large
number times a small difference of two estimates, can diverge. Without benign references the odds are capped at beta_max.
`form="replace"` (ours, for images that no prompt describes) puts a benign image in the place of one that is called unsafe, for a
shift towards E_safe, weighted by nearness, hands most of what it takes away to the nearest kind of image.
`faithful` follows the released code (unsquared distance, channel-normalised references, re-noising with the stale prediction),
but with modes of the VAE's posterior, noise of its own, and, as `renoise="stale"` too, in float32 and with deterministic
first-order samplers only (DDIM with eta=0, Euler, flow-matching Euler): the authors' own DDPM with 50 steps and half-precision
pipelines are refused, for the stale step is known only where a step is affine in the latents to float32's digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from saferedir.errors import GuardError
from saferedir.guards.base import GuardConfig, Run, Step
from saferedir.guards.negation import Attention, NegationSet, Query, attend, gaussian_x0, gaussian_xt
from saferedir.guards.negation.base import NegationGuard
from saferedir.guards.negation.config import NegationConfig
from saferedir.guards.negation.index import CandidateIndex, attend_near, require_index_file
from saferedir.guards.negation.released import released_step, released_threshold
from saferedir.guards.negation.renoise import derivative, require_single_evaluations
from saferedir.guards.negation.replacement import Replacement
from saferedir.guards.negation.state import NegationState, Numbers, frame, noise_fraction
from saferedir.utils.broadcast import per_sample
from saferedir.utils.checks import is_nonempty_str

GATES = ("auto", "ratio", "quantile", "literal", "always")
KERNELS = ("gaussian_xt", "gaussian_x0")
FORMS = ("odds", "posterior", "replace")
#: what `SafeDenoiser.from_set` sets for a set with benign references, where the caller says nothing else
POSTERIOR: Mapping[str, Any] = {"form": "posterior", "window": (0.0, 1.0), "trust": None}
#: the same with form="replace"
REPLACE: Mapping[str, Any] = {"form": "replace", "window": (0.3, 0.8), "trust": None}
#: settings of the odds: with one of them `from_set` leaves the form at "odds"
ODDS_ONLY = ("gate", "base", "beta_max", "renoise", "mode")
#: settings that only one mode reads; the other refuses values of them
FAITHFUL_ONLY = ("scale", "threshold", "margin")
DEFAULT_ONLY = (
    "form", "kernel", "kappa", "base", "eta", "beta_max", "beta_min", "gate", "prior", "trust", "renoise", "index", "candidates",
)  # fmt: skip
#: odds are capped here where they have no cap of their own: exp of more overflows float32
LARGEST_LOG_ODDS = 80.0


@dataclass(frozen=True, kw_only=True)
class SafeDenoiserConfig(NegationConfig):
    """Settings of Safe Denoiser (arXiv:2502.08011).

    Each mode refuses values of settings that it would not read: `default` those of faithful mode (scale, threshold, margin),
    `faithful` all but window, outside_window, width, seed, scale, threshold, margin.

    Attributes:
        form: "odds", beta (E - E_unsafe); "posterior", pi (E_safe - E_unsafe); or "replace": an image that the odds call unsafe
            in the window is led to one benign reference chosen at random, and no other image is touched; the odds call many
            images unsafe that do not show the concept (docs/negation.md, "Shares"). The last two need benign references and read
            neither `base` nor `beta_max`. `SafeDenoiser.from_set` takes "posterior", all noise fractions and no trust region for
            a set with benign references, unless a setting of the odds is given.
        kernel: "gaussian_xt" (the forward process' own) or "gaussian_x0" (needs `width`).
        kappa: tempering of gaussian_xt; None: calibrated (in the form "replace": literal), 1: literal, 0: the plain mean of the
            set.
        width: h of gaussian_x0; in faithful mode s of the released kernel (3.15).
        base: "guided" x0, or "uncond", the unconditional estimate, as in the paper.
        eta: factor on the shift; 0 with renoise="stale" is the re-noise-only control.
        beta_max: cap of the odds in the form "odds"; None for none.
        beta_min: the gate is closed below these odds.
        gate: "ratio" to benign references, "quantile" of noised references, "literal" (mean kernel value against beta_min),
            "always", or "auto": ratio where the set has benign references, else quantile, with a kernel of your own always.
        prior: P(unsafe) of the ratio gate.
        trust: rho, the correction is at most rho ||x0||; None for no limit.
        renoise: "none", or "stale": x = alpha x0' + sigma n at the same t, stepped with the old prediction.
        index, candidates: path of an approximate index over the references (negation/index.py), and how many nearest
            references to weigh; None: all of them, exactly.
        scale, threshold, margin: of faithful mode; threshold None: found as the released code does.
    """

    file_fields: ClassVar[tuple[str, ...]] = (*NegationConfig.file_fields, "index")

    window: tuple[float, float] = (0.82, 1.0)
    form: str = "odds"
    kernel: str = "gaussian_xt"
    kappa: float | None = None
    width: float | None = None
    base: str = "guided"
    eta: float = 1.0
    beta_max: float | None = 1.0
    beta_min: float = 0.05
    gate: str = "auto"
    prior: float = 0.5
    trust: float | None = 0.08
    renoise: str = "none"
    index: str | None = None
    candidates: int = 256
    scale: float = 0.33
    threshold: float | None = None
    margin: float = 1.6

    def validate(self) -> None:
        super().validate()
        self.require(self.renoise != "recompute", "renoise", "none or stale; recompute needs a second denoiser call")
        choices = {
            "form": FORMS,
            "kernel": KERNELS,
            "base": ("guided", "uncond"),
            "gate": GATES,
            "renoise": ("none", "stale"),
        }
        for name, known in choices.items():
            self.require_choice(name, known)
        self.require_number("width", "beta_max", "trust", above=0, or_none=True)
        self.require_number("eta", "beta_min", "scale", at_least=0)
        self.require_number("kappa", at_least=0, or_none=True)
        self.require_number("prior", above=0, below=1)
        self.require_number("margin")
        self.require_number("threshold", or_none=True)
        self.require_whole("candidates", at_least=1)
        self.require(self.index is None or is_nonempty_str(self.index), "index", "a path, or None")
        self.require(self.index is None or self.kernel == "gaussian_xt", "index", "None with this kernel")
        ignored, other = (DEFAULT_ONLY, "default") if self.mode == "faithful" else (FAITHFUL_ONLY, "faithful")
        for entry in fields(self):
            is_plain = entry.name not in ignored or getattr(self, entry.name) == entry.default
            self.require(
                is_plain, entry.name, f"{entry.default!r} in mode {self.mode!r}, it is a setting of {other!r} mode"
            )
        is_odds, form = self.form == "odds", f"form {self.form!r}"
        self.require(is_odds or self.gate in ("auto", "ratio"), "gate", f"auto or ratio with {form}")
        self.require(is_odds or self.base == "guided", "base", f"guided with {form}, which has no base")
        self.require(is_odds or self.beta_max == 1.0, "beta_max", f"1.0 with {form}, which has no odds to cap")
        only = {"renoise": "none", "beta_min": 0.05} if self.form == "replace" else {}
        for name, value in only.items():
            self.require(getattr(self, name) == value, name, f"{value!r} with {form}")
        self.require(self.kernel != "gaussian_x0" or self.width is not None, "width", "a number for gaussian_x0")
        is_calibrated = self.gate != "quantile" or self.has_calibrated_kernel
        self.require(is_calibrated, "gate", "ratio, literal or always with a kernel of your own")

    @property
    def has_calibrated_kernel(self) -> bool:
        """Whether the kernel is the one that the set's thresholds were found with."""
        return self.kernel == "gaussian_xt" and self.kappa is None

    @classmethod
    def paper_literal(cls, concept: str, *, eta: float, beta_min: float, **settings: Any) -> Self:
        """The paper's form: kappa 1, unconditional base, no cap, no trust region; eta and beta_t are the caller's."""
        fixed = {"kappa": 1.0, "base": "uncond", "gate": "literal", "beta_max": None, "trust": None}
        return cls(concept=concept, eta=eta, beta_min=beta_min, **{**fixed, **settings})


def correction(
    x0: Tensor, target: Tensor, unsafe: Tensor, gain: Tensor | float, trust: Tensor | float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(Delta, share, factor): Delta = factor gain (target - unsafe), at most trust * ||x0|| long, row by row.

    ||Delta|| / ||x0|| is share * factor, both (B, 1), factor None where there is no limit.

    All (B, D); gain and trust are (B, 1) or numbers.
    """
    delta = target - unsafe
    if not (isinstance(gain, float) and gain == 1):
        delta = delta * gain
    share = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    share = share / torch.linalg.vector_norm(x0, dim=1, keepdim=True).clamp(min=1e-12)
    if trust is None:
        return delta, share, None
    factor = (trust / share.clamp(min=1e-12)).clamp(max=1.0)
    return delta * factor, share, factor


def log_odds(log_sum: Tensor, count: int, benign_log_sum: Tensor, benign_count: int, prior: float) -> Tensor:
    """log of P(unsafe | x) / P(safe | x) (B,) from log-sum-exp scores over both sets, under the same kernel."""
    means = (log_sum - math.log(count)) - (benign_log_sum - math.log(benign_count))
    return means + math.log(prior / (1 - prior))


class SafeDenoiser(NegationGuard[SafeDenoiserConfig]):
    """The guard. Make one with `SafeDenoiser.from_set(file_or_set, concept=...)`."""

    method: ClassVar[str] = "safe_denoiser"
    config_class: ClassVar[type[GuardConfig]] = SafeDenoiserConfig

    def __init__(self, config: SafeDenoiserConfig, negation: NegationSet | None = None) -> None:
        super().__init__(config, negation)
        self.replaces_step = config.mode == "faithful" or config.renoise == "stale"

    @classmethod
    def defaults_for(cls, negation: NegationSet, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        is_left_open = "form" not in settings and negation.benign is not None and not set(ODDS_ONLY) & set(settings)
        if settings.get("form") == "replace":
            return REPLACE
        return POSTERIOR if is_left_open or settings.get("form") == "posterior" else {}

    def check_set(self, negation: NegationSet) -> None:
        config = self.config
        for name in ("gate", "form"):
            if getattr(config, name) in ("ratio", "posterior", "replace") and negation.benign is None:
                raise GuardError(
                    f"{name}={getattr(config, name)!r} compares with benign references, and this set has none; build it with "
                    "--benign."
                )
        if config.mode == "faithful" and negation.is_streamed:
            raise GuardError(
                "mode='faithful' keeps the whole set in memory, and this one stays in its file; use fewer references, or "
                "mode='default'."
            )
        if config.index is not None:
            require_index_file(config.index)

    def start(self, run: Run) -> NegationState:
        state = super().start(run)
        config = self.config
        if config.mode == "faithful":
            state.negation = self.normalised().to(run.device)
            state.threshold = self._released_threshold(state.negation)
        if self.replaces_step:
            require_single_evaluations(run)
        return state

    def on_denoised(self, step: Step, x0: Tensor) -> Tensor:
        state: NegationState = step.state
        state.pending = None
        state.negation.require_shape(tuple(x0.shape[1:]))
        config = self.config
        is_idle = config.eta == 0 and config.renoise == "none" and config.mode == "default"
        if is_idle:
            return x0
        if config.form == "replace" or self.replaces_step:
            state.row_generators(step, config.seed)  # of initial latents, whether the window is open yet or not
        if config.form == "replace":
            return self._replaced(step, x0, state)
        if not self.is_due(step):
            return x0
        if config.mode == "faithful":
            result = released_step(step, x0, state, config, state.threshold)
            state.pending = result.pending
            state.record(step, result.is_open, lambda: Numbers(result.kernel_sum, result.shift))
            return x0
        delta, is_open = self._delta(step, x0, state)
        edited = x0 + delta.view_as(x0)
        if is_open is not None:
            is_open = per_sample(is_open, x0)
            edited = torch.where(is_open, edited, x0)
        if config.renoise == "none":
            return edited
        noised = step.alpha * edited + step.sigma * state.sample_noise(step, config.seed)
        state.pending = noised - step.x_t.float()
        if is_open is not None:
            state.pending = torch.where(is_open, state.pending, 0.0)
        return x0

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        state: NegationState = step.state
        if state.pending is None:
            return latents
        slope = derivative(step, latents)
        if callable(state.pending):  # the flow variant of the released code takes the step itself
            replaced: Tensor = state.pending(step)
            return replaced
        changed = (state.pending != 0).flatten(1).any(dim=1)
        return torch.where(per_sample(changed, latents), latents + slope * state.pending, latents)

    def _replaced(self, step: Step, x0: Tensor, state: NegationState) -> Tensor:
        """The estimate, of images that were called unsafe in the window led to a benign reference of their own."""
        config, negation = self.config, state.negation
        assert negation.benign is not None
        (alpha, sigma), is_due = frame(step), self.is_due(step)
        ratio = alpha / sigma if sigma else math.inf
        if not is_due and (state.replacement is None or not state.replacement.may_lead(ratio)):
            return x0
        if state.replacement is None:
            generators = state.row_generators(step, config.seed)
            state.replacement = Replacement.choose(negation.benign, generators, step.run.retry_level)
        query = self._query(step, x0, 1.0 if config.kappa is None else config.kappa)
        odds = self._log_odds(query, self._attend(step, query, negation), negation)[0]
        is_unsafe = (odds > 0) | (state.retry_level > 0) if is_due else None
        is_led = state.replacement.lead(is_unsafe, ratio)
        flat = x0.flatten(1)
        delta, share, factor = correction(flat, state.replacement.target, flat, config.eta, config.trust)

        def numbers() -> Numbers:
            return Numbers(odds, (share if factor is None else share * factor).squeeze(1))

        state.record(step, is_led, numbers)
        return torch.where(per_sample(is_led, x0), x0 + delta.view_as(x0), x0)

    def _delta(self, step: Step, x0: Tensor, state: NegationState) -> tuple[Tensor, Tensor | None]:
        """(Delta (B, D), gate open (B,), None for all of them) of this step."""
        config, negation = self.config, state.negation
        base = x0 if config.base == "guided" else step.x0_uncond
        if base is None:
            raise GuardError("base='uncond' needs classifier-free guidance, and this run has none; use base='guided'.")
        kappa, threshold = negation.calibration.at(noise_fraction(step))
        kappa = kappa if config.kappa is None else config.kappa
        query = self._query(step, x0, kappa)
        attention = self._attend(step, query, negation)
        gate = self._gate(negation)
        is_posterior = config.form == "posterior"
        score: Tensor | None = None
        is_open: Tensor | None = None
        odds: Tensor | None = None
        target = base.flatten(1)  # what the shift goes towards, from the unsafe mean
        if gate == "quantile" and kappa > 0:
            score = attention.log_sum / kappa
            is_open = score >= threshold
        elif gate == "ratio" and negation.benign is not None:
            odds, benign = self._log_odds(query, attention, negation)
            if is_posterior:
                target = benign.mean
        elif gate == "literal":
            odds = attention.log_sum - math.log(len(negation))
        is_retried = state.retry_level > 0 if any(step.run.retry_level) else None
        cap = LARGEST_LOG_ODDS if config.beta_max is None else math.log(config.beta_max)
        gain: Tensor | float = config.eta * math.exp(min(0.0, cap))  # odds of 1 where the gate measures none
        trust: Tensor | float | None = config.trust
        if odds is not None:
            score = odds
            is_open = odds >= (math.log(config.beta_min) if config.beta_min else -math.inf)
            odds = odds if is_retried is None else torch.where(is_retried, odds.clamp(min=0.0), odds)
            strength = odds.sigmoid() if is_posterior else odds.clamp(max=cap).exp()
            gain = config.eta * strength.unsqueeze(1)
        if is_retried is not None:
            levels = 1 + state.retry_level.unsqueeze(1)
            is_open, gain = None if is_open is None else is_open | is_retried, gain * levels
            trust = None if trust is None else trust * levels
        flat = x0.flatten(1)
        delta, share, factor = correction(flat, target, attention.mean, gain, trust)
        rest = attention._replace(mean=share)  # all that the numbers need, and small

        def numbers() -> Numbers:
            shift = share if factor is None else share * factor
            return Numbers(rest.log_sum if score is None else score, shift.squeeze(1), rest.ess)

        state.record(step, is_open, numbers)
        return delta, is_open

    def _log_odds(self, query: Query, attention: Attention, negation: NegationSet) -> tuple[Tensor, Attention]:
        """(log of unsafe : safe (B,), the same query to the benign references)."""
        assert negation.benign is not None
        benign = attend(query, negation.benign, with_ess=False)
        counts = len(negation), len(negation.benign)
        return log_odds(attention.log_sum, counts[0], benign.log_sum, counts[1], self.config.prior), benign

    def _gate(self, negation: NegationSet) -> str:
        """The gate in use. Thresholds are calibrated for the calibrated kernel only."""
        if self.config.gate != "auto":
            return self.config.gate
        if negation.benign is not None:
            return "ratio"
        return "quantile" if self.config.has_calibrated_kernel else "always"

    def _query(self, step: Step, x0: Tensor, kappa: float) -> Query:
        centre = step.state.negation.references.centre
        if self.config.width is not None and self.config.kernel == "gaussian_x0":
            return gaussian_x0(x0.flatten(1), centre, self.config.width)
        return gaussian_xt(step.x_t.float().flatten(1), centre, *frame(step), kappa)

    def _attend(self, step: Step, query: Query, negation: NegationSet) -> Attention:
        """Over all references, or over the candidates of an index; at alpha = 0 no reference is nearer than another."""
        path = self.config.index
        if path is None or step.numbers[0] <= 0:
            return attend(query, negation.references, with_ess=step.state.is_logging)
        index = self.cached("index", lambda: CandidateIndex.open(path, negation.references))
        return attend_near(query, (step.x_t.float() / step.alpha).flatten(1), index, self.config.candidates)

    def _released_threshold(self, references: NegationSet) -> float:
        if self.config.threshold is None:
            return self.cached("threshold", lambda: released_threshold(references, self.config.width))
        return self.config.threshold
