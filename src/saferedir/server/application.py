"""The whole service as one ASGI application: the API and, where the configuration says so, the page at `/`."""

from __future__ import annotations

from fastapi import FastAPI

from saferedir.server.api.app import create_app
from saferedir.server.config import Settings
from saferedir.server.engine.host import load_model
from saferedir.server.engine.model import Loader


def create_service(settings: Settings, load: Loader = load_model, lanes: int = 1) -> FastAPI:
    """As `create_app`, with the playground."""
    app = create_app(settings, load, lanes)
    if settings.playground.enabled:
        from saferedir.server.playground.mounting import mount_playground

        mount_playground(app, app.state.service)
    return app
