"""Runs the service under uvicorn until it is stopped."""

from __future__ import annotations

from collections.abc import Callable

from saferedir.server.config import Settings
from saferedir.utils.extras import require_extra


def serve(settings: Settings, on_ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGINT or SIGTERM; requests under way are finished first.

    Args:
        on_ready: called with the address once it is bound.

    Raises:
        ServerError: strangers could use it without a key, or the audit's database cannot be opened.
        MissingExtraError: the extra `server` is not installed.
    """
    require_extra("uvicorn", "server", "the service")
    import uvicorn

    from saferedir.server.application import create_service

    class Server(uvicorn.Server):
        """Says when it is bound, and to what."""

        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                on_ready(f"http://{host}:{port}")

    app = create_service(settings)
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, access_log=False, log_level="warning", server_header=False,
        timeout_graceful_shutdown=30,
    )  # fmt: skip
    Server(config).run()
