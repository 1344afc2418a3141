"""RunState: the run in progress on one pipeline, if there is one, and whether the call at hand belongs to it.

A run belongs to one thread; a second thread on the same pipeline makes both raise rather than mix. It belongs to one call of
one pipeline, which is found on the Python stack: that catches mistakes; code of an attacker in this very process can fake a
stack. And nothing may reach the denoiser past the guards. Used by `seam`.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from saferedir.errors import GuardError
from saferedir.pipelines.families import unwrapped
from saferedir.seam.session import Session
from saferedir.utils.device import Collecting, Pending

#: arguments of pipelines that leave steps out
_SHORTENING = ("strength", "denoising_start", "denoising_end")
_CONTAINERS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs", "added_cond_kwargs")
#: what diffusers puts there itself: pooled embeddings, which guards read; sizes; image prompts, which docs/security.md names
_KNOWN = frozenset(
    ("text_embeds", "time_ids", "resolution", "aspect_ratio")
    + ("image_embeds", "ip_adapter_image_embeds", "ip_hidden_states", "ip_adapter_masks")
)


class RunState:
    """None at first: due once the pipeline has set timesteps, a session from its first denoiser call on."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.is_expected = False
        #: the last guard left in the middle of a run; its next moment raises
        self.was_detached = False
        #: guarded steps of all runs up to now
        self.steps = 0
        #: checks of this run whose outcome is still on the device
        self.pending = Pending()
        self._owner: int | None = None
        self._is_contested = False

    def expect(self) -> None:
        """Another run starts, in this thread; whatever was left of the last one is void."""
        self.session, self.is_expected, self.pending = None, True, Pending()
        self._owner, self._is_contested = threading.get_ident(), False

    def check_not_begun(self) -> None:
        """Raise, and fail the run, where one is in progress: the next would begin without what its guards know."""
        if self.session is None or self.session.finished or self.session.failed:
            return
        self.check_thread()
        self.session.failed = True
        raise GuardError(
            "the timesteps were set anew, or the scheduler was replaced, in the middle of a run, so its guards would forget what "
            "they know and no image is returned; do so between pipeline calls."
        )

    def begin(self, session: Session) -> None:
        """The run that was due is real."""
        self.session, self.is_expected = session, False

    def forget(self) -> None:
        """No run is in progress or due."""
        self.session, self.is_expected, self.was_detached = None, False, False

    def fail(self) -> bool:
        """Let the session in progress fail, if there is one; whether it could have gone on."""
        session = self.session
        if session is None or session.finished:
            return False
        was_running, session.failed = not session.failed, True
        return was_running

    def undisturbed(self) -> Session | None:
        """The session in progress, if this thread may go on in it; else None, and `check_thread` or `active` raises."""
        session = self.session
        if session is None or session.finished or session.failed:
            return None
        return None if self._is_contested or threading.get_ident() != self._owner else session

    def active(self, denoiser: str) -> Session:
        """The session in progress; anything else raises. `denoiser`: its attribute, for the sentence."""
        session = self.session
        if session is None and self.is_expected:
            raise GuardError(
                f"the scheduler stepped without a guarded denoiser call before it; if {denoiser} was replaced, detach and "
                "attach the guards again."
            )
        if session is None or session.finished:
            raise GuardError("the denoiser or scheduler was used outside a pipeline call; detach the guards first.")
        if session.failed:
            raise GuardError("this run has already failed or lost a guard; call the pipeline again.")
        return session

    def check_whole(self) -> None:
        """Raise in a call that ends none the less: its session has failed, or stopped before the last step undecided."""
        if self.session is not None and self.session.failed:
            raise GuardError("this run has already failed or lost a guard; call the pipeline again.")
        if self.session is not None and self.session.guards and not self.session.finished:
            self.session.failed = True
            raise GuardError(
                "this call was interrupted before its last step, so its guards have no decision and no image is returned; "
                "call the pipeline again and let it finish (diffusers stops where `_interrupt` is set)."
            )
        self.settle()

    def settle(self) -> None:
        """Read the outcome of every check of this run that is still on the device, and raise if one failed."""
        with self.failing_closed():
            self.pending.settle()

    def check_thread(self) -> None:
        """Raise in both threads if a second one entered the run of a first; neither may return an image."""
        advice = "give each thread its own pipeline, or take turns with a lock."
        in_run = self.is_expected or (self.session is not None and not self.session.finished)
        if in_run and threading.get_ident() != self._owner:
            self._is_contested = True
            raise GuardError(f"two threads use one guarded pipeline at the same time; {advice}")
        if self._is_contested:
            raise GuardError(f"another thread used this guarded pipeline during the run; {advice}")

    def failing_closed(self) -> FailingClosed:
        """Whatever is raised within fails the session."""
        return FailingClosed(self)


class FailingClosed(Collecting):
    """As `Collecting`, of a run's checks; whatever is raised within fails the session that the run has then."""

    __slots__ = ("_state",)

    def __init__(self, state: RunState) -> None:
        self._state, self._pending = state, state.pending

    def __exit__(self, *raised: object) -> None:
        super().__exit__()
        if raised[0] is not None and self._state.session is not None:
            self._state.session.failed = True


def arguments_of_running_call(pipe: Any, name: str) -> Mapping[str, Any]:
    """Variables of the pipeline's method that calls the denoiser (attribute `name`) now; raises if it is not this pipeline's."""
    return dict(_calling_frame(pipe, name).f_locals)


