"""What the routes share: settings, models, audit, metrics; and waiting for rows and records with a deadline."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from saferedir.errors import SaferedirError
from saferedir.server.api.idempotency import Answers
from saferedir.server.api.metrics import Metrics
from saferedir.server.api.pixels import PixelBudget
from saferedir.server.api.schemas import ImagesAnswer
from saferedir.server.audit.writer import AuditWriter
from saferedir.server.config import STRICTNESS, ModelSettings, PolicyName, Settings
from saferedir.server.engine.host import ModelHost
from saferedir.server.engine.rows import Outcome, QueueFull, Row
from saferedir.server.engine.worker import DeadlinePassed
from saferedir.server.errors import ApiError, bad_request, too_many, unavailable
from saferedir.server.keys import Caller, Callers, RateLimit
from saferedir.server.marking import Marker
from saferedir.server.policies import floor_of

logger = logging.getLogger("saferedir.server")


@dataclass
class Service:
    """All that a request needs."""

    settings: Settings
    host: ModelHost
    audit: AuditWriter
    metrics: Metrics
    callers: Callers = field(init=False)
    rates: RateLimit = field(default_factory=RateLimit)
    answers: Answers = field(init=False)
    marker: Marker = field(init=False)
    pixels: PixelBudget = field(init=False)
    is_stopping: bool = False  # new requests are answered 503
    running: int = 0  # requests under way
    _pending: set[asyncio.Future[list[Outcome]]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.callers = Callers(self.settings)
        self.marker = Marker(
            self.settings.provenance, [size for model in self.settings.models for size in model.pixels]
        )
        self.answers = Answers(self.settings.limits.idempotency_s, _size_of)
        self.pixels = PixelBudget(self.settings.limits.pixels_waiting)

    def model(self, name: str | None, caller: Caller) -> ModelSettings:
        """The model that a request asks for; 404 if there is none, or not for this caller."""
        allowed = [
            model for model in self.settings.models if not caller.profile.models or model.name in caller.profile.models
        ]
        chosen = allowed[0] if name is None else next((model for model in allowed if model.name == name), None)
        if chosen is None:
            raise ApiError(
                404, "There is no such model; GET /v1/models lists those of your key.", "model_not_found", param="model"
            )
        return chosen

    def rules(self, model: ModelSettings, wanted: PolicyName | None, caller: Caller) -> tuple[str, str]:
        """(policy, profile) of a `CallKey`: of a model with a policy file, or of the key's profile.

        An `on_unsafe` that a key's profile sets is a floor under the file's actions, too; one that it does not set is not.
        """
        least, profile = floor_of(model, caller.profile)
        return self.policy(wanted, caller) if least else wanted or "", profile

    def policy(self, wanted: PolicyName | None, caller: Caller) -> PolicyName:
        """The caller's policy, or the stricter one that the request names."""
        least = caller.profile.on_unsafe
        if wanted is None:
            return least
        if STRICTNESS.index(wanted) < STRICTNESS.index(least):
            raise bad_request(
                f"policy is {wanted}, which is weaker than {least}, your key's; name a stricter one.",
                "policy_too_weak",
                "policy",
            )
        return wanted

    def prompt(self, text: str, param: str = "prompt") -> str:
        """The text, or 400 if it is too long."""
        if len(text) > self.settings.limits.prompt:
            raise bad_request(
                f"{param} has more than {self.settings.limits.prompt} characters; shorten it.",
                "string_above_max_length",
                param,
            )
        return text

    def give_up(self) -> None:
        """Answer 503 to all that wait for images."""
        for pending in list(self._pending):
            pending.cancel()

    def deadline(self) -> float:
        """When a request of now is given up, in seconds of `time.monotonic`."""
        return time.monotonic() + self.settings.limits.deadline

    # --- waiting

    def submit(self, model: str, rows: Sequence[Row]) -> None:
        """Let rows wait for the model, or 429."""
        if len(rows) > self.settings.queue_share:
            raise bad_request(
                f"{len(rows)} images are more than may wait at once, which is {self.settings.queue_share}; ask for fewer.",
                "too_many_images",
            )
        try:
            self.host.submit(model, rows)
        except QueueFull as error:
            whose = "of your key" if error.is_callers else ""
            raise too_many(
                f"Too many images {whose} wait for this model; try again.".replace("  ", " "),
                "queue_full",
                self._seconds_of_queue(model),
            ) from None

    def _seconds_of_queue(self, model: str) -> float:
        return self.metrics.seconds_a_row(model) * self.host.waiting()[model]

    async def outcomes(self, request: Request | None, model: str, rows: Sequence[Row]) -> list[Outcome]:
        """What came of the rows, in order; an ApiError if that is not known of all.

        Args:
            request: whose client, if it leaves, takes rows back that are not begun; None: they are finished anyway.
        """
        self.submit(model, rows)
        try:
            return await self._within(request, [row.future for row in rows], rows[0].deadline)
        except ApiError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise stopping() from None  # the queue was closed
        except BaseException as error:
            raise _api_error(error) from error
        finally:
            for row in rows:
                row.future.cancel()

    async def _within(
        self, request: Request | None, futures: Sequence[Future[Outcome]], deadline: float
    ) -> list[Outcome]:
        pending = asyncio.gather(*map(asyncio.wrap_future, futures))
        pending.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else may ask for it
        leaving = None if request is None else asyncio.ensure_future(_left(request))
        if leaving is not None:
            leaving.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending.add(pending)
        try:  # woken by what happens, and by nothing else: many wait here for long
            waiting: set[asyncio.Future[Any]] = {pending} if leaving is None else {pending, leaving}
            await asyncio.wait(
                waiting,
                timeout=max(0.0, deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not pending.done():
                pending.cancel()
                if leaving is not None and leaving.done():
                    raise ApiError(499, "The client has left.", "client_closed_request")
                raise DeadlinePassed
        finally:
            self._pending.discard(pending)
            if leaving is not None:
                leaving.cancel()
        return pending.result()

    async def record(self, records: Sequence[Mapping[str, Any]], deadline: float) -> None:
        """Return once the records are on the disk; 503 if they cannot be written in time."""
        left = max(deadline - time.monotonic(), 1.0)
        try:
            await asyncio.wait_for(asyncio.wrap_future(self.audit.append(records)), left)
        except Exception as error:
            logger.error("an audit record could not be written: %s", type(error).__name__)
            raise unavailable(
                "The audit record cannot be written, so no image is shown; try again later.", "audit_unavailable"
            ) from error


async def _left(request: Request) -> None:
    """Returns once the client has left; the body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def stopping() -> ApiError:
    """503: the process ends; another one may answer."""
    return unavailable("The service is stopping.", "shutting_down")


def _api_error(error: BaseException) -> ApiError:
    """503, with what went wrong, as far as a client may know: nothing of a message that could repeat a prompt."""
    if isinstance(error, DeadlinePassed):
        return unavailable("No image was made in time; try again later.", "deadline_exceeded")
    logger.error("a request failed: %s", _reason(error))
    return unavailable(
        f"The image could not be checked or made, so none is shown ({type(error).__name__}).", "guard_failed"
    )


def _reason(error: BaseException) -> str:
    """For the log: the library's own sentences name no prompt, those of others may."""
    return f"{type(error).__name__}: {error}" if isinstance(error, SaferedirError) else type(error).__name__


def _size_of(answer: object) -> int:
    """Bytes of an answer's images, near enough."""
    return sum(len(item.b64_json) for item in answer.data) if isinstance(answer, ImagesAnswer) else 0


def policy_title(model: ModelSettings, policy: str) -> str:
    """What an answer calls the policy of a `CallKey`: its name, or that of the model's policy file."""
    rules = model.rules
    return policy if policy or rules is None else rules.name


def caller_of(request: Request) -> Caller:
    """Whom the gate has found."""
    caller: Caller = request.scope["state"]["caller"]
    return caller
