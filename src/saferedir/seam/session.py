"""Session: one pipeline call as its guards live through it. No pipeline in sight, only tensors and a
scheduler.

`hooks` feeds it the four moments of every evaluation, in this order, and it answers with what to use
instead: `before_denoiser` -> `after_denoiser` -> `before_step` -> `after_step`. Where guidance is sequential,
the first two come twice, conditional rows first. A part no guard touched is answered with the very object that
came in, so that an idle guard cannot change a bit. Imports guard, decisions, families, schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saferedir.decisions import Decision
from saferedir.encoding import Encoded
from saferedir.errors import GuardError
from saferedir.families import Family
from saferedir.guard import Guard, Run, SkipFeatures, Step
from saferedir.schedules import (
    Coefficients,
    coefficients,
    evaluation_steps,
    from_x0,
    model_input_coefficients,
    to_x0,
)
from saferedir.seam.consult import Rows, ask, checked, condition, extra_rows, extra_rows_now, fitted, riders
from saferedir.seam.denoiser_call import Conditioning
from saferedir.seam.rows import (
    changed_rows,
    check_finite,
    check_mask,
    first_channels,
    join_rows,
    negative_weight,
    split_rows,
)

#: places in `Rows` of what belongs to the unconditional half of guidance
UNCONDITIONAL = tuple(Rows._fields.index(name) for name in ("uncond", "uncond_pooled", "uncond_mask"))


#: largest share that the unconditional rows may have in a guided prediction; at guidance scales >= 1 it is not above 0
NEGATIVE_WEIGHT = 0.1


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
    ) -> None:
        self.run, self.family, self.guards = run, family, tuple(guards)
        self.failed = False
        self.finished = False
        self.evaluation = 0
        self._scheduler, self._channels = scheduler, channels
        self._offset, self._texts = offset, texts
        self._prompts: tuple[str | None, ...] = ()
        self._skips = 0
        self._timesteps = tuple(scheduler.timesteps[offset : offset + run.num_evaluations].tolist())
        self._indices = evaluation_steps(scheduler, self._timesteps)
        self._states = [ask(guard, "start", guard.start, run) for guard in self.guards]
        self._extra = [extra_rows(guard, run) for guard in self.guards]
        self._riding: list[Encoded | None] = []
        self._from_pipeline: tuple[Tensor | None, ...] = (None, None, None)
        self._own: Rows | None = None
        self._standing: Rows | None = None
        self._asked: tuple[Step, Rows, Rows] | None = None
        self._used: tuple[Rows, Rows] | None = None
        self._uncond_wanted: Rows | None = None
        self._steps: list[Step] | None = None
        self._calls = 0
        self._x0_previous: Tensor | None = None
        self._needs_x0 = any(self._users("on_prediction", "on_denoised", "on_step_end"))
        #: no guard will ever look: calls are counted and checked, and nothing is computed for them
        self._is_idle = not self._needs_x0 and not any(
            self._users("on_prompt", "on_step_start", "extra_prompts", "extra_embeds", "on_skip_features")
        )

    # --- the four moments
    # -------------------------------------------------------------------------------------

    def before_denoiser(self, latents: Tensor, given: Conditioning) -> Conditioning:
        """Conditioning to use for this call. latents (R, C, h, w): the scaled model input."""
        if self._calls:
            return self._before_unconditional(given)
        if self._is_idle:
            self._split(given.prompt)
            self._check_evaluation()
            self._steps = []
            return given
        step, own, rows = self._conditioned(latents, given)
        self._asked, self._used = None, (own, rows)
        self._uncond_wanted = rows if self.family.is_sequential else None
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
        answer = self._answer(given, own, rows)
        self._riding = [
            extra_rows_now(guard, own_step, extra)
            for guard, own_step, extra in zip(self.guards, self._steps, self._extra, strict=True)
        ]
        blocks = [block for block in self._riding if block is not None]
        if not blocks:
            return answer
        mask = None if given.mask is None else self._split(given.mask)[0]
        return answer._replace(extra=riders(blocks, Encoded(rows.cond, rows.pooled, mask)))

    def beside_denoiser(self, latents: Tensor, given: Conditioning) -> Conditioning:
        """Conditioning for a call that makes no prediction of its own: a ControlNet's, before the denoiser's, or skip-layer
        guidance, after it. It may have the conditional rows only.
        """
        if self._is_idle:
            return given
        if self._used is None:
            self._asked = self._conditioned(latents, given)
            return self._answer(given, *self._asked[1:])
        own, rows = self._used
        if not self._has_both or given.prompt.shape[0] != self.run.batch_size:
            return self._answer(given, own, rows)
        is_touched = rows.cond is not own.cond or rows.pooled is not own.pooled
        return given._replace(prompt=rows.cond, pooled=rows.pooled) if is_touched else given

    def _conditioned(self, latents: Tensor, given: Conditioning) -> tuple[Step, Rows, Rows]:
        """(step, the pipeline's rows, rows to use) of this evaluation; guards are asked once for it."""
        self._check_evaluation()
        own = self._split_conditioning(given)
        if self._asked is not None:
            step, asked, rows = self._asked
            if torch.equal(asked.cond, own.cond):
                return step, own if rows.same_as(asked) else asked, own if rows.same_as(asked) else rows
        model_input = first_channels(self._split(latents)[0], self._channels)
        timestep = self._scheduler.timesteps[self._offset + self.evaluation]
        coeffs = model_input_coefficients(self._scheduler, timestep)
        is_new = any(now is not before for now, before in zip(given[:3], self._from_pipeline, strict=True))
        if is_new and self._texts is not None:
            self._prompts = self._texts(own.cond)
        step = self._step(model_input, coeffs.like(model_input), own, given.mask)
        later = self.family.is_sequential
        if self._own is None or self._standing is None or is_new:
            self._from_pipeline, self._own = given[:3], own
            self._standing = condition("on_prompt", self.guards, self._states, step, own, uncond_later=later)
        rows = condition("on_step_start", self.guards, self._states, step, self._standing, uncond_later=later)
        return step, self._own, rows

    def _check_evaluation(self) -> None:
        if self.evaluation >= len(self._timesteps):
            raise GuardError("the denoiser was called after the last step; detach the guards to use it on its own.")

    def _answer(self, given: Conditioning, own: Rows, rows: Rows) -> Conditioning:
        if (
            rows.cond is own.cond
            and rows.pooled is own.pooled
            and (self.family.is_sequential or all(rows[i] is own[i] for i in UNCONDITIONAL))
        ):
            return given
        now = self._split_conditioning(given)
        uncond_pooled = now.uncond_pooled if rows.uncond_pooled is own.uncond_pooled else rows.uncond_pooled
        mask = given.mask
        if mask is not None and rows.uncond_mask is not own.uncond_mask and self._has_both:
            mask = self._join(self._split(mask)[0], rows.uncond_mask)
        pooled = None if rows.pooled is None else self._join(rows.pooled, uncond_pooled)
        return given._replace(prompt=self._join(rows.cond, rows.uncond), pooled=pooled, mask=mask)

    def _before_unconditional(self, given: Conditioning) -> Conditioning:
        if self._calls > 1 or not self.family.is_sequential:
            raise GuardError("the denoiser was called twice for one scheduler step; this pipeline is not supported.")
        if given.prompt.shape[0] != self.run.batch_size:
            raise GuardError("the unconditional call has another batch size than the conditional one; not supported.")
        if not self.run.guided:
            self.run = replace(self.run, guided=True)
        wanted, used = self._uncond_wanted, given
        if wanted is not None and any(wanted[i] is not None for i in UNCONDITIONAL):
            prompt = fitted(wanted.uncond, given.prompt)
            assert prompt is not None
            pooled, mask = fitted(wanted.uncond_pooled, given.pooled), fitted(wanted.uncond_mask, given.mask)
            used = given._replace(prompt=prompt, pooled=pooled, mask=mask)
        self._update_all(run=self.run, negative_prompt_embeds=used.prompt)
        return used

    def after_denoiser(self, output: Tensor) -> Tensor:
        """Take the raw rows (R + extra, C, h, w); answer what the pipeline should see, (R, C, h, w)."""
        steps = self._current()
        self._calls += 1
        if self._is_idle:
            return output
        if self._calls > 1:
            self._update_all(pred_uncond=self._signed(output))
            return output
        if not self._skips and self._users("on_skip_features"):
            raise GuardError(
                "the UNet did not show its skip features, so no image is returned; if it is compiled, attach the guards first "
                "and compile it then."
            )
        own, blocks = self._blocks(output)
        cond, uncond = self._split(own)
        pred_cond, pred_uncond = self._signed(cond), None if uncond is None else self._signed(uncond)
        self._steps = [
            replace(step, pred_cond=pred_cond, pred_uncond=pred_uncond, pred_extra=tuple(map(self._signed, block)))
            for step, block in zip(steps, blocks, strict=True)
        ]
        return own

    def skip_features(self, values: Tensor, stage: int) -> Tensor:
        """Skip features (R + extra, C, h, w) to use in one layer, amid the denoiser call."""
        steps, edited = self._current(), values
        self._skips += 1
        for position, guard in self._users("on_skip_features"):
            own, blocks = self._blocks(edited)
            cond, uncond = self._split(own)
            skip = SkipFeatures(cond, uncond, blocks[position], stage)
            answer = ask(guard, "on_skip_features", guard.on_skip_features, steps[position], skip)
            new = checked(guard, "on_skip_features", answer, cond)
            if new is not cond:
                edited = torch.cat([self._join(new, uncond), edited[own.shape[0] :]])
        return edited

    def _blocks(self, values: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """(the pipeline's own rows, the extra rows of each guard) of values (R + extra, ...) from the denoiser."""
        batch = self.run.batch_size
        at = batch * (2 if self._has_both else 1)
        own = values if values.shape[0] == at else values[:at]
        blocks = []
        for extra in self._riding:
            count = 0 if extra is None else extra.prompt.shape[0]
            blocks.append(tuple(values[at + i * batch : at + (i + 1) * batch] for i in range(count)))
            at += count * batch
        if at != values.shape[0]:
            raise GuardError(f"the denoiser returned {values.shape[0]} rows where {at} were expected.")
        return own, blocks

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
        if self.family.is_sequential and self.run.guided and not self._is_idle:
            self._check_guidance(pred)
        if not self._needs_x0:
            return pred
        coeffs = coefficients(self._scheduler, timestep).like(x_t)
        wide = x_t.float()
        self._update_all(x_t=x_t, alpha=coeffs.alpha, sigma=coeffs.sigma)
        if steps[0].pred_uncond is not None:
            x0_uncond = self._x0(steps[0].pred_uncond, wide, coeffs)
            self._update_all(x0_uncond=x0_uncond)
        self._update_all(pred=pred, x0=self._x0(pred, wide, coeffs))
        edited = pred
        for position, guard in self._users("on_prediction"):
            step = self._current()[position]
            new = checked(guard, "on_prediction", ask(guard, "on_prediction", guard.on_prediction, step), edited)
            if new is not edited:
                edited = new
                self._update_all(pred=edited, x0=self._x0(edited, wide, coeffs))
        for position, guard in self._users("on_denoised"):
            step = self._current()[position]
            x0 = step.x0
            assert x0 is not None
            new = checked(guard, "on_denoised", ask(guard, "on_denoised", guard.on_denoised, step, x0), x0)
            if new is not x0:
                meant = from_x0(self.run.prediction_type, new, wide, coeffs.alpha, coeffs.sigma).to(edited.dtype)
                edited = torch.where(changed_rows(new, x0), meant, edited)
                self._update_all(pred=edited, x0=new)
        if edited is not pred:
            check_finite(edited, "the prediction edited by a guard")
        return edited

    def after_step(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to go on with; closes the evaluation and, after the last one, the run."""
        steps = self._current()
        edited = latents
        for position, guard in self._users("on_step_end"):
            answer = ask(guard, "on_step_end", guard.on_step_end, steps[position], edited)
            edited = checked(guard, "on_step_end", answer, edited)
        check_finite(edited, "the latents after a step")
        self._x0_previous = steps[0].x0 if steps else None
        self._steps, self._asked, self._used, self._calls, self._skips = None, None, None, 0, 0
        self.evaluation += 1
        self.finished = self.evaluation == len(self._timesteps)
        return edited

    def verdicts(self) -> list[list[Decision]]:
        """One list of B decisions per guard, in the order of the guards. Only after the last step."""
        if not self.finished or self.failed:
            raise GuardError("the run has not finished, so there are no decisions; run the pipeline again.")
        found = []
        for guard, state in zip(self.guards, self._states, strict=True):
            decisions = ask(guard, "verdict", guard.verdict, self.run, state)
            if len(decisions) != self.run.batch_size:
                raise GuardError(
                    f"guard {guard.method!r} returned {len(decisions)} decisions for {self.run.batch_size} images."
                )
            found.append(list(decisions))
        return found

    def _check_guidance(self, pred: Tensor) -> None:
        """Raise if the negative prompt draws the image: some pipelines let its weight be positive (Wan 2.2's second scale)."""
        step = self._current()[0] if self._steps else None
        if step is None or step.pred_uncond is None or step.pred_cond is None:
            return
        if bool((negative_weight(pred, step.pred_cond, step.pred_uncond) > NEGATIVE_WEIGHT).any()):
            raise GuardError(
                "guidance below 1 makes the negative prompt draw the image, past the guards; use a guidance scale of 1 or more."
            )

    # --- rows and steps
    # ---------------------------------------------------------------------------------------

    def _users(self, *points: str) -> list[tuple[int, Guard[Any]]]:
        return [(i, guard) for i, guard in enumerate(self.guards) if any(guard.uses(point) for point in points)]

    def _step(self, model_input: Tensor, coeffs: Coefficients, rows: Rows, mask: Tensor | None) -> Step:
        if mask is None:
            prompt_mask = torch.ones(rows.cond.shape[:2], dtype=torch.bool, device=rows.cond.device)
        else:
            check_mask(mask)
            prompt_mask = self._split(mask)[0].bool()
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
            prompts=self._prompts,
        )

    def _current(self) -> list[Step]:
        if self._steps is None:
            raise GuardError(
                "the scheduler stepped without a guarded denoiser call before it; if the denoiser was "
                "replaced, "
                "attach the guards anew."
            )
        return self._steps

    def _update_all(self, **values: Any) -> None:
        self._steps = [replace(step, **values) for step in self._current()]

    def _x0(self, pred: Tensor, x_t: Tensor, coeffs: Coefficients) -> Tensor:
        return to_x0(self.run.prediction_type, pred.float(), x_t, coeffs.alpha, coeffs.sigma)

    def conditional(self, rows: Tensor) -> Tensor:
        """The conditional rows (B, ...) of rows (R, ...)."""
        return self._split(rows)[0]

    @property
    def _has_both(self) -> bool:
        """Whether one call has the rows of both halves of guidance."""
        return self.run.guided and not self.family.is_sequential

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        return split_rows(rows, self.run.batch_size, self._has_both, self.family.cfg_layout)

    def _join(self, cond: Tensor, uncond: Tensor | None) -> Tensor:
        return join_rows(cond, uncond if self._has_both else None, self.family.cfg_layout)

    def _split_conditioning(self, given: Conditioning) -> Rows:
        """Rows of the pipeline."""
        cond, uncond = self._split(given.prompt)
        pooled, uncond_pooled = (None, None) if given.pooled is None else self._split(given.pooled)
        return Rows(cond, uncond, pooled, uncond_pooled, None if given.mask is None else self._split(given.mask)[1])
