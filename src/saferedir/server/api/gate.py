"""What every request passes before its body is read: who sends it, how often, from where, and how much."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saferedir.server.api.metrics import route_label
from saferedir.server.api.service import Service, stopping
from saferedir.server.config import is_loopback
from saferedir.server.errors import ApiError

logger = logging.getLogger("saferedir.server")


#: bytes of a body that brings no image; a million unknown fields in it would each be an error to write down
TEXT_BODY = 262_144
TEXT_ROUTES = frozenset({"/v1/images/generations", "/v1/checks", "/v1/reports"})
#: what a proxy adds: requests of others then seem to come from this machine
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class BodyTooLarge(ApiError):
    """A body is larger than may be sent: 413."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"The body has more than {most} bytes.", "request_too_large")


class Gate:
    """An ASGI layer around the application; it answers what may not pass."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._most = int(service.settings.limits.body_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} connections are not served.")
        began, route, request_id = time.monotonic(), route_label(scope["path"]), f"req_{uuid.uuid4().hex}"
        metrics = self._service.metrics
        read, has_begun, most = 0, False, self._most_of(scope)

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise BodyTooLarge(most)
            return message

        async def noted(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._service.is_stopping:
                    headers["connection"] = "close"
                metrics.requests.labels(route, str(message["status"])).inc()
                metrics.seconds.labels(route).observe(time.monotonic() - began)
            await send(message)

        scope.setdefault("state", {})["request_id"] = request_id
        try:
            self._check(scope)
        except ApiError as error:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, noted)
            return
        is_heartbeat = scope["path"].startswith("/gradio_api/heartbeat")  # open as long as the page is
        counted = 0 if is_heartbeat else 1
        self._service.running += counted
        try:
            await self._app(scope, limited, noted)
        except Exception as error:  # its message may repeat what was sent, and a traceback would log it
            logger.error("a request failed: %s", type(error).__name__)
            if not has_begun:
                failure = ApiError(503, "The request failed, and no image is shown.", "internal_error")
                await JSONResponse(failure.body(), failure.status)(scope, receive, noted)
        finally:
            self._service.running -= counted

    def _most_of(self, scope: Scope) -> int:
        """Bytes that the body of this request may have."""
        return min(TEXT_BODY, self._most) if scope["path"] in TEXT_ROUTES else self._most

    def _check(self, scope: Scope) -> None:
        service, headers = self._service, Headers(scope=scope)
        if not service.settings.keys:
            _check_origin(headers)
        caller = service.callers.of(headers.get("authorization"))
        scope["state"]["caller"] = caller
        length, most = headers.get("content-length", "0"), self._most_of(scope)
        if not length.isascii() or not length.isdigit() or int(length[:20]) > most:
            raise BodyTooLarge(most)
        if scope["method"] == "POST" and service.is_stopping:
            raise stopping()
        if scope["method"] == "POST":
            service.rates.spend(caller)


def _check_origin(headers: Headers) -> None:
    """Without keys, only programs of this machine are served: no page of another site, and nothing through a proxy."""
    if name := next((name for name in FORWARDED if name in headers), ""):
        raise ApiError(403, f"A request with {name} came through a proxy, and there are no keys.", "not_local")
    for name, value in (("Host", f"//{headers.get('host', 'localhost')}"), ("Origin", headers.get("origin", ""))):
        if value and not is_loopback(_host_of(value)):
            raise ApiError(403, f"{name} is not this machine, and there are no keys.", "not_local")


def _host_of(address: str) -> Any:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
