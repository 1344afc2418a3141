"""The application: routes, errors in OpenAI's shape, and a schema that says what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from saferedir.server.api.gate import Gate
from saferedir.server.api.images import images_router, invalid
from saferedir.server.api.information import information_router
from saferedir.server.api.metrics import Metrics
from saferedir.server.api.moderation import moderation_router
from saferedir.server.api.reports import reports_router
from saferedir.server.api.service import Service
from saferedir.server.audit.store import AuditStore
from saferedir.server.audit.writer import AuditWriter
from saferedir.server.config import Settings
from saferedir.server.engine.host import ModelHost, load_model
from saferedir.server.engine.model import Loader
from saferedir.server.errors import ApiError
from saferedir.utils.packaged import library_version


def create_app(settings: Settings, load: Loader = load_model, lanes: int = 1) -> FastAPI:
    """The service as an ASGI application; models and audit are opened when it starts, and closed when it ends.

    Args:
        load: makes a model of its settings.
        lanes: calls of one model at a time; more than 1 where `load` gives models that are elsewhere.

    Raises:
        ServerError: strangers could use it without a key, or the audit's database cannot be opened.
    """
    settings.check_address()
    metrics = Metrics()
    host = ModelHost(settings, load, metrics.on_batch, lanes=lanes)
    audit = AuditWriter(AuditStore(settings.audit.url))
    service = Service(settings, host, audit, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        audit.start()
        host.start()
        try:
            yield
        finally:
            await asyncio.to_thread(host.close)
            await asyncio.to_thread(audit.close)
            audit.store.close()

    app = FastAPI(
        title="saferedir", version=library_version(), lifespan=lifespan, docs_url=None, redoc_url=None,
        summary="Guarded image generation in the shape of OpenAI's Images API.",
    )  # fmt: skip
    app.state.service = service
    for make_router in (images_router, moderation_router, reports_router, information_router):
        app.include_router(make_router(service))
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Gate, service=service)
    app.openapi = lambda: _schema(app, bool(settings.keys))  # type: ignore[method-assign]
    return app


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _on_api_error(request, invalid(error.errors()))


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ApiError):  # raised while the body was read
        return await _on_api_error(request, cause)
    words = {404: "There is no such address.", 405: "This address does not take that method."}
    message = words.get(error.status_code, "The request cannot be read.")
    return await _on_api_error(request, ApiError(error.status_code, message, headers=error.headers))


def _schema(app: FastAPI, has_keys: bool) -> dict[str, Any]:
    """FastAPI's schema, without the 422 that is answered as 400 here, and with the key."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        if has_keys:
            schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
