"""Seam: the hooks `attach` puts on one live pipeline, and the run that goes through them.

Private to `attach`. A run begins when the pipeline sets the scheduler's timesteps (or brings another
scheduler), is made real by the first denoiser call, and ends with the last scheduler step; a run that broke
off is simply replaced by the next. A run belongs to one thread; a second thread on the same pipeline makes
both raise rather than mix.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from saferedir.errors import GuardError
from saferedir.families import Family, unwrapped
from saferedir.guard import Guard
from saferedir.packing import Grid
from saferedir.schedules import check_scheduler
from saferedir.seam.begin import latent_channels, run_of
from saferedir.seam.caller import settings_of_caller
from saferedir.seam.denoiser_call import Call
from saferedir.seam.session import Session
from saferedir.seam.skip import SkipHooks
from saferedir.seam.texts import PromptTexts, texts_of
from saferedir.seam.wrapping import (
    MARK,
    WrappedMethods,
)
from saferedir.solver import Solver, history_of

if TYPE_CHECKING:
    from saferedir.attach import Attached


class Seam:
    """Hooks on one pipeline. Installed with the first attachment, removed with the last."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self.pipe, self.family = pipe, family
        self.attachments: list[Attached] = []
        #: denoisers and their companions by attribute, as the pipeline held them when the hooks were put on
        self.modules: dict[str, nn.Module] = {}
        self._wrapped: WrappedMethods | None = None
        self._session: Session | None = None
        self._grid: Grid | None = None
        self._is_due = False
        self._owner: int | None = None
        self._is_contested = False
        #: the last guard left in the middle of a run; its next moment raises
        self._is_tripped = False
        self._handles: list[Any] = []
        #: there only while a guard needs them
        self._texts: PromptTexts | None = None
        self._skips: SkipHooks | None = None

    # --- attachments
    # ------------------------------------------------------------------------------------------

    def guards(self) -> list[Guard[Any]]:
        """All attached guards, in the order they act."""
        return [guard for attached in self.attachments for guard in attached.guards]

    def add(self, attached: Attached) -> None:
        """Take an attachment in; the first one installs the hooks."""
        if self.family.denoiser != "unet" and (users := [g for g in attached.guards if g.uses("on_skip_features")]):
            raise GuardError(f"guard {users[0].method!r} edits a UNet's skip features; {self.family.name} has no UNet.")
        if any(guard.uses("extra_latents") for guard in attached.guards):
            history_of(self.pipe.scheduler)
        if not self.attachments:
            self._uninstall()  # a tripwire may be left
            self._install()
        self.attachments.append(attached)
        self._install_on_demand()

    def remove(self, attached: Attached, *, aborted: bool = False) -> None:
        """Let an attachment go; the last one removes the hooks. A run in progress loses its protection and fails.

        For that the hooks stay as a tripwire until the run has failed or another one begins, unless the caller knows
        that the run was `aborted` by an exception.
        """
        if attached not in self.attachments:
            return
        for guard in attached.guards:
            guard.unload(self._denoiser)
        self.attachments.remove(attached)
        self._install_on_demand()
        session = self._session
        is_running = session is not None and not session.finished and not session.failed
        if session is not None and not session.finished:
            session.failed = True
        if self.attachments:
            return
        if is_running and not aborted:
            self._is_tripped = True
        else:
            self._uninstall()

    @property
    def _denoiser(self) -> nn.Module:
        denoiser: nn.Module = unwrapped(self.modules[self.family.denoiser])
        return denoiser

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self.modules = [], {}
        self._unwrap_scheduler()
        self._session, self._is_due, self._is_tripped = None, False, False

    def _check_tripwire(self) -> None:
        if self._is_tripped:
            self._uninstall()
            raise GuardError(
                "the guards were detached in the middle of this run, so it cannot go on; call the pipeline again."
            )

    # --- hooks
    # ------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        # Plain functions, because deepcopy copies a bound method's owner, and with it the whole pipeline again;
        # not to be compiled, because they decide anew at every call.
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._before_denoiser(module, Call(self.family, args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return self._after_denoiser(Call(self.family, args, kwargs), output)

        def beside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._before_companion(module, Call(self.family, args, kwargs))

        hooks = []
        for hook in (before, after, beside):
            hooks.append(torch.compiler.disable(hook))
            setattr(hooks[-1], MARK, self)
        self._wrap_scheduler(self.pipe.scheduler)
        for name in (self.family.denoiser, *self.family.more_denoisers):
            if (module := getattr(self.pipe, name, None)) is not None:
                self.modules[name] = module
                self._handles.append(module.register_forward_pre_hook(hooks[0], with_kwargs=True))
                self._handles.append(module.register_forward_hook(hooks[1], with_kwargs=True))
        for name in self.family.companions:
            if (module := getattr(self.pipe, name, None)) is not None:
                self.modules[name] = module
                self._handles.append(module.register_forward_pre_hook(hooks[2], with_kwargs=True))

    def _install_on_demand(self) -> None:
        """Put on what only some guards need, and take off what none needs any more."""
        guards = self.guards()
        if not any(guard.needs_text for guard in guards):
            if self._texts is not None:
                self._texts.release()
            self._texts = None
        elif self._texts is None:
            self._texts = PromptTexts(self.pipe, self.family)
        if not any(guard.uses("on_skip_features") for guard in guards):
            if self._skips is not None:
                self._skips.release()
            self._skips = None
        elif self._skips is None:
            self._skips = SkipHooks(self._denoiser, self._skip_features)

    def _wrap_scheduler(self, scheduler: Any) -> None:
        check_scheduler(scheduler)
        moments = {"step": self._scheduler_step, "set_timesteps": self._set_timesteps}
        self._wrapped = WrappedMethods(scheduler, moments, self)

    def _unwrap_scheduler(self) -> None:
        if self._wrapped is not None:
            self._wrapped.release()
        self._wrapped = None

    @property
    def scheduler(self) -> Any:
        """The scheduler whose methods are wrapped now."""
        return None if self._wrapped is None else self._wrapped.instance

    # --- moments
    # ----------------------------------------------------------------------------------------------

    def _set_timesteps(self, scheduler: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_tripped:
            self._uninstall()
        else:
            self._begin()
        return original(*args, **kwargs)

    def _before_denoiser(self, module: nn.Module, call: Call) -> Any:
        if call.is_aside:
            return self._before_companion(module, call)
        return self._with_conditioning(module, call, Session.before_denoiser)

    def _before_companion(self, module: nn.Module, call: Call) -> Any:
        return self._with_conditioning(module, call, Session.beside_denoiser)

    def _with_conditioning(self, module: nn.Module, call: Call, ask: Callable[..., Any]) -> Any:
        """Enter or continue a run, and let `ask` choose the conditioning of this call."""
        self._check_tripwire()
        self._check_module(module)
        self._check_thread()
        if self.pipe.scheduler is not self.scheduler:  # replaced since: its set_timesteps went unseen
            self._unwrap_scheduler()
            self._wrap_scheduler(self.pipe.scheduler)
            self._begin()
        packing, latents = self.family.packing, call.latents
        if packing is not None and (self._is_due or self._grid is None):
            self._grid = packing.grid(call.kwargs)
        if self._is_due:
            with self._failing_closed():
                self._session = self._new_session(call)
            self._is_due = False
        session = self._active()
        with self._failing_closed():
            given = call.conditioning
            used = ask(session, self._unpacked(latents), given)
            return None if used is given else call.with_conditioning(used, session.layout.split, self._packed)

    def _after_denoiser(self, call: Call, output: Any) -> Any:
        session = self._active()
        if call.is_aside:
            return None
        rows = output[0] if isinstance(output, tuple) else output.sample
        with self._failing_closed():
            unpacked = self._unpacked(rows)
            own = session.after_denoiser(unpacked)
        if own is unpacked:
            return None
        own = rows[: own.shape[0]]
        return (own, *output[1:]) if isinstance(output, tuple) else type(output)(sample=own)

    def _skip_features(self, values: Tensor, stage: int) -> Tensor:
        session = self._active()
        with self._failing_closed():
            return session.skip_features(values, stage)

    def _scheduler_step(
        self, scheduler: Any, original: Callable[..., Any], model_output: Any, timestep: Any, sample: Any,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        self._check_tripwire()
        session = self._active()
        with self._failing_closed():
            if session.run.solver is not None:
                session.run.solver.meet(session.evaluation, model_output.dtype, args, kwargs)
            given = self._unpacked(model_output)
            used = session.before_step(given, timestep, self._unpacked(sample))
            pred = model_output if used is given else self._packed(used)
            output = original(pred, timestep, sample, *args, **kwargs)
            self._active()
            stepped = output[0] if isinstance(output, tuple) else output.prev_sample
            latents = self._unpacked(stepped)
            edited = session.after_step(latents)
            if session.finished:
                self._record(session)
        if edited is not latents:
            if isinstance(output, tuple):
                return (self._packed(edited), *output[1:])
            output["prev_sample"] = self._packed(edited)
        return output

    def _unpacked(self, values: Tensor) -> Tensor:
        packing = self.family.packing
        return values if packing is None or self._grid is None else packing.unpack(values, self._grid)

    def _packed(self, values: Tensor) -> Tensor:
        packing = self.family.packing
        return values if packing is None else packing.pack(values)

    # --- runs
    # -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Another run starts; whatever was left of the last one is void."""
        self._session, self._is_due = None, True
        self._owner, self._is_contested = threading.get_ident(), False
        for attached in self.attachments:
            attached.clear()

    def _new_session(self, call: Call) -> Session:
        settings = settings_of_caller(self.pipe, self.family.denoiser)
        for guard in self.guards():  # whatever the user did to the adapters, or to `enabled`, since
            (guard.load if guard.enabled else guard.unload)(self._denoiser)
        asked = [attached.insist for attached in self.attachments if attached.insist]
        run, offset = run_of(self.pipe, self.family, call, settings, asked, with_towers=self._texts is not None)
        enabled = [guard for guard in self.guards() if guard.enabled]
        if any(guard.uses("extra_latents") for guard in enabled):
            timesteps = tuple(self.scheduler.timesteps[offset : offset + run.num_evaluations + 1])
            run = replace(run, solver=Solver(self.scheduler, timesteps, self._packed, self._unpacked))
        texts = None if self._texts is None else partial(texts_of, records=self._texts.known())
        channels = latent_channels(self._denoiser, self.family, call.latents)
        return Session(run, self.family, enabled, self.scheduler, channels, offset, texts)

    def _active(self) -> Session:
        """The run this thread is in; anything else raises."""
        self._check_thread()
        session = self._session
        if self.pipe.scheduler is not self.scheduler:
            raise GuardError("the pipeline's scheduler was replaced in the middle of a run; replace it between calls.")
        if session is None and self._is_due:
            raise GuardError(
                f"the scheduler stepped without a guarded denoiser call before it; if "
                f"{self.family.denoiser} was "
                "replaced, detach and attach the guards again."
            )
        if session is None or session.finished:
            raise GuardError("the denoiser or scheduler was used outside a pipeline call; detach the guards first.")
        if session.failed:
            raise GuardError("this run has already failed or lost a guard; call the pipeline again.")
        return session

    def _check_thread(self) -> None:
        """Raise in both threads if a second one entered the run of a first; neither may return an image."""
        advice = "give each thread its own pipeline, or take turns with a lock."
        in_run = self._is_due or (self._session is not None and not self._session.finished)
        if in_run and threading.get_ident() != self._owner:
            self._is_contested = True
            raise GuardError(f"two threads use one guarded pipeline at the same time; {advice}")
        if self._is_contested:
            raise GuardError(f"another thread used this guarded pipeline during the run; {advice}")

    def _record(self, session: Session) -> None:
        verdicts = dict(zip(map(id, session.guards), session.verdicts(), strict=True))
        for attached in self.attachments:
            if any(guard.enabled and id(guard) not in verdicts for guard in attached.guards):
                continue  # attached in the middle of this run: it guards from the next one on
            attached.record([decision for guard in attached.guards for decision in verdicts.get(id(guard), [])])

    @contextmanager
    def _failing_closed(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._session is not None:
                self._session.failed = True
            raise

    def _check_module(self, module: nn.Module) -> None:
        """Raise unless `module` is ours, and the pipeline still holds all the modules that are."""
        if all(unwrapped(module) is not unwrapped(own) for own in self.modules.values()):
            raise GuardError(
                f"this {type(module).__name__} is a copy of a guarded one, without guards of its own; attach guards to its "
                "pipeline, or free it with saferedir.detach(pipe)."
            )
        if (name := self._replaced) is not None:
            raise GuardError(f"{name} of the guarded pipeline was replaced; detach and attach the guards again.")

    @property
    def _replaced(self) -> str | None:
        """Name of a module that the pipeline no longer holds."""
        held = ((name, unwrapped(getattr(self.pipe, name, None)), own) for name, own in self.modules.items())
        return next((name for name, module, own in held if module is not unwrapped(own)), None)

    @property
    def is_in_place(self) -> bool:
        """Whether the pipeline still holds the modules the hooks are on."""
        return bool(self.modules) and self._replaced is None
