"""Session: one pipeline call as its guards live through it. No pipeline in sight, only tensors and a scheduler.

`seam` feeds it the four moments of every evaluation, in this order, and it answers with what to use instead:
`before_denoiser` -> `after_denoiser` -> `before_step` -> `after_step`. Where guidance is sequential, the first two come
twice, conditional rows first. A part no guard touched is answered with the very object that came in, so that an idle
guard cannot change a bit. What the denoiser is given is in conditions.py, extra rows in extra_rows.py, what guards make of
the rest in guard_calls.py.
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
from saferedir.guards.base import Guard, Run
from saferedir.guards.gates import Gate
from saferedir.pipelines.conditioning import Conditioning, PromptEmbeds
from saferedir.pipelines.denoiser_call import Edit, Layout
from saferedir.pipelines.families import Family
from saferedir.pipelines.families.facts import Part
from saferedir.pipelines.schedules import (
    Coefficients,
    coefficients,
    evaluation_steps,
    scaled_for_model,
    trigflow_output,
)
from saferedir.seam.conditions import Conditions
from saferedir.seam.extra_rows import ExtraRows
from saferedir.seam.guard_calls import (
    EARLY_POINTS,
    LATE_POINTS,
    Steps,
    call_guard,
    check_finite,
    check_mask,
    decisions_of,
    edited_attention,
    edited_latents,
    edited_prediction,
    edited_skip_features,
    users_of,
)
from saferedir.seam.texts import RowTexts
from saferedir.utils.device import is_readable, refuse
from saferedir.utils.host_copies import on_host

#: largest share that the unconditional rows may have in a guided prediction; at guidance scales >= 1 it is not above 0
NEGATIVE_WEIGHT = 0.1
#: of guards that are never asked
_NO_STEPS = Steps(())


class Session:
    """State of one run. Made at its first denoiser call, thrown away with the next run.

    `channels`: latent channels C of the sampler; a denoiser may take more (masks) or return more (variances).
    `offset`: index of the run's first evaluation in the scheduler's timesteps. `texts`: what is known of the texts of
    a conditioning, where a guard needs them. `parts`: blocks of rows of its denoiser calls, where they are not the family's.
    """

    def __init__(
        self,
        run: Run,
        family: Family,
        guards: Sequence[Guard[Any]],
        scheduler: Any,
        channels: int,
        offset: int = 0,
        texts: Callable[[Conditioning], RowTexts] | None = None,
        first: int = 0,
        parts: tuple[Part, ...] | None = None,
    ) -> None:
        self.run, self.family, self.guards = run, family, tuple(guards)
        self.failed = False
        self.finished = False
        #: whether a guard has edited skip features, a prediction or latents in an evaluation up to now
        self.has_edited = False
        self.evaluation = first
        self._scheduler, self._channels = scheduler, channels
        self._offset, self._skips, self._attentions = offset, 0, 0
        self._timesteps = tuple(on_host(scheduler.timesteps)[offset : offset + run.num_evaluations].tolist())
        self._indices = evaluation_steps(scheduler, self._timesteps)
        self._states = [call_guard(guard, "start", guard.start, run) for guard in self.guards]
        self._users = users_of(self.guards)
        self.layout = Layout(run.batch_size, parts or family.parts(is_guided=run.guided))
        self._extra = ExtraRows(
            self.guards,
            run,
            self.layout,
            has_mask=family.mask_kwarg is not None,
            may_lengthen=not family.padding_is_read,
        )
        self._conditions = Conditions(
            self._users,
            self.layout,
            is_sequential=family.is_sequential,
            has_set_lengths=family.has_set_lengths,
            texts=texts,
        )
        self._steps: Steps | None = None
        self._frame: Coefficients | None = None  # of this evaluation's latents
        self._calls = 0
        self._x0_previous: Tensor | None = None
        self._needs_x0 = any(self._users[point] for point in LATE_POINTS)
        self._is_asked_early = any(self._users[point] for point in EARLY_POINTS)
        #: no guard will ever be asked: calls are counted and checked, and nothing is computed for them
        self.is_idle = not self._needs_x0 and not self._is_asked_early

    @property
    def position(self) -> str:
        """Which denoiser call of a step comes next: "first", or "second" where guidance has a call of its own."""
        return "second" if self._calls else "first"

    def end_guidance(self) -> None:
        """The pipeline goes on without guidance: its calls, and what guards are given, have conditional rows only from now on."""
        if self._calls or self.family.is_sequential:
            return
        if len(self.layout.parts) > 2:
            raise GuardError(
                "guidance with three parts ended in the middle of the run; guarded, leave it on to the end."
            )
        self.run = replace(self.run, guided=False)
        self.layout = self.layout._replace(parts=("cond",))
        self._extra.change_layout(self.layout)
        self._conditions.change_layout(self.layout)

    # --- the four moments
    # -------------------------------------------------------------------------------------

    def before_denoiser(self, latents: Tensor, embeds: PromptEmbeds) -> Edit | None:
        """What to write into this call, None for nothing. latents (R, C, h, w): the scaled model input."""
        if self._calls:
            return self._before_unconditional(embeds)
        if self.is_idle:
            self.layout.check(embeds.prompt)
            self._check_evaluation()
            self._steps = _NO_STEPS
            return None
        asked = self._conditions.before_prediction(embeds, partial(self._make_steps, latents, embeds.mask))
        self._steps = asked.steps
        edit = self._conditions.edit(embeds, asked)
        used = asked.used if edit is None else edit.used
        extra = self._extra.first(asked.steps, used)
        if extra is None:
            return edit
        return (edit or Edit(used, used, self.layout))._replace(extra=extra)

    def before_auxiliary(self, latents: Tensor, embeds: PromptEmbeds) -> Edit | None:
        """What to change in a call that makes no prediction of its own, which may have the conditional rows only.

        That is a ControlNet's, before the denoiser's, or skip-layer guidance, after it.
        """
        if self.is_idle:
            return None
        return self._conditions.before_auxiliary(embeds, partial(self._make_steps, latents, embeds.mask))

    def _check_evaluation(self) -> None:
        if self.evaluation >= len(self._timesteps):
            raise GuardError("the denoiser was called after the last step; detach the guards to use it on its own.")

    def _before_unconditional(self, embeds: PromptEmbeds) -> Edit | None:
        if self._calls > 1 or not self.family.is_sequential:
            raise GuardError("the denoiser was called twice for one scheduler step; this pipeline is not supported.")
        used = self._conditions.before_unconditional(embeds)
        if not self.run.guided:
            self.run = replace(self.run, guided=True)
        steps = self._current()
        if steps.facts:
            steps.update(run=self.run, conditioning=steps.facts["conditioning"]._replace(uncond=used))
        extra = self._extra.second(used)
        if used is embeds and extra is None:
            return None
        return Edit(Conditioning(embeds), Conditioning(used), self.layout, extra)

    def after_denoiser(self, output: Tensor) -> Tensor:
        """Take the raw rows (R + extra, C, h, w); answer what the pipeline should see, (R, C, h, w)."""
        steps = self._current()
        self._calls += 1
        if self.is_idle:
            return output
        is_second = self._calls > 1
        if not is_second and self._users["on_skip_features"] and not self._skips:
            raise GuardError(
                "the UNet did not show its skip features, so no image is returned; if it is compiled, attach the guards first "
                "and compile it then."
            )
        if not is_second and self._users["on_attention"] and not self._attentions:
            raise GuardError(
                "no layer of the denoiser showed its attention to the prompt, so no image is returned; if it is compiled, attach "
                "the guards first and compile it then; if it keeps image and prompt in one sequence, use another guard."
            )
        image_rows, blocks = self._extra.blocks(output, is_second=is_second)
        if is_second:
            steps.update(pred_uncond=self._signed(image_rows))
        else:
            steps.renew()  # what guards were given before the call knows no prediction, and shall not
            cond, uncond = self.layout.split(image_rows)
            steps.update(pred_cond=self._signed(cond), pred_uncond=None if uncond is None else self._signed(uncond))
        for position, block in enumerate(blocks):
            rows = tuple(map(self._signed, block))
            conditional = () if is_second else self._extra.conditional(position, rows)
            if conditional:
                steps.update_of(position, pred_extra=conditional)
            if len(rows) > len(conditional):
                steps.update_of(position, pred_extra_uncond=rows[-1])
        return image_rows

    def skip_features(self, values: Tensor, stage: int) -> Tensor:
        """Skip features (R + extra, C, h, w) to use in one layer, amid the denoiser call."""
        steps, edited = self._current(), values
        self._skips += 1
        for position, guard in self._users["on_skip_features"]:
            image_rows, blocks = self._extra.blocks(edited, is_second=False)
            extra = self._extra.conditional(position, blocks[position])
            edited = edited_skip_features(guard, steps.of(position), edited, image_rows, extra, stage, self.layout)
        self.has_edited |= edited is not values
        return edited

    def attention(self, values: Tensor) -> Tensor:
        """Attention features (R + extra, N, D) to use in one layer, amid the denoiser call; of later calls, as they are."""
        if self._calls:
            return values  # the unconditional rows, where they come in a call of their own
        image_rows, blocks = self._extra.blocks(values, is_second=False)
        cond, uncond = self.layout.split(image_rows)
        edited = edited_attention(self._users, self._current(), cond, uncond, blocks, self._attentions)
        self._attentions += 1
        if edited is cond:
            return values
        self.has_edited = True
        followers = {position for position, _ in self._users["on_attention"]}
        rows = [self.layout.with_cond(image_rows, edited)]
        for position, block in enumerate(blocks):
            rows += [edited] * len(block) if position in followers else block
        return torch.cat(rows)

    def _signed(self, rows: Tensor) -> Tensor:
        """Rows of the denoiser's output as the scheduler will understand them."""
        rows = first_channels(rows, self._channels)
        if self.run.prediction_type.startswith("trigflow:"):
            frame = coefficients(self._scheduler, self._time()).like(rows)
            return trigflow_output(self.run.prediction_type, rows.float(), self._current().facts["model_input"], *frame)
        return rows if self.family.sign == 1.0 else rows * self.family.sign

    def before_step(self, pred: Tensor, timestep: Tensor | float, x_t: Tensor) -> Tensor:
        """Model output to hand to the scheduler. pred, x_t (B, C, h, w) in the sampler's own frame."""
        steps = self._current()
        if not self._calls:
            raise GuardError("the scheduler stepped without a guarded denoiser call before it; attach the guards anew.")
        self._check_timestep(timestep)
        if x_t.shape[0] != self.run.batch_size:
            raise GuardError(f"the scheduler got {x_t.shape[0]} latents in a run of {self.run.batch_size} images.")
        check_finite(pred, "the denoiser's prediction")
        if self.family.is_sequential and self.run.guided and steps.facts:
            check_guidance(pred, steps.facts.get("pred_cond"), steps.facts.get("pred_uncond"))
        if not self._needs_x0:
            return pred
        moment = self._frame or coefficients(self._scheduler, self._time())
        frame = moment.like(x_t)
        steps.update(x_t=x_t, alpha=frame.alpha, sigma=frame.sigma, frame=moment)
        self._extra.add_latents(steps, x_t)
        edited = edited_prediction(self._users, steps, pred)
        self.has_edited |= edited is not pred
        return edited

    def _time(self) -> Tensor:
        """The scheduler's timestep of this evaluation, on the CPU."""
        timestep: Tensor = on_host(self._scheduler.timesteps)[self._offset + self.evaluation]
        return timestep

    def _check_timestep(self, timestep: Tensor | float) -> None:
        """Raise, now or at the end of the run, where the scheduler steps at another time than was due."""
        expected = self._timesteps[self.evaluation]

        def error(given: float) -> GuardError:
            return GuardError(
                f"the scheduler stepped at t={given} where t={expected} was due; was the scheduler changed in the middle of a "
                "run? Change it between pipeline calls."
            )

        value = torch.as_tensor(timestep)
        if value.ndim:
            value = value.flatten()[0]
        if not is_readable(value):
            refuse(value != expected, lambda: error(float(value)))
        elif (given := float(value)) != expected:
            raise error(given)

    def after_step(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to go on with; closes the evaluation and, after the last one, the run."""
        steps, edited = self._current(), latents
        if not self.is_idle:
            edited = edited_latents(self._users, steps, latents)
            self.has_edited |= edited is not latents
            self._x0_previous = steps.facts.get("x0")
            self._extra.keep(edited)
        check_finite(edited, "the latents after a step")
        self._steps, self._frame, self._calls, self._skips, self._attentions = None, None, 0, 0, 0
        self._conditions.close()
        self.evaluation += 1
        self.finished = self.evaluation == len(self._timesteps)
        if self.finished:
            self._conditions.forget()
        return edited

    def verdicts(self) -> list[list[Decision]]:
        """One list of B decisions per guard, in the order of the guards. Only after the last step."""
        if not self.finished or self.failed:
            raise GuardError("the run has not finished, so there are no decisions; run the pipeline again.")
        return self.verdicts_so_far()

    def verdicts_so_far(self) -> list[list[Decision]]:
        """As `verdicts`, of a run that may be left before its end: what the guards have decided by now."""
        return [decisions_of(guard, self.run, state) for guard, state in zip(self.guards, self._states, strict=True)]

    def gates(self) -> dict[str, Gate]:
        """ "<guard>.<gate>" -> gate, as the guards left them; a second guard of one method is "<guard>-2"."""
        gates: dict[str, Gate] = {}
        met: Counter[str] = Counter()
        for guard, state in zip(self.guards, self._states, strict=True):
            met[guard.method] += 1
            name = guard.method if met[guard.method] == 1 else f"{guard.method}-{met[guard.method]}"
            gates |= {f"{name}.{key}": gate for key, gate in guard.gates(state).items()}
        return gates

    # --- rows and steps
    # ---------------------------------------------------------------------------------------

    def _make_steps(self, latents: Tensor, mask: Tensor | None, given: Conditioning, texts: RowTexts) -> Steps:
        """This moment, before the denoiser call with model input `latents` (R, C, h, w) and `mask` (R, L)."""
        self._check_evaluation()
        if mask is not None:
            check_mask(mask, self._is_nothing(given))
        model_input = first_channels(self.layout.split(latents)[0], self._channels)
        time = self.run.timesteps[self.evaluation]
        steps = Steps(
            self._states,
            run=self.run,
            index=self._indices[self.evaluation],
            evaluation=self.evaluation,
            num_steps=self.run.num_steps,
            t=torch.full((self.run.batch_size,), time, dtype=torch.float32, device=model_input.device),
            model_input=model_input,
            conditioning=given,
            guidance_scale=self.run.guidance_scale,
            x0_previous=self._x0_previous,
            **texts._asdict(),
        )
        if self._is_asked_early:
            self._frame = coefficients(self._scheduler, self._time())
            moment = scaled_for_model(self._scheduler, self._frame)
            scaled = moment.like(model_input)
            steps.update(x_t=model_input, alpha=scaled.alpha, sigma=scaled.sigma, frame=moment)
        return steps

    def _is_nothing(self, given: Conditioning) -> Tensor:
        """(R,) bool: rows of negative prompts of zeros, as they are where a pipeline has none (Kandinsky 3)."""
        rows = []
        for part, half in zip(self.layout.parts, self.layout.halves(given), strict=False):
            is_zero = ~half.prompt.flatten(1).any(dim=1)
            rows.append(is_zero if part in ("uncond", "blank") else torch.zeros_like(is_zero))
        return torch.cat(rows)

    def _current(self) -> Steps:
        if self._steps is None:
            raise GuardError(
                "the scheduler stepped without a guarded denoiser call before it; if the denoiser was replaced, attach the "
                "guards anew."
            )
        return self._steps


def first_channels(values: Tensor, channels: int) -> Tensor:
    """The first `channels` of values (B, C, ...); `values` itself if there are no more."""
    return values if values.shape[1] == channels else values[:, :channels]


def negative_weight(pred: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """(B,) a / (|a| + |b|) of the least-squares fit pred = a uncond + b cond, each (B, C, ...); 0 where the two agree.

    Classifier-free guidance of scale w has a = 1 - w, b = w, rescaled or not.
    """
    p, c, u = (rows.double().flatten(1) for rows in (pred, cond, uncond))
    uu, cc, uc = (u * u).sum(1), (c * c).sum(1), (u * c).sum(1)
    up, cp = (u * p).sum(1), (c * p).sum(1)
    determinant = uu * cc - uc**2
    a, b = up * cc - cp * uc, cp * uu - up * uc
    is_known = determinant > 1e-6 * uu * cc
    return torch.where(is_known, a / (a.abs() + b.abs()).clamp(min=1e-30), 0.0)


def check_guidance(pred: Tensor, cond: Tensor | None, uncond: Tensor | None) -> None:
    """Raise if the negative prompt makes the image: some pipelines let its weight be positive (Wan 2.2's second scale)."""
    if cond is None or uncond is None:
        return
    refuse(
        negative_weight(pred, cond, uncond) > NEGATIVE_WEIGHT,
        lambda: GuardError(
            "guidance below 1 makes the negative prompt shape the image, past the guards; use a guidance scale of 1 or more, "
            "and of a guider that clips it adaptive_projected_guidance_rescale=0."
        ),
    )
