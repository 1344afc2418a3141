"""Generations and edits: from a request to images with their audit records, or to one refusal."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from PIL import Image
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from saferedir.decisions import Decision
from saferedir.server.api.encoding import decoded, encoded, fitted, pixels_of
from saferedir.server.api.records import Asked, digest_of_text, new_id, record_of
from saferedir.server.api.schemas import (
    EditRequest,
    ErrorAnswer,
    GenerationRequest,
    GuardVerdict,
    ImageItem,
    ImageOptions,
    ImagesAnswer,
    OutputFormat,
    responses,
)
from saferedir.server.api.service import Service, caller_of, policy_title
from saferedir.server.config import ModelSettings
from saferedir.server.engine.rows import CallKey, Outcome, Row
from saferedir.server.errors import ApiError, bad_request
from saferedir.server.keys import Caller
from saferedir.server.marking import Marker
from saferedir.server.provenance import facts_of

Kind = Literal["generate", "edit"]
_EVENT = {"generate": "image_generation.completed", "edit": "image_edit.completed"}
#: OpenAI's events hold counts of tokens, which nobody counts here
_NO_USAGE = {
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}  # fmt: skip
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    **responses(),
    200: {"model": ImagesAnswer, "content": _EVENTS},
    409: {"model": ErrorAnswer},
}
_FILE = {"type": "string", "format": "binary"}


class Upload(NamedTuple):
    """An image that a client sent: decoded, and the SHA-256 of its file."""

    image: Image.Image
    sha256: str


def edit_form() -> dict[str, Any]:
    """The form of an edit for the OpenAPI schema: the request's fields, and a file."""
    schema = EditRequest.model_json_schema()
    properties = {**schema["properties"], "image": _FILE}
    body = {"type": "object", "required": ["prompt", "image"], "properties": properties, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}


def images_router(service: Service) -> APIRouter:
    """Both routes."""
    router = APIRouter(tags=["images"])

    @router.post("/v1/images/generations", response_model=ImagesAnswer, responses=_RESPONSES)
    async def generate(request: Request, body: GenerationRequest) -> Response:
        """Generate images of a prompt, under the model's guards and the policy of the key."""
        return await _answer(service, request, body, "generate", None)

    @router.post("/v1/images/edits", response_model=ImagesAnswer, responses=_RESPONSES, openapi_extra=edit_form())
    async def edit(request: Request) -> Response:
        """Change an image towards a prompt, under the same guards and policy."""
        body, data = await _read_form(service, request)
        most = service.settings.limits.pixels
        with service.pixels.reserved(await asyncio.to_thread(pixels_of, data, most, "image")):
            image = await asyncio.to_thread(decoded, data, most, "image")
            return await _answer(service, request, body, "edit", Upload(image, hashlib.sha256(data).hexdigest()))

    return router


async def _answer(service: Service, request: Request, body: ImageOptions, kind: Kind, image: Upload | None) -> Response:
    key = request.headers.get("idempotency-key")
    caller = caller_of(request)
    if key is None:
        answer = await make_images(service, request, caller, body, kind, image)
    else:
        facts = [kind, body.model_dump(mode="json"), None if image is None else image.sha256]
        digest = digest_of_text(json.dumps(facts, sort_keys=True))
        made = await service.answers.once(
            caller.name, key, digest, lambda: make_images(service, None, caller, body, kind, image)
        )
        assert isinstance(made, ImagesAnswer)
        answer = made
    if body.stream:
        return StreamingResponse(_events(answer, kind), media_type="text/event-stream")
    return Response(answer.model_dump_json(), media_type="application/json")


