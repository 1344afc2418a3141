"""Session: one pipeline call as its guards live through it. No pipeline in sight, only tensors and a scheduler.

`seam` feeds it the four moments of every evaluation, in this order, and it answers with what to use instead:
`before_denoiser` -> `after_denoiser` -> `before_step` -> `after_step`. Where guidance is sequential, the first two come
twice, conditional rows first. A part no guard touched is answered with the very object that came in, so that an idle
guard cannot change a bit. What the denoiser is given is in conditions.py, extra rows in riding.py, what guards make of
the rest in edits.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.errors import GuardError
from saferedir.guards.base import Guard, Run, Step
from saferedir.guards.gates import Gate
from saferedir.pipelines.encoding import Encoded
from saferedir.pipelines.families import Family
from saferedir.pipelines.schedules import coefficients, evaluation_steps, model_input_coefficients
from saferedir.seam.conditions import Conditions
from saferedir.seam.consult import Rows, ask, decisions_of, users
from saferedir.seam.denoiser_call import Conditioning
from saferedir.seam.edits import edited_latents, edited_prediction, edited_skip_features, told
from saferedir.seam.riding import ExtraRows
from saferedir.seam.rows import Layout, check_finite, check_guidance, check_mask, first_channels


class Session:
    """State of one run. Made at its first denoiser call, thrown away with the next run.

    `channels`: latent channels C of the sampler; a denoiser may take more (masks) or return more (variances).
    `offset`: index of the run's first evaluation in the scheduler's timesteps. `texts`: the prompts of embeddings (B, L, D),
    where a guard needs them.
    """

    def __init__(
        self,
        run: Run,
        family: Family,
        guards: Sequence[Guard[Any]],
        scheduler: Any,
        channels: int,
        offset: int = 0,
        texts: Callable[[Tensor], tuple[str | None, ...]] | None = None,
        first: int = 0,
    ) -> None:
        self.run, self.family, self.guards = run, family, tuple(guards)
        self.failed = False
        self.finished = False
        #: whether a guard has edited skip features, a prediction or latents in an evaluation up to now
        self.has_edited = False
        self.evaluation = first
        self._scheduler, self._channels = scheduler, channels
        self._offset, self._skips = offset, 0
        self._timesteps = tuple(scheduler.timesteps[offset : offset + run.num_evaluations].tolist())
        self._indices = evaluation_steps(scheduler, self._timesteps)
        self._states = [ask(guard, "start", guard.start, run) for guard in self.guards]
        self.layout = Layout(run.batch_size, run.guided and not family.is_sequential, family.cfg_layout)
        self._extra = ExtraRows(self.guards, run, self.layout)
        self._conditions = Conditions(self.guards, self._states, family, self.layout, texts)
        self._steps: list[Step] | None = None
        self._calls = 0
        self._x0_previous: Tensor | None = None
        self._needs_x0 = bool(users(self.guards, "on_prediction", "on_denoised", "on_step_end"))
        #: no guard will ever look: calls are counted and checked, and nothing is computed for them
        self.is_idle = not self._needs_x0 and not users(
            self.guards, "on_prompt", "on_step_start", "extra_prompts", "extra_embeds", "on_skip_features"
        )

    @property
    def position(self) -> str:
        """Which denoiser call of a step comes next: "first", or "second" where guidance has a call of its own."""
        return "second" if self._calls else "first"

    def end_guidance(self) -> None:
        """The pipeline goes on without guidance: its calls have conditional rows only from now on, as guards are told."""
        if self._calls or self.family.is_sequential:
            return
        self.run = replace(self.run, guided=False)
        self.layout = self.layout._replace(has_both=False)
        self._extra.change_layout(self.layout)
        self._conditions.change_layout(self.layout)

    # --- the four moments
    # -------------------------------------------------------------------------------------

    def before_denoiser(self, latents: Tensor, given: Conditioning) -> Conditioning:
        """Conditioning to use for this call. latents (R, C, h, w): the scaled model input."""
        if self._calls:
            return self._before_unconditional(given)
        if self.is_idle:
            self.layout.split(given.prompt)
            self._check_evaluation()
            self._steps = []
            return given
        step, rows, answer = self._conditions.proper(given, partial(self._step, latents, given.mask))
        self._steps = [
            replace(
                step,
                state=state,
                prompt_embeds=rows.cond,
                negative_prompt_embeds=rows.uncond,
                pooled=rows.pooled,
            )
            for state in self._states
        ]
        extra = self._extra.first(self._steps, *self._conditions.halves(given, rows))
        return answer if extra is None else answer._replace(extra=extra)

    def beside_denoiser(self, latents: Tensor, given: Conditioning) -> Conditioning:
        """Conditioning for a call that makes no prediction of its own: a ControlNet's, before the denoiser's, or skip-layer
        guidance, after it. It may have the conditional rows only.
        """
        if self.is_idle:
            return given
        return self._conditions.beside(given, partial(self._step, latents, given.mask))

    def _check_evaluation(self) -> None:
        if self.evaluation >= len(self._timesteps):
            raise GuardError("the denoiser was called after the last step; detach the guards to use it on its own.")

    def _before_unconditional(self, given: Conditioning) -> Conditioning:
        if self._calls > 1 or not self.family.is_sequential:
            raise GuardError("the denoiser was called twice for one scheduler step; this pipeline is not supported.")
        used = self._conditions.later(given)
        if not self.run.guided:
            self.run = replace(self.run, guided=True)
        self._steps = told(self._current(), run=self.run, negative_prompt_embeds=used.prompt)
        extra = self._extra.second(Encoded(used.prompt, used.pooled, used.mask))
        return used if extra is None else used._replace(extra=extra)

    def after_denoiser(self, output: Tensor) -> Tensor:
        """Take the raw rows (R + extra, C, h, w); answer what the pipeline should see, (R, C, h, w)."""
        steps = self._current()
        self._calls += 1
        if self.is_idle:
            return output
        if self._calls > 1:
            own, blocks = self._extra.split(output, is_second=True)
            uncond = self._signed(own)
            self._steps = [
                replace(step, pred_uncond=uncond, pred_extra_uncond=self._signed(block[0]) if block else None)
                for step, block in zip(steps, blocks, strict=True)
            ]
            return own
        if not self._skips and users(self.guards, "on_skip_features"):
            raise GuardError(
                "the UNet did not show its skip features, so no image is returned; if it is compiled, attach the guards first "
                "and compile it then."
            )
        own, blocks = self._extra.split(output, is_second=False)
        pred_cond, pred_uncond = (None if half is None else self._signed(half) for half in self.layout.split(own))
        self._steps = []
        for step, count, block in zip(steps, self._extra.copies, blocks, strict=True):
            rows = tuple(map(self._signed, block))
            last = rows[count] if len(rows) > count else None
            step = replace(step, pred_cond=pred_cond, pred_uncond=pred_uncond)
            self._steps.append(replace(step, pred_extra=rows[:count], pred_extra_uncond=last) if rows else step)
        return own

    def skip_features(self, values: Tensor, stage: int) -> Tensor:
        """Skip features (R + extra, C, h, w) to use in one layer, amid the denoiser call."""
        steps = self._current()
        self._skips += 1
        edited = edited_skip_features(self.guards, steps, values, stage, self.layout, self._extra)
        self.has_edited |= edited is not values
        return edited

    def _signed(self, rows: Tensor) -> Tensor:
        """Rows of the denoiser's output as the scheduler will understand them."""
        rows = first_channels(rows, self._channels)
        return rows if self.family.sign == 1.0 else rows * self.family.sign

    def before_step(self, pred: Tensor, timestep: Tensor | float, x_t: Tensor) -> Tensor:
        """Model output to hand to the scheduler. pred, x_t (B, C, h, w) in the sampler's own frame."""
        steps = self._current()
        expected = self._timesteps[self.evaluation]
        if not self._calls:
            raise GuardError("the scheduler stepped without a guarded denoiser call before it; attach the guards anew.")
        if float(timestep) != expected:
            raise GuardError(
                f"the scheduler stepped at t={float(timestep)} where t={expected} was due; was the "
                f"scheduler changed "
                "in the middle of a run? Change it between pipeline calls."
            )
        if x_t.shape[0] != self.run.batch_size:
            raise GuardError(f"the scheduler got {x_t.shape[0]} latents in a run of {self.run.batch_size} images.")
        check_finite(pred, "the denoiser's prediction")
        if self.family.is_sequential and self.run.guided and steps:
            check_guidance(pred, steps[0].pred_cond, steps[0].pred_uncond)
        if not self._needs_x0:
            return pred
        coeffs = coefficients(self._scheduler, timestep).like(x_t)
        steps = told(steps, x_t=x_t, alpha=coeffs.alpha, sigma=coeffs.sigma)
        edited, self._steps = edited_prediction(self.guards, self._extra.with_latents(steps, x_t), pred)
        self.has_edited |= edited is not pred
        return edited

    def after_step(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to go on with; closes the evaluation and, after the last one, the run."""
        steps = self._current()
        edited = edited_latents(self.guards, steps, latents)
        self.has_edited |= edited is not latents
        check_finite(edited, "the latents after a step")
        self._x0_previous = steps[0].x0 if steps else None
        self._extra.keep(edited)
        self._steps, self._calls, self._skips = None, 0, 0
        self._conditions.close()
        self.evaluation += 1
        self.finished = self.evaluation == len(self._timesteps)
        return edited

    def verdicts(self) -> list[list[Decision]]:
        """One list of B decisions per guard, in the order of the guards. Only after the last step."""
        if not self.finished or self.failed:
            raise GuardError("the run has not finished, so there are no decisions; run the pipeline again.")
        return [decisions_of(guard, self.run, state) for guard, state in zip(self.guards, self._states, strict=True)]

    def gates(self) -> dict[str, Gate]:
        """ "<guard>.<gate>" -> gate, as the guards left them; a second guard of one method is "<guard>-2"."""
        found: dict[str, Gate] = {}
        met: Counter[str] = Counter()
        for guard, state in zip(self.guards, self._states, strict=True):
            met[guard.method] += 1
            name = guard.method if met[guard.method] == 1 else f"{guard.method}-{met[guard.method]}"
            found |= {f"{name}.{key}": gate for key, gate in guard.gates(state).items()}
        return found

    # --- rows and steps
    # ---------------------------------------------------------------------------------------

    def _step(self, latents: Tensor, mask: Tensor | None, rows: Rows, prompts: tuple[str | None, ...]) -> Step:
        """This moment, before the denoiser call with model input `latents` (R, C, h, w) and `mask` (R, L)."""
        self._check_evaluation()
        model_input = first_channels(self.layout.split(latents)[0], self._channels)
        timestep = self._scheduler.timesteps[self._offset + self.evaluation]
        coeffs = model_input_coefficients(self._scheduler, timestep).like(model_input)
        if mask is None:
            prompt_mask = torch.ones(rows.cond.shape[:2], dtype=torch.bool, device=rows.cond.device)
        else:
            check_mask(mask)
            prompt_mask = self.layout.split(mask)[0].bool()
        time = self.run.timesteps[self.evaluation]
        return Step(
            run=self.run,
            state=None,
            index=self._indices[self.evaluation],
            evaluation=self.evaluation,
            num_steps=self.run.num_steps,
            t=torch.full((self.run.batch_size,), time, dtype=torch.float32, device=model_input.device),
            alpha=coeffs.alpha,
            sigma=coeffs.sigma,
            x_t=model_input,
            model_input=model_input,
            prompt_embeds=rows.cond,
            negative_prompt_embeds=rows.uncond,
            pooled=rows.pooled,
            prompt_mask=prompt_mask,
            guidance_scale=self.run.guidance_scale,
            x0_previous=self._x0_previous,
            prompts=prompts,
        )

    def _current(self) -> list[Step]:
        if self._steps is None:
            raise GuardError(
                "the scheduler stepped without a guarded denoiser call before it; if the denoiser was "
                "replaced, "
                "attach the guards anew."
            )
        return self._steps
