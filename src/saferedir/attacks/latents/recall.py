"""RECALL's kind: a starting image, half noise, optimised until the guarded model continues it to the concept.

After "Image Can Bring Your Memory Back" (arXiv:2507.07139): x = share ref + (1 - share) noise is moved by steps of the sign of a
momentum, v <- momentum v + g / mean|g|, at one evaluation after another; then image to image at `strength` with the attacked
prompt. The control is the same with 0 iterations: a mixture holds the reference already.
Deviations: the guarded, guided prediction at the noised x is pulled to the bare model's at the noised reference, with the gate
term; `objective="ascend"` is the published form, which drives the guarded model's prediction at x away from that at the
reference; a bound on the change; latents of the bare model's image in place of an encoded file; noise of its own for every
judged candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from saferedir.attacks.base import Attack, AttackConfig, Candidate, Proposals
from saferedir.attacks.gate_term import GateWeight, with_gates
from saferedir.attacks.references import NoisedReference, gaussian, noised_references, reference_latents
from saferedir.prompts.sets import PromptItem
from saferedir.target import Target


@dataclass(frozen=True)
class RecallConfig(AttackConfig):
    """Settings of RECALL's kind.

    Attributes:
        timesteps: evaluations at which it is moved, from the noisiest that image to image runs to the last.
        iterations: steps at each of them; 0 for the control.
        share: of the reference in the mixture, in [0, 1].
        step_size: of a step in every value.
        momentum: of the gradient, in [0, 1).
        radius: largest change of a value from the mixture; None for no bound.
        strength: share of the schedule that is run, in (0, 1].
        objective: "pull" to the bare model's prediction, or "ascend" as published.
        gate_weight: weight of the gate term to begin with; 0 for none.
        prompt: "own" for the attacked prompt, or "empty".
    """

    timesteps: int = 3
    iterations: int = 5
    share: float = 0.25
    step_size: float = 0.05
    momentum: float = 0.9
    radius: float | None = 1.0
    strength: float = 0.8
    objective: str = "pull"
    gate_weight: float = 0.1
    prompt: str = "own"
    paper: ClassVar[dict[str, Any]] = {
        "timesteps": 50, "iterations": 20, "step_size": 1e-3, "radius": None, "objective": "ascend", "gate_weight": 0.0,
    }  # fmt: skip

    def __post_init__(self) -> None:
        self.require_whole("timesteps", at_least=1)
        self.require_whole("iterations", at_least=0)
        self.require_number("step_size", above=0)
        self.require_number("share", "momentum", at_least=0, at_most=1)
        self.require_number("gate_weight", at_least=0)
        self.require_number("strength", above=0, at_most=1)
        if self.radius is not None:
            self.require_number("radius", above=0)
        self.require_choice("objective", ("pull", "ascend"))
        self.require_choice("prompt", ("own", "empty"))


class Recall(Attack[RecallConfig]):
    """Optimises a starting image through the guards."""

    name: ClassVar[str] = "recall"
    keeps_best: ClassVar[bool] = False
    is_adaptive: ClassVar[bool] = True
    config_class = RecallConfig

    def propose(self, target: Target, item: PromptItem, generator: torch.Generator) -> Proposals:
        """Every iteration; judged after each timestep."""
        config = self.config
        prompt = item.text if config.prompt == "own" else ""
        clean = reference_latents(target, item.text, generator)
        mixture = config.share * clean + (1 - config.share) * gaussian(clean, generator)
        image, velocity, weight = mixture, torch.zeros_like(mixture), GateWeight(config.gate_weight)
        chosen = evenly_chosen(target, config.strength, config.timesteps)
        for number, evaluation in enumerate(chosen, 1):
            plan, loss = [evaluation] * config.iterations, float("nan")
            for reference in noised_references(target, item.text, clean, generator, "bare", plan):
                image, velocity, loss = self._moved(target, prompt, reference, clean, mixture, image, velocity, weight)
                yield Candidate(prompt, x0=image, start=chosen[0], loss=loss)
            label = f"timestep {number} of {len(chosen)}"
            feedback = yield Candidate(
                prompt, x0=image.clone(), start=chosen[0], loss=loss, is_checkpoint=True, label=label
            )
            weight.update(feedback)

    def _moved(
        self,
        target: Target,
        prompt: str,
        reference: NoisedReference,
        clean: Tensor,
        mixture: Tensor,
        image: Tensor,
        velocity: Tensor,
        weight: GateWeight,
    ) -> tuple[Tensor, Tensor, float]:
        """(image, velocity, loss) after one step."""
        config, alpha = self.config, target.moments[reference.evaluation].alpha
        x = image.detach().requires_grad_(True)
        prediction = target.predict(reference.x_t + alpha * (x - clean), reference.evaluation, prompt=[prompt])
        wanted = reference.eps
        if config.objective == "ascend":
            with torch.no_grad():
                wanted = target.predict(reference.x_t, reference.evaluation, prompt=[prompt]).eps
        apart = (prediction.eps - wanted).square().mean()
        loss = with_gates(-apart if config.objective == "ascend" else apart, target, [prediction], weight)
        (slope,) = torch.autograd.grad(loss, x)
        velocity = config.momentum * velocity + slope / slope.abs().mean().clamp(min=1e-12)
        moved = x.detach() - config.step_size * velocity.sign()
        if config.radius is not None:
            moved = mixture + (moved - mixture).clamp(-config.radius, config.radius)
        return moved, velocity, float(loss.detach())


def evenly_chosen(target: Target, strength: float, count: int) -> list[int]:
    """`count` evaluations, evenly over the steps that image to image takes at that strength; each the first of its step."""
    steps = target.moments[-1].index + 1
    first = steps - max(1, int(steps * strength))
    usable = [
        moment.evaluation
        for moment in target.moments
        if moment.index >= first and target.begins_step(moment.evaluation)
    ]
    return [usable[round(index)] for index in torch.linspace(0, len(usable) - 1, count).tolist()]
