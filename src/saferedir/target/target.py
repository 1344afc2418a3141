"""Target: a guarded pipeline as a differentiable function.

Nothing of a guard or a sampler is written a second time for attacks: every call goes through the pipeline's own loop with the
guards attached (partial.py), so gradients pass through the defence as it is deployed, whichever family and scheduler it is.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from saferedir.attach import attach, find_seam
from saferedir.errors import AttackError
from saferedir.guards.base import Guard
from saferedir.guards.gates import Gate
from saferedir.pipelines.encoding import encode_prompts
from saferedir.pipelines.families import family_of
from saferedir.pipelines.latents import decode_latents
from saferedir.pipelines.safety_checker import without_safety_checker
from saferedir.pipelines.schedules import Coefficients, coefficients, evaluation_steps, training_time
from saferedir.pipelines.text_encoders import TextEncoder, make_text_encoders
from saferedir.policy.verifiers import checked_policy
from saferedir.target.given_images import ImagePrompt, Inpainting, adapter_scale
from saferedir.target.ledger import Ledger, count_rows
from saferedir.target.partial import Probe, run_part
from saferedir.target.policy import PolicyRunner, ProtectSettings
from saferedir.target.prediction import Prediction
from saferedir.target.soft_prompt import SoftPrompt, reading, table_of
from saferedir.utils.calls import for_each_prompt
from saferedir.utils.images import output_images

_ALL = 1 << 31


@dataclass(frozen=True)
class Moment:
    """One evaluation of the sampling, and the step it belongs to; x_t = alpha x0 + sigma eps, t in 0..1000."""

    evaluation: int
    index: int
    t: float
    alpha: float
    sigma: float

    @property
    def noise_level(self) -> float:
        """sigma / alpha, which the moments of any two schedules have in common; infinite where nothing but noise is left."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def amplitude(self) -> float:
        """Of latents in the sampler's frame, for data and noise of unit variance: 1 where variance is preserved."""
        return math.hypot(self.alpha, self.sigma)


