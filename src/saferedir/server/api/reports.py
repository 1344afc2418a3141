"""Reports of images that should not have been as they are."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from saferedir.server.api.records import digest_of_text
from saferedir.server.api.schemas import ReportAnswer, ReportRequest, responses
from saferedir.server.api.service import Service, caller_of
from saferedir.server.errors import ApiError, bad_request, unavailable
from saferedir.server.keys import Caller
from saferedir.server.reports.store import ReportRow, ReportStore


def reports_router(service: Service) -> APIRouter:
    """The one route."""
    router = APIRouter(tags=["reports"])

    @router.post("/v1/reports", responses=responses())
    async def report(request: Request, body: ReportRequest) -> ReportAnswer:
        """Say what is wrong with an image; a reviewer decides, and the guard may be trained by it."""
        try:
            row = await asyncio.to_thread(file_report, ReportStore(service.audit.store), caller_of(request), body)
        except ApiError:
            raise
        except Exception as error:  # of the database
            raise unavailable("The report cannot be kept; try again later.", "reports_unavailable") from error
        return ReportAnswer(id=row.id, status=row.status, image_id=row.image_id, concept=row.concept)

    return router


def file_report(store: ReportStore, caller: Caller, body: ReportRequest) -> ReportRow:
    """A new report; ApiError 404 where the caller has no such image, 400 where concept or prompt are not the image's."""
    record = store.audit.record(body.image_id)
    is_image = record is not None and "prompt_sha256" in record
    if record is None or not is_image or not (record["key"] == caller.name or caller.may_review):
        raise ApiError(404, "There is no such image of your key.", "image_not_found", param="image_id")
    concepts = sorted({decision["concept"] for decision in record["decisions"]})
    concept = body.concept or (concepts[0] if len(concepts) == 1 else None)
    if concept is None or (concepts and concept not in concepts):
        raise bad_request(
            f"concept is none of {', '.join(concepts)}, which the guards of this image keep out.", param="concept"
        )
    prompt = body.prompt or record.get("prompt") or ""
    if prompt and digest_of_text(prompt) != record["prompt_sha256"]:
        raise bad_request("prompt is not that of the image.", param="prompt")
    return store.add(
        image_id=body.image_id, key=caller.name, problem=body.problem, concept=concept, note=body.note, prompt=prompt
    )
