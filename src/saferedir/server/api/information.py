"""What is served, under which rules, and whether it works."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from saferedir.server.api.schemas import (
    GuardItem,
    GuardsAnswer,
    Health,
    ModelItem,
    ModelsAnswer,
    PoliciesAnswer,
    PolicyItem,
    responses,
)
from saferedir.server.api.service import Service, caller_of
from saferedir.server.config import STRICTNESS, ModelSettings, Profile
from saferedir.server.keys import Caller
from saferedir.server.policies import actions_of, floor_of

_TEXT = {"text/plain": {"schema": {"type": "string"}}}


def information_router(service: Service) -> APIRouter:
    """All routes that only tell."""
    router = APIRouter(tags=["information"], responses=responses())

    @router.get("/v1/models")
    async def models(request: Request) -> ModelsAnswer:
        """The models that the key may use."""
        return ModelsAnswer(data=[model_item(service, model) for model in allowed(service, caller_of(request))])

    @router.get("/v1/models/{model:path}")
    async def one_model(request: Request, model: str) -> ModelItem:
        """One of them."""
        return model_item(service, service.model(model, caller_of(request)))

    @router.get("/v1/guards")
    async def guards(request: Request) -> GuardsAnswer:
        """The guards that are always on these models."""
        return GuardsAnswer(
            data=[item for model in allowed(service, caller_of(request)) for item in guard_items(service, model)]
        )

    @router.get("/v1/policies")
    async def policies(request: Request) -> PoliciesAnswer:
        """The key's policy, and the stricter ones that a request may name."""
        profile = caller_of(request).profile
        return PoliciesAnswer(
            profile=profile.on_unsafe,
            retries=profile.retries,
            allowed=list(STRICTNESS[STRICTNESS.index(profile.on_unsafe) :]),
            requests_per_minute=profile.requests_per_minute,
            images_per_request=profile.images_per_request,
            files=[item for model in allowed(service, caller_of(request)) for item in policy_items(model, profile)],
        )

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="ok")

    @router.get("/readyz", response_model=Health, responses={503: {"model": Health}})
    async def readyz() -> Response:
        """Images can be made: the first model is loaded, threads run, no call hangs, records can be written."""
        reason = service.host.problem(service.settings.limits.deadline)
        if service.is_stopping:
            reason = "the service is stopping"
        if reason is None and (service.audit.failed or not service.audit.is_alive()):
            reason = "audit records cannot be written"
        health = Health(status="ok" if reason is None else "not ready", reason=reason)
        return JSONResponse(health.model_dump(), 200 if reason is None else 503)

    @router.get("/metrics", response_class=Response, responses={200: {"content": _TEXT}})
    async def metrics() -> Response:
        """Counts for Prometheus."""
        for name, count in service.host.waiting().items():
            service.metrics.waiting.labels(name).set(count)
        return Response(service.metrics.text(), media_type="text/plain")

    return router


def allowed(service: Service, caller: Caller) -> list[ModelSettings]:
    """The models of a caller."""
    names = caller.profile.models
    return [model for model in service.settings.models if not names or model.name in names]


def model_item(service: Service, model: ModelSettings) -> ModelItem:
    """A model as clients get it."""
    return ModelItem(id=model.name, loaded=service.host.facts(model.name) is not None, sizes=list(model.sizes))


def policy_items(model: ModelSettings, profile: Profile) -> list[PolicyItem]:
    """The policy file of a model, as the profile has it; none for a model without one."""
    rules = model.rules
    if rules is None:
        return []
    actions = actions_of(model, *floor_of(model, profile))
    return [
        PolicyItem(
            model=model.name, name=rules.name, version=rules.version, fingerprint=rules.fingerprint,
            profile=profile.policy_profile, actions=actions,
        )
    ]  # fmt: skip


def guard_items(service: Service, model: ModelSettings) -> list[GuardItem]:
    """The guards of a model, with what is known of them."""
    facts = service.host.facts(model.name)
    if facts is None:
        return [GuardItem(id=name, model=model.name) for name in model.guard_names]
    return [
        GuardItem(
            id=guard.name, model=model.name, method=guard.method, concept=guard.concept, fingerprint=guard.fingerprint,
            reads_prompts=guard.reads_prompts, reads_images=guard.reads_images,
        )
        for guard in facts.guards
    ]  # fmt: skip
