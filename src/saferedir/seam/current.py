"""CurrentRun: the run in progress on one pipeline, if there is one, and whether the thread at hand may go on with it.

A run belongs to one thread; a second thread on the same pipeline makes both raise rather than mix. Used by `seam`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from saferedir.errors import GuardError
from saferedir.seam.session import Session


class CurrentRun:
    """None at first: due once the pipeline has set timesteps, a session from its first denoiser call on."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.is_due = False
        #: the last guard left in the middle of a run; its next moment raises
        self.is_tripped = False
        #: guarded steps of all runs up to now
        self.steps = 0
        self._owner: int | None = None
        self._is_contested = False

    def expect(self) -> None:
        """Another run starts, in this thread; whatever was left of the last one is void."""
        self.session, self.is_due = None, True
        self._owner, self._is_contested = threading.get_ident(), False

    def begin(self, session: Session) -> None:
        """The run that was due is real."""
        self.session, self.is_due = session, False

    def forget(self) -> None:
        """No run is in progress or due."""
        self.session, self.is_due, self.is_tripped = None, False, False

    def fail(self) -> bool:
        """Let the session in progress fail, if there is one; whether it could have gone on."""
        session = self.session
        if session is None or session.finished:
            return False
        was_running, session.failed = not session.failed, True
        return was_running

    def active(self, denoiser: str) -> Session:
        """The session in progress; anything else raises. `denoiser`: its attribute, for the sentence."""
        session = self.session
        if session is None and self.is_due:
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

    def check_thread(self) -> None:
        """Raise in both threads if a second one entered the run of a first; neither may return an image."""
        advice = "give each thread its own pipeline, or take turns with a lock."
        in_run = self.is_due or (self.session is not None and not self.session.finished)
        if in_run and threading.get_ident() != self._owner:
            self._is_contested = True
            raise GuardError(f"two threads use one guarded pipeline at the same time; {advice}")
        if self._is_contested:
            raise GuardError(f"another thread used this guarded pipeline during the run; {advice}")

    @contextmanager
    def failing_closed(self) -> Iterator[None]:
        """Whatever is raised within fails the session."""
        try:
            yield
        except BaseException:
            if self.session is not None:
                self.session.failed = True
            raise