async def make_images(
    service: Service,
    request: Request | None,
    caller: Caller,
    body: ImageOptions,
    kind: Kind,
    image: Upload | None,
) -> ImagesAnswer:
    """Generate, encode, record, and only then answer; ApiError where there is nothing to show."""
    model = service.model(body.model, caller)
    policy, profile = service.rules(model, body.policy, caller)
    size = _size(model, body.size or "auto")
    count = body.n or 1
    _check_can_edit(service, model, kind)
    rows = await _rows(
        service, caller, body, CallKey(kind, policy, caller.profile.retries, size, profile), count, image
    )
    asked = Asked(caller.name, body.safety_identifier or body.user, None if image is None else image.sha256)
    try:
        outcomes = await service.outcomes(request, model.name, rows)
    except ApiError as error:
        _check_can_edit(service, model, kind)  # it is known once the model is loaded
        if error.code == "guard_failed":
            service.audit.append(
                [record_of(service, asked, model, row, new_id(), "failed", None, None) for row in rows]
            )
            service.metrics.images.labels(model.name, "failed").inc(count)
        raise
    blocked = [outcome for outcome in outcomes if outcome.blocked]
    ids = [new_id() for _ in outcomes]
    files: Sequence[bytes | None] = [None] * count
    if not blocked:
        files = await asyncio.to_thread(
            _files, service.marker, body, model.name, [_shown(outcome) for outcome in outcomes], ids
        )
    records = [
        record_of(service, asked, model, row, name, _action(outcome, bool(blocked)), outcome, file)
        for row, name, outcome, file in zip(rows, ids, outcomes, files, strict=True)
    ]
    await service.record(records, rows[0].deadline)
    for record in records:
        service.metrics.images.labels(model.name, record["action"]).inc()
    if blocked:
        raise _refusal(blocked, ids)
    shown = _shown(outcomes[0])
    return ImagesAnswer(
        created=int(time.time()),
        data=[
            _item(name, row.seed, outcome, file or b"")
            for name, row, outcome, file in zip(ids, rows, outcomes, files, strict=True)
        ],
        output_format=body.output_format or "png",
        size=f"{shown.width}x{shown.height}",
        model=model.name,
        policy=policy_title(model, policy),
    )


def _check_can_edit(service: Service, model: ModelSettings, kind: Kind) -> None:
    facts = service.host.facts(model.name)
    if kind == "edit" and facts is not None and not facts.can_edit:
        raise bad_request(
            "This model cannot edit images; diffusers has no image-to-image for it.", "unsupported_model", "model"
        )


async def _rows(
    service: Service,
    caller: Caller,
    body: ImageOptions,
    key: CallKey,
    count: int,
    image: Upload | None,
) -> list[Row]:
    """The images that are asked for, each with a seed of its own."""
    if count > caller.profile.images_per_request:
        raise bad_request(f"n is {count}; your key allows {caller.profile.images_per_request}.", param="n")
    if body.response_format == "url":
        raise bad_request(
            "response_format is url, but this service keeps no images; ask for b64_json.", param="response_format"
        )
    prompt, deadline = service.prompt(body.prompt), service.deadline()
    first = secrets.randbelow(2**32) if body.seed is None else body.seed
    start = None if image is None else await asyncio.to_thread(fitted, image.image, key.size)
    return [Row(key, prompt, first + index, deadline, start, caller.name) for index in range(count)]


def _files(
    marker: Marker, body: ImageOptions, model: str, images: Sequence[Image.Image], ids: Sequence[str]
) -> list[bytes]:
    """The images as marked files, a PNG with the name of its record in it."""
    compression = 100 if body.output_compression is None else body.output_compression
    return [
        marked_file(marker, image, body.output_format or "png", compression, facts_of(name, model))
        for image, name in zip(images, ids, strict=True)
    ]


def marked_file(
    marker: Marker, image: Image.Image, output_format: OutputFormat, compression: int, facts: dict[str, Any]
) -> bytes:
    """An image as a file with all marks that the configuration asks for; `facts` are those of `facts_of`."""
    marked = marker.watermarked(image, facts["image_id"])
    return marker.signed(encoded(marked, output_format, compression, facts), output_format, facts)


def _size(model: ModelSettings, size: str) -> tuple[int, int] | None:
    if size == "auto":
        size = model.sizes[0] if model.sizes else ""
    elif size not in model.sizes:
        raise bad_request(
            f"size is not one of {', '.join([*model.sizes, 'auto'])}, which this model makes.", param="size"
        )
    width, _, height = size.partition("x")
    return (int(width), int(height)) if size else None


