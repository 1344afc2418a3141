"""Dual latent R2: two latents, one under the user's prompt and one under a safe prompt, merged into one.

Implements reconstruction R2 of "Safety without semantic disruptions" (arXiv:2411.13982). Derived in
docs/methods/dual_latent.md (7) to (11). The equations of the paper are unknown:
this is ours, and its numbers are not the paper's. Latents z_u, z_s (B, C, h, w), N steps, i of them:

  i_s = round(tau N)      z_s begins as a copy of z_u, with a scheduler of its own; both take the same steps, each under its own
                          guidance, with the same noise where the scheduler samples some
  i_m = i_s + round(dual_fraction N)      z = merge(z_u, z_s; w), past predictions (1 - w) m_u + w m_s;  one latent from here
                          on, under the safe prompt (after="safe"), a blend as in R1 ("blend"), or the user's ("user")

Rows of a call under guidance: 4 between split and merge, 3 in the very first of these steps, where the latents are still one,
else 2, or 3 after the merge with after="blend" and where prompts have masks. Nothing at all is done for w = 0. The noise of a
scheduler is sampled once.

Choices: at least one step has two latents, and at least the last has one, so a context phase up to the
last step leaves the image alone and a run of one step is refused; tau_mode "similarity" limits w once, at the merge, the split
is then at the first step. After the merge the safe prompt takes the user's place in the very rows, but where prompts have masks
(PixArt, Sana, Lumina) it is a third row of weight 1. The safe stream is guided by the weights that the image's prediction
shows, which are means where a pipeline guides its channels differently or normalises (Lumina, Lumina 2). It has the image's
ControlNet residuals; guards that edit predictions get the user's latent alone until the merge, and so does skip-layer guidance.
What an inpainting pipeline overwrites between two steps it overwrites in both latents. Correctors (UniPC, SA-Solver) restart
from latents merged by the same operator one level before. Schedulers of several stages a step are refused (`pipelines.solver`).
In a run with `retry_level` those images are split at the first step and 1 - w is halved at each level.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardError
from saferedir.guards.base import Conditioning, GuardConfig, Run, SecondLatents, Step
from saferedir.guards.dual_latent.base import DualLatent, Levels
from saferedir.guards.dual_latent.config import DualLatentR2Config
from saferedir.guards.dual_latent.merging import Stream, merge
from saferedir.guards.dual_latent.similarity import largest_level, low_pass
from saferedir.guards.guidance import guidance_weight, guided_alike
from saferedir.pipelines.conditioning import PromptEmbeds
from saferedir.pipelines.families import FAMILIES
from saferedir.pipelines.schedules import to_x0
from saferedir.pipelines.solver import Fork
from saferedir.utils.broadcast import per_sample
from saferedir.utils.device import to_host


@dataclass
class DualLatentR2State:
    """State of one run; tensors have B rows. `safe`: the safe stream between two steps, its latents with the last x0.

    Who is split and merged when is known on the CPU, whatever the run's device.
    """

    levels: Levels
    split: Tensor  # step of the split, -1 before it
    merge: Tensor  # step of the merge
    is_swapped: bool = False  # whether the safe prompt has taken the user's place in this call
    fork: Fork | None = None
    safe: Stream | None = None
    used: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # levels (B,), and whose were used (B,)

    def is_dual(self, index: int) -> Tensor:
        """(B,) bool: images that have two latents in this step."""
        return (self.split >= 0) & (index < self.merge)

    def is_after(self, index: int) -> Tensor:
        """(B,) bool: images whose latents were merged before this step."""
        return (self.split >= 0) & (index >= self.merge)


class DualLatentR2(DualLatent[DualLatentR2Config]):
    """The guard. safe_prompt_embeds (L, D), safe_pooled_embeds (P,): the weights of the provider "learned"."""

    method: ClassVar[str] = "dual_latent_r2"
    config_class: ClassVar[type[GuardConfig]] = DualLatentR2Config
    replaces_step = True

    def start(self, run: Run) -> DualLatentR2State:
        levels = self.levels(run)
        if run.num_steps < 2 and bool((levels.known_w > 0).any()):
            raise GuardError(
                f"guard {self.method!r} splits the latents in one step and goes on with one in a later step, so it cannot guard "
                "a run of one step; take more steps, or dual_latent_r1."
            )
        nowhere = torch.full((run.batch_size,), -1)
        return DualLatentR2State(levels, nowhere, nowhere)

    def on_step_start(self, step: Step) -> Tensor | Conditioning:
        state = self._at(step)
        state.is_swapped = False
        rows = state.is_after(step.index)
        if self.config.after != "safe" or not bool(rows.any()):
            return step.prompt_embeds
        rows = state.levels.on_device(rows)
        safe = self.safe_row(step, state.levels.texts).rows(0)
        is_masked = FAMILIES[step.run.family].mask_kwarg is not None
        if is_masked or safe.prompt.shape != step.prompt_embeds.shape:
            return step.prompt_embeds
        state.is_swapped = True
        prompt = torch.where(rows[:, None, None], safe.prompt.to(step.prompt_embeds), step.prompt_embeds)
        pooled = step.pooled
        if pooled is not None and safe.pooled is not None:
            pooled = torch.where(rows[:, None], safe.pooled.to(pooled), pooled)
        return step.conditioning.with_cond(prompt=prompt, pooled=pooled)

    def extra_embeds(self, step: Step, extra: PromptEmbeds | None) -> PromptEmbeds | None:
        state = self._at(step)
        has_safe_row = state.is_dual(step.index)
        if self.config.after != "user" and not state.is_swapped:
            has_safe_row = has_safe_row | state.is_after(step.index)
        return self.safe_row(step, state.levels.texts) if bool(has_safe_row.any()) else None

    def extra_latents(self, step: Step) -> SecondLatents | None:
        state: DualLatentR2State = step.state
        rows = state.is_dual(step.index) & (state.split < step.index)
        if state.safe is None or not bool(rows.any()):
            return None
        return SecondLatents(state.safe.z, state.levels.on_device(rows))

    def on_prediction(self, step: Step) -> Tensor:
        state: DualLatentR2State = step.state
        assert step.pred is not None and step.pred_cond is not None
        dual, after = state.is_dual(step.index), state.is_after(step.index)
        state.levels.tally.count(state.levels.on_device(dual if self.config.after == "user" else dual | after), step)
        if not step.pred_extra:
            return step.pred
        if bool(dual.any()):
            self._advance(step, state)
        if self.config.after == "user" or state.is_swapped or not bool(after.any()):
            return step.pred
        w = state.levels.w if self.config.after == "blend" else torch.ones_like(state.levels.w)
        shift = guidance_weight(step) * (step.pred_extra[0].float() - step.pred_cond.float())
        return torch.where(
            per_sample(state.levels.on_device(after), shift),
            step.pred.float() + per_sample(w, shift) * shift,
            step.pred.float(),
        )

    def on_step_end(self, step: Step, latents: Tensor) -> Tensor:
        state: DualLatentR2State = step.state
        rows = state.is_dual(step.index) & (state.merge == step.index + 1)
        if state.safe is None or state.fork is None or not bool(rows.any()):
            return latents
        assert step.x0 is not None and step.run.solver is not None
        w, x0, safe = state.levels.w, step.x0, state.safe
        merging = state.levels.on_device(rows)
        if self.config.tau_mode == "similarity":
            ceiling = largest_level(low_pass(x0), low_pass(safe.x0), self.config.tau)
            w = torch.where(state.levels.is_retried, w, torch.minimum(w, ceiling))
        state.used.append((w.detach(), rows))
        weights = torch.where(merging, w, 0.0)

        def at(alpha: Tensor, sigma: Tensor, user: Tensor, other: Tensor) -> Tensor:
            return merge(self.config.merge, Stream(user, x0), Stream(other, safe.x0), weights, alpha, sigma)

        state.fork.hand_over(weights, lambda user, other: at(step.alpha, step.sigma, user, other))
        merged = at(*step.run.solver.next_level(latents), latents, safe.z).to(latents)
        if not bool((state.merge > step.index + 1).any()):
            state.fork, state.safe = None, None
        return torch.where(per_sample(weights > 0, latents), merged, latents)

    def _at(self, step: Step) -> DualLatentR2State:
        """The state, with the images noted that are split at this step; asking twice changes nothing."""
        state: DualLatentR2State = step.state
        levels, last = state.levels, step.num_steps - 1
        begins = (state.split < 0) & (levels.known_w > 0) & (levels.known_is_retried | self.is_dual(step))
        if step.index < last and bool(begins.any()):
            length = max(1, round(self.config.dual_fraction * step.num_steps))
            state.split = torch.where(begins, step.index, state.split)
            state.merge = torch.where(begins, min(step.index + length, last), state.merge)
        return state

    def _advance(self, step: Step, state: DualLatentR2State) -> None:
        """Take this step with the safe latents; those of images that are split now are still the image's own."""
        assert step.run.solver is not None
        uncond = step.pred_uncond if step.extra_latents is None else step.pred_extra_uncond
        pred = guided_alike(step, step.pred_extra[0], uncond)
        latents = step.x_t if step.extra_latents is None else step.extra_latents
        if state.fork is None:
            state.fork = step.run.solver.fork()
        elif bool((state.split == step.index).any()):
            state.fork.follow(state.levels.on_device(state.split == step.index))
        x0 = to_x0(step.run.prediction_type, pred, latents.float(), step.alpha, step.sigma)
        state.safe = Stream(state.fork.step(pred, latents), x0)

    def verdict(self, run: Run, state: DualLatentR2State) -> list[Decision]:
        message = "A second latent under a safe prompt was merged into the image's."
        if self.config.tau_mode == "similarity" and state.used:
            levels = to_host(*(values for values, _ in state.used))
            w = torch.cat([values[rows] for values, (_, rows) in zip(levels, state.used, strict=True)])
            message = f"{message} Levels used in this run: mean {float(w.mean()):.3g}, highest {float(w.max()):.3g}."
        return state.levels.tally.decisions(self.method, self.config, "edited", message, {"tau": self.config.tau})