class Target:
    """The model as defended, for attacks with gradients (threat model T3). Text to image only.

    Use it in a `with` block: inside, guards and counters are on the pipeline, and nobody else should call it.

    Args:
        pipe: a supported pipeline; inside, its weights need no gradients.
        guards: attached in this order, each in its `differentiable` form; () for the bare model.
        call: arguments of every pipeline call (steps, guidance, size, negative prompt).
        ledger: what is spent is charged there.
        policy: of `protect`, around `generate`: its retries, its verifiers, its blanks; None for guards without a policy.
        sees_verifiers: whether an attack may look through the guards' image verifiers, see `verifier_gates`.

    Raises AttackError for a pipeline that starts from an image, and for `sees_verifiers` without an image verifier; else as
    `attach` and `protect`.
    """

    def __init__(
        self,
        pipe: Any,
        guards: Sequence[Guard[Any]] = (),
        call: Mapping[str, Any] | None = None,
        ledger: Ledger | None = None,
        policy: ProtectSettings | None = None,
        sees_verifiers: bool = False,
    ) -> None:
        if {"image", "control_image"} & set(inspect.signature(type(pipe).__call__).parameters):
            raise AttackError(
                f"a {type(pipe).__name__} starts from an image; give the family's text-to-image pipeline."
            )
        self.pipe, self.guards = pipe, tuple(guards)
        self.call = dict(call or {})
        self.ledger = ledger or Ledger()
        self.policy, self.sees_verifiers = policy, sees_verifiers
        self.image_verifiers = tuple(guard.image_verifier for guard in self.guards if guard.image_verifier is not None)
        if sees_verifiers and not self.image_verifiers:
            raise AttackError(
                "the attack is to look through image verifiers, and none of the guards has one; leave see_verifier out, or train "
                "one by `saferedir train verifier`."
            )
        #: one bool an image of the latest `generate`, whether the policy blocked it
        self.blocked: list[bool] = []
        self._probe = Probe()
        self._handles: list[Any] = []
        self._thawed: list[nn.Parameter] = []  # weights that need gradients outside

    def __enter__(self) -> Self:
        self._attached = attach(self.pipe, [*(guard.differentiable() for guard in self.guards), self._probe])
        seam = find_seam(self.pipe, family_of(self.pipe))
        assert seam is not None
        if self.policy is not None:
            on_unsafe, retries = self.policy.on_unsafe, self.policy.retries
            try:
                verifier, of_guards = checked_policy(
                    self.guards, on_unsafe, self.policy.verify, retries, "blank", self.policy.image_verifiers
                )
            except BaseException:
                self._attached.detach()
                raise
            self._settings = (self.pipe, self._attached, on_unsafe, verifier, retries, "blank", of_guards)
        self._seam, self._probe.read_gates = seam, seam.gates
        family = seam.family
        denoisers, encoders = (
            [module for name in names if (module := getattr(self.pipe, name, None)) is not None]
            for names in ((family.denoiser, *family.more_denoisers), family.text_encoders)
        )
        self._handles = count_rows(denoisers, encoders, lambda: self.ledger)
        modules = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        self._thawed = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
        self._ask_for_gradients(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._ask_for_gradients(True)
        self._attached.__exit__(kind, error, trace)

    def _ask_for_gradients(self, is_asked: bool) -> None:
        for weight in self._thawed:
            weight.requires_grad_(is_asked)

    @contextmanager
    def undefended(self) -> Iterator[Target]:
        """Inside, the bare model in this target's place, charged to the same ledger; guards are back afterwards."""
        if not self.guards:
            yield self
            return
        moments, text_encoders = self.moments, self.text_encoders
        self.__exit__(None, None, None)
        try:
            with Target(self.pipe, (), self.call, self.ledger) as bare:
                vars(bare).update(moments=moments, text_encoders=text_encoders)  # the same ones, not asked for again
                yield bare
        finally:
            self.__enter__()

    @contextmanager
    def charging(self, ledger: Ledger) -> Iterator[None]:
        """Inside, what is spent is charged to another ledger."""
        usual, self.ledger = self.ledger, ledger
        try:
            yield
        finally:
            self.ledger = usual

    # --- what there is
    # -----------------------------------------------------------------------------------------

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """Every evaluation of a run with this call."""
        levels: list[tuple[float, Coefficients]] = []

        def note(scheduler: Any, timestep: Any) -> None:
            levels.append((training_time(scheduler, float(timestep)), coefficients(scheduler, timestep)))

        with torch.no_grad():
            arguments = {**self.call, "prompt": "", "output_type": "latent"}
            run_part(self._seam, arguments, None, start=_ALL, on_pass=note)
        scheduler = self.pipe.scheduler
        steps = evaluation_steps(scheduler, tuple(scheduler.timesteps.tolist()))
        return tuple(
            Moment(index, step, t, float(level.alpha), float(level.sigma))
            for index, (step, (t, level)) in enumerate(zip(steps, levels, strict=True))
        )

    @cached_property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders, with their tokenizers."""
        length = encode_prompts(self.pipe, ["a"], self.call).prompt.shape[1]
        return make_text_encoders(self.pipe, self._seam.family, length)

    @property
    def towers(self) -> tuple[TextEncoder, ...]:
        """Old name of `text_encoders`."""
        warnings.warn("Target.towers is an old name; use Target.text_encoders.", DeprecationWarning, stacklevel=2)
        return self.text_encoders

    def verifier_gates(self, x0: Tensor) -> dict[str, Gate]:
        """Image verifiers that the attack looks through, on images decoded from x0 (B, C, h, w), in the graph; {} for none."""
        if not self.sees_verifiers:
            return {}
        images = decode_latents(self.pipe, x0)
        names = [f"image_verifier-{index}" for index in range(1, 1 + len(self.image_verifiers))]
        return {
            name: Gate(verifier.to(images.device)(images), verifier.config.threshold)
            for name, verifier in zip(names, self.image_verifiers, strict=True)
        }

    def embed(self, ids: Tensor, text_encoder: int = 0) -> Tensor:
        """Token embeddings (B, L, d) that an encoder looks up for ids (B, L)."""
        embeds: Tensor = table_of(self.text_encoders[text_encoder])(ids)
        return embeds

    def noised(self, x0: Tensor, noise: Tensor, evaluation: int) -> Tensor:
        """alpha x0 + sigma noise at an evaluation, in the sampler's frame."""
        moment = self.moments[evaluation]
        return moment.alpha * x0 + moment.sigma * noise

    def begins_step(self, evaluation: int) -> bool:
        """Whether an evaluation is the first one of its step, where a run can begin."""
        return evaluation == 0 or self.moments[evaluation].index != self.moments[evaluation - 1].index

    def evaluation_at(self, noise_level: float) -> int:
        """The first evaluation of the step whose noise level is nearest to `noise_level` = sigma / alpha, by their ratio."""
        firsts = [moment for moment in self.moments if self.begins_step(moment.evaluation)]
        return min(firsts, key=lambda moment: _log_ratio(moment.noise_level, noise_level)).evaluation

    # --- what it answers
    # ---------------------------------------------------------------------------------------

    def predict(
        self, latents: Tensor, evaluation: int, soft: Sequence[SoftPrompt] = (), **conditioning: Any
    ) -> Prediction:
        """One evaluation from latents (B, C, h, w), everything that the guards do in it included.

        Guards begin anew: what they would remember from earlier steps is not there, see `roll_out`.

        Args:
            evaluation: 0-based, the first one of a step where the scheduler asks several times.
            soft: token embeddings to read in place of looked-up ones.
            conditioning: `prompt=[...]`, or `prompt_embeds=...` and what belongs to it; further arguments of the call.
        """
        return self.roll_out(latents, evaluation, evaluation + 1, soft, **conditioning)[-1]

    def roll_out(
        self,
        latents: Tensor | None,
        start: int = 0,
        stop: int | None = None,
        soft: Sequence[SoftPrompt] = (),
        **conditioning: Any,
    ) -> list[Prediction]:
        """Evaluations start..stop - 1 in a row (all that are left for None), one `Prediction` each.

        latents: (B, C, h, w) before the first of them; None for the pipeline's own noise (give it a `generator`).
        """
        count = len(self.moments)
        end = count if stop is None else stop
        if not 0 <= start < end <= count:
            raise AttackError(f"evaluations {start} to {end - 1} were asked for, but the run has 0 to {count - 1}.")
        if not self.begins_step(start):
            raise AttackError(f"evaluation {start} is in the middle of a step; begin with the first one of a step.")
        conditioning, soft = self._as_given(conditioning, soft)
        with reading(self.text_encoders, soft) if soft else nullcontext():
            self._run({**conditioning, "output_type": "latent"}, latents, start, end)
        return self._probe.predictions

    def _as_given(
        self, conditioning: dict[str, Any], soft: Sequence[SoftPrompt]
    ) -> tuple[dict[str, Any], Sequence[SoftPrompt]]:
        """Soft prompts as the `prompt_embeds` that a caller would hand over, where a guard tests those."""
        if not soft or not any(guard.tests_embeds for guard in self.guards):
            return conditioning, soft
        texts = conditioning["prompt"]
        recording = vars(self.pipe).pop("encode_prompt", None)  # what is encoded here is no text of the caller
        try:
            with reading(self.text_encoders, soft):
                call = {**self.call, **conditioning}
                embeds = encode_prompts(self.pipe, [texts] if isinstance(texts, str) else texts, call)
        finally:
            if recording is not None:
                vars(self.pipe)["encode_prompt"] = recording
        rest = {name: value for name, value in conditioning.items() if name != "prompt"}
        given = {
            "prompt_embeds": embeds.prompt,
            "pooled_prompt_embeds": embeds.pooled,
            "prompt_attention_mask": embeds.mask,
        }
        return {**rest, **{name: value for name, value in given.items() if value is not None}}, ()

    @property
    def last_run(self) -> Sequence[Prediction]:
        """Every evaluation of the latest `generate`, `roll_out` or `predict`, of all attempts under a policy."""
        return self._probe.predictions

    def generate(
        self,
        latents: Tensor | None = None,
        soft: Sequence[SoftPrompt] = (),
        start: int = 0,
        inpainting: Inpainting | None = None,
        image_prompt: ImagePrompt | None = None,
        **conditioning: Any,
    ) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], generated to the end, from latents before evaluation `start`.

        Under a policy they are what `protect` lets out, blanks in place of blocked images; then without gradients.
        `inpainting` keeps what surrounds a region of an image, `image_prompt` is read by the pipeline's IP-Adapter.

        Raises:
            AttackError: an image prompt for a pipeline without an IP-Adapter.
            GuardError: the guards or the policy refuse the call.
        """
        conditioning, soft = self._as_given(conditioning, soft)
        arguments = {**conditioning, "output_type": "pt"}
        if image_prompt is not None:
            arguments |= image_prompt.arguments
        takes_latents = "latents" in inspect.signature(type(self.pipe).__call__).parameters
        if latents is not None and start == 0 and takes_latents and self._seam.family.packing is None:
            # as a caller hands them over, so that guards may test them
            arguments["latents"] = latents / float(getattr(self.pipe.scheduler, "init_noise_sigma", 1.0))
            latents = None
        with (
            reading(self.text_encoders, soft) if soft else nullcontext(),
            nullcontext() if image_prompt is None else adapter_scale(self.pipe, image_prompt.scale),
        ):
            if self.policy is None:
                images: Tensor = output_images(self._run(arguments, latents, start, None, inpainting))
                self.ledger.charge(gen=len(images))
                self.blocked = [False] * len(images)
                return images
            return self._run_under_policy(arguments, latents, start, inpainting)

    def draw(self, *args: Any, **conditioning: Any) -> Tensor:
        """The name that `generate` had."""
        warnings.warn("Target.draw is now called Target.generate.", DeprecationWarning, stacklevel=2)
        return self.generate(*args, **conditioning)

    def _run_under_policy(
        self, arguments: Mapping[str, Any], latents: Tensor | None, start: int, inpainting: Inpainting | None
    ) -> Tensor:
        predictions: list[Prediction] = []

        def attempt(call: dict[str, Any]) -> Any:
            self._probe.predictions = []
            output = run_part(self._seam, call, latents, start, inpainting=inpainting)
            self.ledger.charge(gen=len(output_images(output)))
            predictions.extend(self._probe.predictions)
            return output

        runner = PolicyRunner(*self._settings, run_call=attempt)
        try:
            with torch.no_grad():
                output = runner(**self._whole_call(arguments))
        finally:
            self._probe.predictions = predictions
        self.blocked = list(output.blocked)
        images: Tensor = output_images(output)
        return images

    def _whole_call(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        call, prompt = {**self.call, **arguments}, arguments.get("prompt")
        return (
            for_each_prompt(call, len(prompt)) if isinstance(prompt, list) else call
        )  # one negative prompt serves all

    def _run(
        self,
        arguments: Mapping[str, Any],
        latents: Tensor | None,
        start: int,
        stop: int | None,
        inpainting: Inpainting | None = None,
    ) -> Any:
        self._probe.predictions = []  # a list of its own for every run
        call = self._whole_call(arguments)
        with without_safety_checker(self.pipe):
            return run_part(self._seam, call, latents, start, stop, inpainting=inpainting)


def _log_ratio(first: float, second: float) -> float:
    """|log(first / second)| of two numbers >= 0, either of which may be 0 or infinite."""
    if first == second:
        return 0.0
    return abs(math.log(first) - math.log(second)) if min(first, second) > 0 else math.inf
