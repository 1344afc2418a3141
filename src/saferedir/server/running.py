"""Runs the service under uvicorn until it is stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from saferedir.server.config import Settings
from saferedir.server.policies import check_policies
from saferedir.utils.extras import require_extra

if TYPE_CHECKING:
    from saferedir.server.api.service import Service

Engine = Literal["local", "ray"]
#: seconds for the answers to requests that are given up when the service stops
_ANSWERING = 3.0


def serve(settings: Settings, on_ready: Callable[[str], None] = lambda address: None, engine: Engine = "local") -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished first, for `limits.shutdown` seconds at most.

    Args:
        on_ready: called with the address once it is bound.
        engine: "local", or "ray" for models in Ray Serve (`settings.ray`).

    Raises:
        ServerError: strangers could use it without a key, a policy file cannot be served (`policies.check_policies`), or the
            audit's database cannot be opened.
        MissingExtraError: the extra `server` is not installed.
    """
    require_extra("uvicorn", "server", "the service")
    settings.check_address()
    check_policies(settings)
    if engine == "local":
        _run(settings, on_ready, {})
        return
    from saferedir.server.engine.ray_models import RayModels

    with RayModels(settings) as models:
        _run(settings, on_ready, {"load": models.load, "lanes": settings.ray.max_replicas + 1})


def _run(settings: Settings, on_ready: Callable[[str], None], how: dict[str, Any]) -> None:
    import uvicorn

    from saferedir.server.application import create_service

    app = create_service(settings, **how)
    service: Service = app.state.service

    class Server(uvicorn.Server):
        """Says when it is bound, and to what; and finishes what runs before it closes."""

        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                on_ready(f"http://{host}:{port}")

        async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await drain(service, settings.limits.shutdown)
            await super().shutdown(sockets)  # type: ignore[arg-type]

    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, access_log=False, log_level="warning", server_header=False,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    Server(config).run()


async def drain(service: Service, seconds: float) -> None:
    """Let requests under way end, and answer new ones 503; after `seconds` those under way are answered 503, too."""
    service.is_stopping, end = True, time.monotonic() + seconds
    while service.running and time.monotonic() < end:
        await asyncio.sleep(0.05)
    while service.running and time.monotonic() < end + _ANSWERING:
        service.give_up()
        await asyncio.sleep(0.05)