def _shown(outcome: Outcome) -> Image.Image:
    if outcome.blocked or not isinstance(outcome.image, Image.Image):
        raise ApiError(503, "The model made no image that can be shown.", "guard_failed")
    return outcome.image


def _action(outcome: Outcome, is_refused: bool) -> str:
    return "blocked" if outcome.blocked else "withheld" if is_refused else "delivered"


def _refusal(blocked: Sequence[Outcome], ids: Sequence[str]) -> ApiError:
    categories = sorted({name for outcome in blocked for name in outcome.blocked_by})
    return ApiError(
        400,
        f"The request was refused by the safety policy; categories: {', '.join(categories) or 'unknown'}.",
        "moderation_blocked",
        categories=categories,
        image_ids=ids,
    )


def _item(image_id: str, seed: int, outcome: Outcome, file: bytes) -> ImageItem:
    return ImageItem(
        b64_json=base64.b64encode(file).decode(),
        id=image_id,
        seed=seed,
        sha256=hashlib.sha256(file).hexdigest(),
        guards=[verdict_of(decision) for decision in outcome.decisions],
    )


def verdict_of(decision: Decision) -> GuardVerdict:
    """A decision as clients get it."""
    return GuardVerdict(
        guard=decision.name or decision.guard,
        concept=decision.concept,
        outcome=decision.outcome,
        category=decision.category,
        grade=decision.grade,
        prompt_score=decision.prompt_score,
        image_score=decision.image_score,
    )


async def _events(answer: ImagesAnswer, kind: Kind) -> AsyncIterator[str]:
    """One event an image, each whole: nothing has checked a partial one."""
    for item in answer.data:
        event = {
            **item.model_dump(), "type": _EVENT[kind], "created_at": answer.created, "background": answer.background,
            "output_format": answer.output_format, "quality": answer.quality, "size": answer.size, "usage": _NO_USAGE,
        }  # fmt: skip
        yield f"event: {_EVENT[kind]}\ndata: {json.dumps(event)}\n\n"


async def _read_form(service: Service, request: Request) -> tuple[EditRequest, bytes]:
    """The fields and the one file of a multipart form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise bad_request("The body of an edit is multipart/form-data.", "invalid_content_type")
    async with request.form(max_files=16, max_fields=64, max_part_size=1_000_000) as form:
        return await _read_fields(service, form)


async def _read_fields(service: Service, form: FormData) -> tuple[EditRequest, bytes]:
    files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    if any(name == "mask" for name, _ in files):
        raise bad_request("mask is not supported; send image and prompt.", "unknown_parameter", "mask")
    if [name.removesuffix("[]") for name, _ in files] != ["image"]:
        raise bad_request("Send one file called image, and no other.", param="image")
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    try:
        body = EditRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from None
    return body, await files[0][1].read()


def invalid(errors: Sequence[Any]) -> ApiError:
    """400 for the first fault of a body, without repeating what was sent."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "header")]
    if first["type"] == "json_invalid":
        return bad_request("The body is not JSON.", "invalid_json")
    if not where:
        return bad_request("The body is no JSON object; send one, as application/json.", "invalid_json")
    param = ".".join(where)[:100]
    if first["type"] == "extra_forbidden":
        return bad_request(f"{param} is no parameter of this request.", "unknown_parameter", param)
    named = list(takewhile(str.isidentifier, where))
    if (
        named and len(named) < len(where) and "[" in where[len(named)]
    ):  # pydantic names a form among several by its types
        param = ".".join(named)
        return bad_request(f"{param} has none of the forms that it may have; /openapi.json lists them.", param=param)
    if first["type"] == "missing":
        return bad_request(f"{param} is missing.", "missing_required_parameter", param)
    reason = first["msg"].removeprefix("Value error, ")
    return bad_request(f"{param}: {reason[:1].lower()}{reason[1:]}.", "invalid_value", param)
