"""One prompt tried: the guarded image, the bare one where that is allowed, what every guard scored, and the prompt's tokens."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

from saferedir.decisions import Decision
from saferedir.server.api.encoding import encoded
from saferedir.server.api.images import make_images
from saferedir.server.api.moderation import check_key
from saferedir.server.api.records import Asked, new_id, record_of
from saferedir.server.api.schemas import GenerationRequest
from saferedir.server.api.service import Service, policy_title
from saferedir.server.config import ModelSettings, PolicyName
from saferedir.server.engine.rows import CallKey, Row
from saferedir.server.errors import ApiError, bad_request
from saferedir.server.keys import Caller
from saferedir.server.provenance import facts_of


@dataclass(frozen=True)
class Trial:
    """What came of a prompt.

    Attributes:
        guarded: the image's file; None where it was refused.
        bare: the file of the image without guards under the same seed; None where that was not asked for.
        image_id: of the guarded image's record; "" where there is none.
        record: the audit record of the guarded image.
        tokens: the prompt's tokens; "" for those that mark beginning, end and padding.
        checked: the guards' decisions on the prompt alone.
        refusal: why there is no image, in a sentence; "" where there is one.
    """

    prompt: str
    seed: int
    model: str
    policy: str
    guarded: bytes | None
    bare: bytes | None
    image_id: str
    record: dict[str, Any]
    tokens: tuple[str, ...]
    checked: tuple[Decision, ...]
    refusal: str = ""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Of the run that made the image or, where there was none, of the prompt alone."""
        of_run = tuple(Decision.from_dict(entry) for entry in self.record.get("decisions", ()))
        return of_run or self.checked


async def try_prompt(
    service: Service,
    caller: Caller,
    prompt: str,
    seed: int,
    *,
    model: str | None,
    policy: PolicyName | None,
    bare: bool,
) -> Trial:
    """Check, generate and, where it is allowed, generate without guards; each image leaves a record.

    Raises:
        ApiError: the request cannot be served; a refusal by the policy is a trial, not an error.
    """
    settings = service.model(model, caller)
    body = GenerationRequest.model_validate({"prompt": prompt, "seed": seed, "model": settings.name, "policy": policy})
    chosen, profile = service.rules(settings, body.policy, caller)
    if bare and not service.settings.allows_unguarded(settings):
        raise bad_request("The configuration does not allow images without guards.", "unguarded_not_allowed")
    check = Row(
        check_key(settings, chosen, profile), service.prompt(prompt), seed, service.deadline(), caller=caller.name
    )
    (checked,) = await service.outcomes(None, settings.name, [check])
    guarded, refusal, image_id = None, "", ""
    try:
        (item,) = (await make_images(service, None, caller, body, "generate", None)).data
        guarded, image_id = base64.b64decode(item.b64_json), item.id
    except ApiError as error:
        if error.code != "moderation_blocked":
            raise
        refusal, image_id = str(error), next(iter(error.image_ids), "")
    record = await asyncio.to_thread(service.audit.store.record, image_id) or {}
    file = await _without_guards(service, caller, settings, prompt, seed) if bare else None
    return Trial(
        prompt,
        seed,
        settings.name,
        policy_title(settings, chosen),
        guarded,
        file,
        image_id,
        record,
        checked.tokens,
        checked.decisions,
        refusal,
    )


async def _without_guards(
    service: Service, caller: Caller, model: ModelSettings, prompt: str, seed: int
) -> bytes | None:
    """The bare model's image as a file, and its record, which says that it is one; None where the model shows none."""
    width, _, height = (model.sizes[0] if model.sizes else "").partition("x")
    size = (int(width), int(height)) if height else None
    row = Row(CallKey("bare", "none", 0, size), prompt, seed, service.deadline(), caller=caller.name)
    (outcome,) = await service.outcomes(None, model.name, [row])
    if outcome.image is None:
        return None
    name = new_id()
    facts = {**facts_of(name, model.name), "guarded": False}  # no credentials: no policy has passed it
    file = await asyncio.to_thread(encoded, outcome.image, "png", 100, facts)
    record = record_of(service, Asked(caller.name, None, None), model, row, name, "unguarded", outcome, file)
    await service.record([record], row.deadline)
    service.metrics.images.labels(model.name, "unguarded").inc()
    return file