def check_caller(pipe: Any, name: str) -> None:
    """Raise GuardError unless a method of this very pipeline calls the denoiser (attribute `name`) now.

    A run that broke off leaves its session behind, and a sibling with a scheduler of its own would go on in it.
    """
    _calling_frame(pipe, name)


def _calling_frame(pipe: Any, name: str) -> FrameType:
    """A pipeline made by `from_pipe` runs the same denoiser with settings of its own, which the guarded one does not know."""
    module = unwrapped(getattr(pipe, name))
    frame: FrameType | None = sys._getframe(
        1
    )  # the own frame's variables would hold that frame, and with it all the others
    while frame is not None:
        owner = frame.f_locals.get("self")
        parts = getattr(owner, "__dict__", {})
        if "scheduler" in parts and unwrapped(parts.get(name)) is module and _is_method(owner, frame.f_code):
            if owner is pipe:
                return frame
            raise GuardError(
                f"a {type(owner).__name__} shares the {name} of a guarded {type(pipe).__name__}; attach the guards to the one "
                "you call, and detach them from the other."
            )
        frame = frame.f_back
    raise GuardError(
        f"the {name} of a guarded pipeline was called outside a call of that pipeline; call the pipeline, or detach the guards."
    )


def check_scheduler_is_not_shared(pipe: Any) -> None:
    """Raise GuardError if another pipeline, with modules of its own, uses this one's scheduler now."""
    frame: FrameType | None = sys._getframe(
        1
    )  # the own frame's variables would hold that frame, and with it all the others
    while frame is not None:
        owner = frame.f_locals.get("self")
        is_other = owner is not pipe and getattr(owner, "__dict__", {}).get("scheduler") is pipe.scheduler
        if is_other and _is_method(owner, frame.f_code):
            kind = type(owner).__name__
            raise GuardError(
                f"a {kind} shares the scheduler of a guarded {type(pipe).__name__}, whose guards would take its steps for "
                "theirs; give it one of its own: other.scheduler = type(other.scheduler).from_config(other.scheduler.config)."
            )
        frame = frame.f_back


def arguments_of_call(pipe: Any) -> Mapping[str, Any] | None:
    """Variables of the call of this pipeline that is under way in this thread; None where there is none."""
    frame: FrameType | None = sys._getframe(
        1
    )  # the own frame's variables would hold that frame, and with it all the others
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return dict(frame.f_locals)
        frame = frame.f_back
    return None


def has_callback(settings: Mapping[str, Any]) -> bool:
    """Whether a call is given a function that it calls at every step."""
    names = [name for name, value in settings.items() if value is not None]
    return any(name == "callback" or name.endswith("callback_on_step_end") for name in names)


def check_not_nested(pipe: Any) -> None:
    """Raise GuardError where a call of this pipeline is made amid another one of it, by a callback.

    The other one would lose its run, and its decisions.
    """
    frame: FrameType | None = sys._getframe(1)
    codes: set[CodeType] = set()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            if code in codes:  # a subclass's `__call__` around its base's is other code
                raise GuardError(
                    f"this {type(pipe).__name__} was called from within its own run (by a callback?), whose guards it would take "
                    "away; call it when that run has ended, or load a second pipeline."
                )
            codes.add(code)
        frame = frame.f_back


def why_no_step(settings: Mapping[str, Any], has_timesteps: bool, is_interrupted: bool = False) -> str:
    """Why a call went through no guarded step, as the end of a sentence.

    Args:
        settings: the call's variables.
        has_timesteps: whether there were any to go through.
        is_interrupted: whether it was cancelled.
    """
    if is_interrupted:
        return "it was cancelled before its first step; call the pipeline again and let it finish"
    if has_timesteps:
        return "it went past the guards, so its denoiser or scheduler was replaced; detach the guards and attach them again"
    steps = settings.get("num_inference_steps")
    named = [f"{name}={settings[name]!r}" for name in _SHORTENING if isinstance(settings.get(name), int | float)]
    if isinstance(steps, int) and (steps < 0 or not named):  # pipelines that start late set it to what is left
        named = [f"num_inference_steps={steps}"]
    leave = f"{named[0]} leaves" if len(named) == 1 else f"{' and '.join(named) or 'the timesteps'} leave"
    return f"{leave} no step to take; ask for at least one"


def _is_method(owner: Any, code: CodeType) -> bool:
    """Whether `code` is that of a method of the owner's class."""
    for base in type(owner).__mro__:
        method = base.__dict__.get(code.co_name)
        if callable(method) and _code_of(method) is code:
            return True
    return False


@lru_cache(maxsize=256)
def _code_of(method: Callable[..., Any]) -> CodeType | None:
    """That of a function of a class, below its decorators."""
    return getattr(inspect.unwrap(method), "__code__", None)


def check_all_is_read(kwargs: Mapping[str, Any]) -> None:
    """Raise GuardError if a denoiser's keyword arguments hold tensors or words that no guard reads."""
    for container in _CONTAINERS:
        for name, value in (kwargs.get(container) or {}).items():
            if name not in _KNOWN and not _is_number(value):
                raise GuardError(
                    f"{container}[{name!r}] may bring a concept in past the guards, which do not read it, so no image is "
                    "returned; leave it out."
                )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)
