"""Seam: one guarded pipeline: who is attached to it, and what is done at each moment of its runs.

Private to `attach`. A run begins when the pipeline sets the scheduler's timesteps (or brings another scheduler), is made real
by the first denoiser call, and ends with the last scheduler step; a run that broke off is simply replaced by the next. The
hooks that call are in hooks.py, whose run it is in run_state.py, what guards make of it in session.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from saferedir.decisions import Decision
from saferedir.errors import GuardError, UnsupportedPipelineError
from saferedir.guards.base import Guard
from saferedir.guards.gates import Gate
from saferedir.pipelines.denoiser_call import Call, Edit
from saferedir.pipelines.families import Family
from saferedir.pipelines.own_adapters import fused_adapters, own_adapters, unknown_adapters
from saferedir.pipelines.packing import Grid
from saferedir.pipelines.schedules import read_schedule
from saferedir.pipelines.solver import Solver, history_of
from saferedir.pipelines.text_settings import text_settings
from saferedir.seam.begin import is_unguided_now, latent_channels, run_of
from saferedir.seam.caches import Caches
from saferedir.seam.guard_calls import call_guard
from saferedir.seam.hooks import Hooks, Loop
from saferedir.seam.requirements import check_given_embeds, check_requirements
from saferedir.seam.run_state import (
    RunState,
    arguments_of_call,
    arguments_of_running_call,
    check_all_is_read,
    check_caller,
    check_not_nested,
    check_scheduler_is_not_shared,
    has_callback,
    why_no_step,
)
from saferedir.seam.session import Session
from saferedir.seam.texts import texts_of
from saferedir.utils.host_copies import on_host


class Attachment(Protocol):
    """Guards that were attached together: what the seam asks of `attach.Attached`, which is above it."""

    guards: tuple[Guard[Any], ...]
    runs: int
    retry_level: tuple[int, ...]

    def detach(self) -> None: ...

    def clear(self) -> None: ...

    def record(self, decisions: list[Decision]) -> None: ...


class Seam:
    """The seam of one pipeline: its hooks are put on with the first attachment, and taken off with the last."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self.pipe, self.family = pipe, family
        self.attachments: list[Attachment] = []
        self.hooks = Hooks(pipe, family)
        self._state = RunState()
        self._first, self._is_partial = 0, False
        self._loop: Loop | None = None
        self._warned: set[str] = set()
        self._fused: set[str] = set()
        self._grid: Grid | None = None
        self._caches = Caches({})

    # --- attachments

    def guards(self) -> list[Guard[Any]]:
        """All attached guards, in the order they act."""
        return [guard for attached in self.attachments for guard in attached.guards]

    def add(self, attached: Attachment) -> None:
        """Take an attachment in; the first one puts the hooks on."""
        if self.family.denoiser != "unet" and (users := [g for g in attached.guards if g.uses("on_skip_features")]):
            raise GuardError(f"guard {users[0].method!r} edits a UNet's skip features; {self.family.name} has no UNet.")
        if not self.family.prompt_in_attention and (users := [g for g in attached.guards if g.uses("on_attention")]):
            raise UnsupportedPipelineError(
                f"guard {users[0].method!r} edits attention to the prompt, and on {self.family.name} the prompt reaches the "
                "image past what such a guard can edit; use another guard."
            )
        if both := [g for g in attached.guards if g.uses("on_attention") and g.uses("extra_latents")]:
            raise GuardError(
                f"guard {both[0].method!r} edits attention, and has latents of its own: its rows cannot follow."
            )
        if any(guard.uses("extra_latents") for guard in attached.guards):
            history_of(self.pipe.scheduler)
        Caches(self.hooks.held_now()).check([guard for guard in attached.guards if guard.enabled])
        if not self.attachments:
            self._leave()  # a tripwire may be left
            self.hooks.put_on(self)
        self.attachments.append(attached)
        self.hooks.fit(self.guards(), self)

    def remove(self, attached: Attachment, *, aborted: bool = False) -> None:
        """Let an attachment go; the last one takes the hooks off. A run in progress loses its protection and fails.

        For that the hooks stay as a tripwire until the run has failed or another one begins, unless the caller knows
        that the run was `aborted` by an exception.
        """
        if attached not in self.attachments:
            return
        for guard in attached.guards:
            guard.unload(self.hooks.denoiser)
        self.attachments.remove(attached)
        self.hooks.fit(self.guards(), self)
        was_running = self._state.fail()
        if self.attachments:
            return
        if was_running and not aborted:
            self._state.was_detached = True
        else:
            self._leave()

    def _leave(self) -> None:
        self._caches.clear()  # a run that broke off leaves features behind
        self.hooks.take_off()
        self._state.forget()

    @property
    def is_in_place(self) -> bool:
        """Whether the pipeline still holds the modules the hooks are on."""
        return self.hooks.are_in_place

    def warn_of_adapters(
        self, guards: Iterable[Guard[Any]], *, is_attaching: bool = False, stacklevel: int = 2
    ) -> None:
        """Warn of the user's LoRAs that a guard was made without: at attach, and before a run that has others.

        Those that were fused before are among the weights, whose fingerprint `attach` compares.
        """
        bound = [guard for guard in guards if guard.config.backbone]
        if not bound:
            return
        actual, fused = own_adapters(self.pipe), fused_adapters(self.pipe)
        if is_attaching:
            self._fused |= fused
        for guard in bound:
            backbone = guard.config.backbone or {}
            texts = unknown_adapters(backbone, actual)
            if "weights" in backbone and not texts:
                texts = [f"LoRA {name!r} fused into the weights" for name in sorted(fused - self._fused)]
            if not texts or (text := f"{id(guard)}: {texts}") in self._warned:
                continue
            self._warned.add(text)
            warnings.warn(
                f"guard {guard.method!r} for {guard.config.concept!r} was made without what this pipeline runs with "
                f"({'; '.join(texts)}), so it may miss the concept or act on benign prompts; for a SafeRedir guard choose the "
                "thresholds anew (`saferedir guards calibrate --lora`), measure others.",
                stacklevel=stacklevel + 1,
            )

    # --- moments

    def failing_closed(self) -> AbstractContextManager[None]:
        """Whatever is raised within fails the run in progress."""
        return self._state.failing_closed()

    def set_timesteps(self, scheduler: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline sets timesteps: another run begins."""
        check_not_nested(self.pipe)
        self.hooks.forget_prompts()  # of a run that broke off
        if self._state.was_detached:
            self._leave()
        else:
            self._expect_run()
        return original(*args, **kwargs)

    def progress_bar(self, pipe: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own bar. As the context of a call's loop it looks that the loop had a guarded step."""
        bar, steps = original(*args, **kwargs), self._state.steps
        if arguments_of_call(pipe) is None:
            return bar
        self._loop = Loop(bar, lambda: self._check_call(self._state.steps > steps))
        return self._loop

    def end_of_call(self, pipe: Any, original: Callable[..., Any]) -> Any:
        """The pipeline lets go of its modules, after its loop: the run that it set timesteps for must have begun."""
        answer = original()
        self._check_call(not self._state.is_expected)
        return answer

    def _check_call(self, had_step: bool) -> None:
        """Raise in a call of the pipeline that ends unguarded."""
        settings = arguments_of_call(self.pipe)
        if settings is None or self._is_partial:
            return
        if self._state.was_detached:
            self._refuse_detached()
        self._state.check_thread()
        if not had_step:
            self._state.forget()
            timesteps = settings.get("timesteps")
            is_interrupted = bool(getattr(self.pipe, "_interrupt", False))
            why = why_no_step(settings, timesteps is not None and len(timesteps) > 0, is_interrupted)
            raise GuardError(f"this call ended without one guarded step, so no image is returned: {why}.")
        self._state.check_whole()

    def before_denoiser(self, module: nn.Module, call: Call) -> Any:
        """(args, kwargs) for the denoiser, or None for those it was given."""
        if call.is_auxiliary:
            return self.before_auxiliary(module, call)
        return self._with_conditioning(module, call, Session.before_denoiser)

    def before_auxiliary(self, module: nn.Module, call: Call) -> Any:
        """(args, kwargs) for a call that reads the conditioning and makes no prediction of its own, or None for those given.

        A module that is given zeros or nothing in the place of a part of the conditioning (ControlNets of Stable Diffusion 3)
        goes on without it; guards are asked with what the denoiser will be given.
        """
        if call.is_auxiliary or self.family.denoiser_variables is None:
            return self._with_conditioning(module, call, Session.before_auxiliary)
        whole = call.with_left_out(arguments_of_running_call(self.pipe, self.family.denoiser))
        written = self._with_conditioning(module, whole, Session.before_auxiliary)
        if written is None:
            return None
        left_out = {name: call.kwargs[name] for name, value in whole.kwargs.items() if call.kwargs[name] is not value}
        return written[0], written[1] | left_out

    def _with_conditioning(self, module: nn.Module, call: Call, choose: Callable[..., Edit | None]) -> Any:
        """Enter or continue a run, and let `choose` say what conditioning this call is to have."""
        if self._state.was_detached:
            self._refuse_detached()
        self.hooks.check_module(module)
        self._state.check_thread()
        if self.pipe.scheduler is not self.hooks.scheduler:  # replaced since: its set_timesteps went unseen
            self.hooks.wrap_scheduler(self)
            self._expect_run()
        packing, latents = self.family.packing, call.latents
        if packing is not None and (self._state.is_expected or self._grid is None):
            given = dict(call.kwargs)
            if isinstance(ids := given.get("img_ids"), Tensor):  # in one copy with what the run reads of the schedule
                (given["img_ids"],) = read_schedule(self.hooks.scheduler, ids)
            self._grid = packing.grid(given)
        if self._state.is_expected:
            with self._state.failing_closed():
                self._state.begin(self._new_session(call))
        session = self._active()
        with self._state.failing_closed():
            check_caller(self.pipe, self.family.denoiser)
            check_all_is_read(call.kwargs)
            is_cut = self.family.truncates_guidance and latents.shape[0] == session.run.batch_size
            if session.run.guided and (is_unguided_now(self.pipe) or is_cut):
                session.end_guidance()
            edit = choose(session, self._unpacked(latents), call.embeds)
            if not session.is_idle:
                position = "auxiliary" if call.is_auxiliary else session.position
                self._caches.before(module, position, is_edited=edit is not None or session.has_edited)
            return None if edit is None else call.write(edit)

    def after_denoiser(self, call: Call, output: Any) -> Any:
        """The denoiser's output without extra rows, or None for the one it gave."""
        session = self._active()
        if call.is_auxiliary:
            return None
        rows = output[0] if isinstance(output, tuple) else output.sample
        with self._state.failing_closed():
            unpacked = self._unpacked(rows)
            prediction = session.after_denoiser(unpacked)
        if prediction is unpacked:
            return None
        prediction = rows[: prediction.shape[0]]
        return (prediction, *output[1:]) if isinstance(output, tuple) else type(output)(sample=prediction)

    def skip_features(self, values: Tensor, stage: int) -> Tensor:
        """Skip features (R, C, h, w) to use in one layer of a UNet."""
        session = self._active()
        with self._state.failing_closed():
            return session.skip_features(values, stage)

    def attention(self, values: Tensor) -> Tensor:
        """Attention features (R, N, D) to use in one layer of the denoiser."""
        session = self._active()
        with self._state.failing_closed():
            return session.attention(values)

    def scheduler_step(
        self, scheduler: Any, original: Callable[..., Any], model_output: Any, timestep: Any, sample: Any,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """The scheduler's own step, with prediction and latents as the guards edit them."""
        if self._state.was_detached:
            self._refuse_detached()
        if self._state.is_expected:
            check_scheduler_is_not_shared(self.pipe)
        session = self._active()
        with self._state.failing_closed():
            if session.run.solver is not None:
                session.run.solver.meet(session.evaluation, model_output.dtype, args, kwargs)
            count = self._rows_to_guard(session, sample)
            given = self._unpacked(model_output, count)
            used = session.before_step(given, timestep, self._unpacked(sample, count))
            pred = model_output if used is given else self._whole(self._packed(used), model_output)
            output = original(pred, timestep, sample, *args, **kwargs)
            self._active()
            stepped = output[0] if isinstance(output, tuple) else output.prev_sample
            latents = self._unpacked(stepped, count)
            edited = session.after_step(latents)
            self._state.steps += 1
            if session.finished:
                self.hooks.forget_prompts()
                self._record(session)
        if edited is not latents:
            if isinstance(output, tuple):  # LCM's pipeline takes the second, which is the first at the last step
                new = self._whole(self._packed(edited), stepped)
                return tuple(new if part is stepped else part for part in output)
            output["prev_sample"] = self._whole(self._packed(edited), stepped)
        return output

    def _rows_to_guard(self, session: Session, sample: Tensor) -> int | None:
        """How many rows of a step are the images'; None for all. Behind them come copies, of which the pipeline uses none."""
        if not (self.family.steps_both_halves and session.run.guided):
            return None
        if sample.shape[0] != 2 * session.run.batch_size:
            raise GuardError(
                f"the scheduler got {sample.shape[0]} latents where both halves of {session.run.batch_size} images were expected."
            )
        return session.run.batch_size

    def _whole(self, rows: Tensor, like: Tensor) -> Tensor:
        """`rows`, and copies of them in place of the further rows that `like` has."""
        return rows if rows.shape[0] == like.shape[0] else torch.cat([rows, rows])

    def _unpacked(self, values: Tensor, count: int | None = None) -> Tensor:
        """As guards are given latents, the first `count` rows; `values` themselves where that is all of them as they are."""
        if count is not None:
            values = values[:count]
        packing = self.family.packing
        if packing is None or self._grid is None or values.ndim != packing.ndim:
            return values
        return packing.unpack(values, self._grid)

    def _packed(self, values: Tensor) -> Tensor:
        """As the scheduler gets latents."""
        packing = self.family.packing
        return values if packing is None or not packing.is_for_scheduler else packing.pack(values)

    # --- runs

    def _expect_run(self) -> None:
        if self._loop is not None and self._loop.is_open:
            self._state.check_not_begun()
        self._state.expect()
        for attached in self.attachments:
            attached.clear()

    def _new_session(self, call: Call) -> Session:
        settings = arguments_of_running_call(self.pipe, self.family.denoiser)
        check_requirements(self.pipe, self.family, self.guards())
        check_given_embeds(settings, self.guards())
        denoiser, scheduler, known_texts = self.hooks.denoiser, self.hooks.scheduler, self.hooks.texts
        for guard in self.guards():  # whatever the user did to the adapters, or to `enabled`, since
            (guard.load if guard.enabled else guard.unload)(denoiser)
        if any(guard.uses("on_attention") for guard in self.guards()):
            self.hooks.renew_attention(self)
        self.warn_of_adapters(self.guards())
        asked = [attached.retry_level for attached in self.attachments if attached.retry_level]
        begins = None if self._first else call.time
        run, offset, parts = run_of(
            self.pipe, self.family, call, settings, asked, begins, with_text_encoders=known_texts is not None
        )
        if self.hooks.latents is not None and (notes := self.hooks.latents.take_notes()):
            run = replace(run, input_notes=notes)
        enabled = [guard for guard in self.guards() if guard.enabled]
        self._caches = Caches(self.hooks.modules)
        self._caches.clear()
        self._caches.check(enabled)
        # whoever keeps features has to know who is edited, and a callback must not be shown what a check would have refused
        self._state.pending.is_eager = self._caches.are_there or has_callback(settings)
        if self._state.pending.is_eager:
            self._state.settle()  # of what was looked at before this
        if enabled:
            self._caches.check_layout(parts)
        spoken = (
            settings if "prompt" in settings else arguments_of_call(self.pipe) or {}
        )  # a loop in a method of its own
        if spoken.get("prompt") is not None:  # else embeddings were given, and nobody can know how they were made
            text = text_settings(self.pipe, spoken)
            for guard in enabled:
                call_guard(guard, "check_text", guard.check_text, text)
        if any(guard.uses("extra_latents") for guard in enabled):
            timesteps = tuple(on_host(scheduler.timesteps)[offset : offset + run.num_evaluations + 1])
            run = replace(run, solver=Solver(scheduler, timesteps, self._packed, self._unpacked))
        texts = None if known_texts is None else partial(texts_of, records=known_texts.known())
        channels = latent_channels(denoiser, self.family, call.latents)
        return Session(run, self.family, enabled, scheduler, channels, offset, texts, self._first, parts)

    @contextmanager
    def part_from(self, first: int) -> Iterator[None]:
        """Inside, runs are entered at evaluation `first` of their timesteps, and may be left before their end."""
        self._first, self._is_partial = first, True
        try:
            yield
            self._state.settle()
        finally:
            self._first, self._is_partial = 0, False
            if self._state.session is not None and not self._state.session.finished:
                self._state.forget()
            self.hooks.forget_prompts()

    def gates(self) -> dict[str, Gate]:
        """ "<guard>.<gate>" -> gate, of the run under way; a second guard of one method is "<guard>-2"."""
        return {} if self._state.session is None else self._state.session.gates()

    def verdicts_so_far(self) -> list[list[Decision]]:
        """What each guard has decided by now in the run under way, one list a guard; none between runs."""
        return [] if self._state.session is None else self._state.session.verdicts_so_far()

    def _active(self) -> Session:
        """The run this thread is in; anything else raises."""
        session = self._state.undisturbed()
        if session is not None and self.pipe.scheduler is self.hooks.scheduler:
            return session
        self._state.check_thread()
        if self.pipe.scheduler is not self.hooks.scheduler:
            raise GuardError("the pipeline's scheduler was replaced in the middle of a run; replace it between calls.")
        return self._state.active(self.family.denoiser)

    def _refuse_detached(self) -> NoReturn:
        self._leave()
        raise GuardError(
            "the guards were detached in the middle of this run, so it cannot go on; call the pipeline again."
        )

    def _record(self, session: Session) -> None:
        verdicts = dict(zip(map(id, session.guards), session.verdicts(), strict=True))
        self._state.settle()
        for attached in self.attachments:
            if any(guard.enabled and id(guard) not in verdicts for guard in attached.guards):
                continue  # attached in the middle of this run: it guards from the next one on
            attached.record([decision for guard in attached.guards for decision in verdicts.get(id(guard), [])])
