"""Seam: the hooks `attach` puts on one live pipeline, and the run that goes through them.

Private to `attach`. A run begins when the pipeline sets the scheduler's timesteps (or brings another
scheduler), is made real by the first denoiser call, and ends with the last scheduler step; a run that broke
off is simply replaced by the next. A run belongs to one thread; a second thread on the same pipeline makes
both raise rather than mix.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from saferedir.errors import GuardError
from saferedir.families import Family
from saferedir.guard import Guard, Run
from saferedir.schedules import check_scheduler, evaluation_timesteps, prediction_type, step_indices, training_time
from saferedir.seam.denoiser_call import read_call, write_call
from saferedir.seam.session import Session

if TYPE_CHECKING:
    from saferedir.attach import Attached

_MARK = "saferedir_seam"
_WRAPPED = ("step", "set_timesteps")
_HOOK_DICTS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class Seam:
    """Hooks on one pipeline. Installed with the first attachment, removed with the last."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self.pipe, self.family = pipe, family
        self.attachments: list[Attached] = []
        self.denoiser: nn.Module = getattr(pipe, family.denoiser)
        self.scheduler: Any = None
        self.originals: dict[str, Callable[..., Any]] = {}
        #: a new object each time a scheduler is wrapped, None while none is
        self.era: object | None = None
        self._session: Session | None = None
        self._is_due = False
        self._owner: int | None = None
        self._is_contested = False
        #: the last guard left in the middle of a run; its next moment raises
        self._is_tripped = False
        self._handles: list[Any] = []
        self._wrappers: dict[str, MethodType] = {}
        self._found: dict[str, Any] = {}

    # --- attachments
    # ------------------------------------------------------------------------------------------

    def guards(self) -> list[Guard[Any]]:
        """All attached guards, in the order they act."""
        return [guard for attached in self.attachments for guard in attached.guards]

    def add(self, attached: Attached) -> None:
        """Take an attachment in; the first one installs the hooks."""
        if not self.attachments:
            self._uninstall()  # a tripwire may be left
            self._install()
        self.attachments.append(attached)

    def remove(self, attached: Attached, *, aborted: bool = False) -> None:
        """Let an attachment go; the last one removes the hooks. A run in progress loses its protection and fails.

        For that the hooks stay as a tripwire until the run has failed or another one begins, unless the caller knows
        that the run was `aborted` by an exception.
        """
        if attached not in self.attachments:
            return
        self.attachments.remove(attached)
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

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
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
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return self._before_denoiser(module, args, kwargs)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return self._after_denoiser(module, output)

        # Plain functions, because deepcopy copies a bound method's owner, and with it the whole pipeline
        # again.
        setattr(before, _MARK, self)
        setattr(after, _MARK, self)
        self._wrap_scheduler(self.pipe.scheduler)
        self._handles = [
            self.denoiser.register_forward_pre_hook(before, with_kwargs=True),
            self.denoiser.register_forward_hook(after, with_kwargs=True),
        ]

    def _wrap_scheduler(self, scheduler: Any) -> None:
        check_scheduler(scheduler)
        self.scheduler, self.era = scheduler, object()
        self.originals = {name: getattr(scheduler, name) for name in _WRAPPED}
        self._found = {name: scheduler.__dict__[name] for name in _WRAPPED if name in scheduler.__dict__}
        moments = {"step": self._scheduler_step, "set_timesteps": self._set_timesteps}
        for name, moment in moments.items():
            # The type's function is the one pipelines inspect for `eta`, `generator`, `timesteps`, `sigmas`.
            wrapper = MethodType(_wrapper(self, moment, getattr(type(scheduler), name)), scheduler)
            self._wrappers[name] = wrapper
            setattr(scheduler, name, wrapper)

    def _unwrap_scheduler(self) -> None:
        if self.scheduler is None:
            return
        for name, wrapper in self._wrappers.items():
            if self.scheduler.__dict__.get(name) is not wrapper:
                continue  # somebody wrapped ours since; it stays below theirs and passes everything through
            if name in self._found:
                setattr(self.scheduler, name, self._found[name])
            else:
                delattr(self.scheduler, name)
        self.scheduler = self.era = None

    # --- moments
    # ----------------------------------------------------------------------------------------------

    def _set_timesteps(self, scheduler: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_tripped:
            self._uninstall()
        else:
            self._begin()
        return original(*args, **kwargs)

    def _before_denoiser(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_tripwire()
        self._check_module(module)
        self._check_thread()
        if self.pipe.scheduler is not self.scheduler:  # replaced since: its set_timesteps went unseen
            self._unwrap_scheduler()
            self._wrap_scheduler(self.pipe.scheduler)
            self._begin()
        latents, given = read_call(self.family, args, kwargs)
        if self._is_due:
            with self._failing_closed():
                self._session = self._new_session(latents)
            self._is_due = False
        session = self._active()
        with self._failing_closed():
            used = session.before_denoiser(latents, given)
            if used is given:
                return None
            return write_call(self.family, args, kwargs, given, used, session.conditional(latents))

    def _after_denoiser(self, module: nn.Module, output: Any) -> Any:
        self._check_module(module)
        session = self._active()
        rows = output[0] if isinstance(output, tuple) else output.sample
        with self._failing_closed():
            own = session.after_denoiser(rows)
        if own is rows:
            return None
        return (own, *output[1:]) if isinstance(output, tuple) else type(output)(sample=own)

    def _scheduler_step(
        self, scheduler: Any, original: Callable[..., Any], model_output: Any, timestep: Any, sample: Any,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        self._check_tripwire()
        session = self._active()
        with self._failing_closed():
            pred = session.before_step(model_output, timestep, sample)
            output = original(pred, timestep, sample, *args, **kwargs)
            self._active()
            latents = output[0] if isinstance(output, tuple) else output.prev_sample
            edited = session.after_step(latents)
            if session.finished:
                self._record(session)
        if edited is not latents:
            if isinstance(output, tuple):
                return (edited, *output[1:])
            output["prev_sample"] = edited
        return output

    # --- runs
    # -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Another run starts; whatever was left of the last one is void."""
        self._session, self._is_due = None, True
        self._owner, self._is_contested = threading.get_ident(), False
        for attached in self.attachments:
            attached.clear()

    def _new_session(self, latents: Tensor) -> Session:
        try:
            guided = bool(self.pipe.do_classifier_free_guidance)
        except AttributeError as error:
            raise GuardError(
                "the denoiser was called outside a call of its guarded pipeline; detach the guards first."
            ) from error
        timesteps = evaluation_timesteps(self.scheduler)
        rows = latents.shape[0]
        if not timesteps or rows % (2 if guided else 1):
            raise GuardError(f"cannot follow this run: {rows} rows, {len(timesteps)} timesteps, guidance {guided}.")
        run = Run(
            batch_size=rows // (2 if guided else 1),
            num_steps=step_indices(timesteps)[-1] + 1,
            num_evaluations=len(timesteps),
            timesteps=tuple(training_time(self.scheduler, value) for value in timesteps),
            family=self.family.name,
            prediction_type=prediction_type(self.scheduler),
            guided=guided,
            guidance_scale=getattr(self.pipe, "guidance_scale", None),
            device=latents.device,
            dtype=latents.dtype,
        )
        enabled = [guard for guard in self.guards() if guard.enabled]
        return Session(run, self.family, enabled, self.scheduler, self._encode)

    def _encode(self, texts: list[str]) -> Tensor:
        embeds: Tensor = self.pipe.encode_prompt(
            prompt=texts, device=self.pipe._execution_device, num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )[0]  # fmt: skip
        return embeds

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
        name = self.family.denoiser
        if module is not self.denoiser:
            raise GuardError(
                f"this {name} is a copy of a guarded one, without guards of its own; attach guards to its "
                f"pipeline, "
                "or free it with saferedir.attach.detach(pipe)."
            )
        if getattr(self.pipe, name) is not module:
            raise GuardError(f"{name} of the guarded pipeline was replaced; detach and attach the guards again.")


def _wrapper(seam: Seam, moment: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function to bind to a scheduler in place of `function`; inert once the seam has left that
    scheduler.
    """
    name, home, era = function.__name__, seam.scheduler, seam.era
    original = seam.originals[name]

    @functools.wraps(function)
    def wrapped(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler is not home:
            raise GuardError(
                f"this {type(scheduler).__name__} is a copy of a guarded one, without guards of its own; "
                f"attach guards "
                "to its pipeline, or free it with saferedir.attach.detach(pipe)."
            )
        if seam.era is not era:
            return original(*args, **kwargs)
        return moment(scheduler, original, *args, **kwargs)

    setattr(wrapped, _MARK, seam)
    return wrapped


def find_seam(denoiser: nn.Module) -> Seam | None:
    """The seam installed on this very denoiser, if there is one."""
    for hook in denoiser._forward_pre_hooks.values():
        seam = getattr(hook, _MARK, None)
        if isinstance(seam, Seam) and seam.denoiser is denoiser:
            return seam
    return None


def remove_foreign_hooks(denoiser: nn.Module, scheduler: Any) -> None:
    """Remove hooks that came along with a deep copy: those whose seam lives on another denoiser or
    scheduler.
    """
    for hooks in (denoiser._forward_pre_hooks, denoiser._forward_hooks):
        for key, hook in list(hooks.items()):
            seam = getattr(hook, _MARK, None)
            if isinstance(seam, Seam) and seam.denoiser is not denoiser:
                for name in _HOOK_DICTS:
                    getattr(denoiser, name, {}).pop(key, None)
    for name in _WRAPPED:
        seam = getattr(scheduler.__dict__.get(name), _MARK, None)
        if isinstance(seam, Seam) and seam.scheduler is not scheduler:
            delattr(scheduler, name)
