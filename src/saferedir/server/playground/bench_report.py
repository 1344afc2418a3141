"""The latest page of a bench, for a tab of the playground."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response

ROUTE = "/playground/bench"
#: the page's own scripts run, but know nothing of this origin
_HEADERS = {"Content-Security-Policy": "sandbox allow-scripts"}
_NONE = (
    "<!doctype html><title>no report</title><p style='font-family: system-ui, sans-serif'>There is no bench report yet. "
    "Make one: <code>saferedir bench run pictoworld-quick --out runs/bench</code>"
)


def latest_report(folder: Path) -> Path | None:
    """The newest report.html in the folder or in one of its folders."""
    pages = [*folder.glob("report.html"), *folder.glob("*/report.html")]
    return max(pages, key=lambda page: page.stat().st_mtime, default=None)


def bench_report_router(folder: Path | None) -> APIRouter:
    """The route of the page; without a folder there is no report."""
    router = APIRouter(include_in_schema=False)

    @router.get(ROUTE)
    def report() -> Response:
        page = None if folder is None else latest_report(folder)
        if page is None:
            return HTMLResponse(_NONE, headers=_HEADERS)
        return FileResponse(page, media_type="text/html", headers=_HEADERS)

    return router
