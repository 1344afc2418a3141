"""Puts the page into the application, and closes all of Gradio's addresses that it does not need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from saferedir.server.api.service import Service
from saferedir.server.errors import ApiError
from saferedir.utils.extras import require_extra

#: what the page loads and sends; uploads, files, proxies and Gradio's other services are not among it
_PATHS = frozenset({"", "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"})
_PREFIXES = (
    "/assets/", "/static/", "/svelte/", "/gradio_api/queue/", "/gradio_api/heartbeat/", "/gradio_api/startup-events",
    "/gradio_api/reset", "/gradio_api/cancel", "/gradio_api/app_id",
)  # fmt: skip


def mount_playground(app: FastAPI, service: Service) -> None:
    """Show the page at `/`; the application's own addresses come first.

    Raises:
        MissingExtraError: the extra `playground` is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gr: Any = require_extra("gradio", "playground", "the playground")
    from saferedir.server.playground.bench_report import bench_report_router
    from saferedir.server.playground.page import CSS, build_page

    settings = service.settings
    bench = settings.playground.bench or ("" if settings.keys else "runs")
    app.include_router(bench_report_router(Path(bench) if bench else None))
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app, build_page(service), path="/", theme=theme, css_paths=[CSS], footer_links=[], run_history=False, ssr_mode=False,
        show_error=False, enable_monitoring=False, pwa=False, mcp_server=False,
    )  # fmt: skip
    mount = app.routes[-1]
    mount.app = _Closed(mount.app)  # type: ignore[attr-defined]


def _is_own_page(headers: Headers) -> bool:
    """Whether a request names no other site as the page that it comes from; Gradio itself would answer all of them."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


class _Closed:
    """An ASGI layer that knows only the addresses which the page needs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path not in _PATHS and not path.startswith(_PREFIXES):
            error = ApiError(404, "There is no such address.")
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        if scope["type"] == "http" and not _is_own_page(Headers(scope=scope)):
            error = ApiError(403, "A page of another site may not use this one.", "not_local")
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)
