"""Moderations and checks: what guards and judges say to texts and images of clients, without generating."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from fastapi import APIRouter, Request

from saferedir.decisions import Decision
from saferedir.policy.rules import ConceptRule
from saferedir.server.api.encoding import bytes_of_url, decoded, pixels_of
from saferedir.server.api.images import verdict_of
from saferedir.server.api.schemas import (
    CheckAnswer,
    CheckedGuard,
    CheckRequest,
    ModerationAnswer,
    ModerationRequest,
    ModerationResult,
    TextPart,
    TokenStrength,
    responses,
)
from saferedir.server.api.service import Service, caller_of, policy_title
from saferedir.server.config import ModelSettings
from saferedir.server.engine.rows import CallKey, Outcome, Row
from saferedir.server.engine.scores import raise_to, share_of
from saferedir.server.errors import bad_request
from saferedir.server.policies import rules_of

FLAGGED = 0.5
_SEED = 0  # of the noise beside which a prompt is read; the prompt's verdict does not depend on it
Kind = Literal["text", "image"]


def moderation_router(service: Service) -> APIRouter:
    """Both routes."""
    router = APIRouter(tags=["moderation"])

    @router.post("/v1/moderations", responses=responses())
    async def moderate(request: Request, body: ModerationRequest) -> ModerationAnswer:
        """Scores of texts and images for the concepts of a model's guards and judges."""
        model = service.model(body.model, caller_of(request))
        return ModerationAnswer(
            id=f"modr-{uuid.uuid4().hex}", model=model.name, results=await _results(service, request, model, body)
        )

    @router.post("/v1/checks", responses=responses())
    async def check(request: Request, body: CheckRequest) -> CheckAnswer:
        """What the guards would do with a prompt, and where; no image is made."""
        caller = caller_of(request)
        model = service.model(body.model, caller)
        policy, profile = service.rules(model, body.policy, caller)
        (outcome,) = await _checked(service, request, model, [service.prompt(body.prompt)], policy, profile)
        rules = rules_by_name(model, policy, profile)
        decisions = [_under(decision, rules) for decision in outcome.decisions]
        actions = [action_on(decision, rules, policy) for decision in decisions]
        blocking = [d for d, action in zip(decisions, actions, strict=True) if action == "block"]
        return CheckAnswer(
            status="blocked" if blocking else "modified" if any(actions) else "passed",
            model=model.name,
            policy=policy_title(model, policy),
            categories=sorted({d.category or d.name or d.concept for d in blocking}),
            guards=[_checked_guard(decision, outcome.tokens) for decision in decisions],
        )

    return router


def rules_by_name(model: ModelSettings, policy: str, profile: str) -> dict[str, ConceptRule]:
    """Concept -> its rule, of a model with a policy file; {} for others."""
    rules = rules_of(model, policy, profile)
    return {} if rules is None else {rule.concept: rule for rule in rules.concepts}


def _under(decision: Decision, rules: Mapping[str, ConceptRule]) -> Decision:
    """The decision with the category and the grade of its concept's rule, where it has one."""
    rule = rules.get(decision.name)
    return decision if rule is None else decision.under(rule.category, rule.grade)


def action_on(decision: Decision, rules: Mapping[str, ConceptRule], policy: str) -> str:
    """What is done because of a decision on a prompt, graded by its rule: "redirect", "verify", "block", or "" for nothing.

    Args:
        rules: concept -> its rule.
        policy: of a model without rules.
    """
    rule = rules.get(decision.name)
    if rule is not None and rule.blocks(decision.grade):
        return "block"
    action = policy if rule is None else rule.action
    return action if decision.fired and action != "log" else ""


def check_key(model: ModelSettings, policy: str, profile: str) -> CallKey:
    """Of a prompt that the guards are to judge without an image."""
    return CallKey("check", "redirect", 0) if model.policy is None else CallKey("check", policy, 0, None, profile)


async def _checked(
    service: Service, request: Request, model: ModelSettings, prompts: Sequence[str], policy: str, profile: str
) -> list[Outcome]:
    caller, deadline = caller_of(request), service.deadline()
    key = check_key(model, policy, profile)
    return await service.outcomes(
        request, model.name, [Row(key, prompt, _SEED, deadline, caller=caller.name) for prompt in prompts]
    )


def _checked_guard(decision: Decision, tokens: Sequence[str]) -> CheckedGuard:
    strengths = decision.token_strengths or ()
    pairs = zip(tokens, strengths, strict=True) if len(tokens) == len(strengths) else ()
    return CheckedGuard(
        **verdict_of(decision).model_dump(),
        threshold=decision.thresholds.get("prompt"),
        acts=decision.fired,
        tokens=[TokenStrength(token=token, strength=strength) for token, strength in pairs if token],
    )


async def _results(
    service: Service, request: Request, model: ModelSettings, body: ModerationRequest
) -> list[ModerationResult]:
    given = body.input
    if isinstance(given, str):
        given = [given]
    texts = [part if isinstance(part, str) else part.text for part in given if isinstance(part, str | TextPart)]
    urls = [part.image_url.url for part in given if not isinstance(part, str | TextPart)]
    text_scores = []
    if texts:
        policy, profile = service.rules(model, None, caller_of(request))
        rules = rules_by_name(model, policy, profile)
        prompts = [service.prompt(text, "input") for text in texts]
        checked = await _checked(service, request, model, prompts, policy, profile)
        text_scores = [text_scores_of(outcome.decisions, rules) for outcome in checked]
    image_scores = await _image_scores(service, request, model.name, urls) if urls else []
    if any(not scores for scores in (*text_scores, *image_scores)):
        raise bad_request(
            "No guard or judge of this model reads such an input; ask for another model.", "unsupported_input", "input"
        )
    if isinstance(given[0], str):
        return [_result([("text", scores)]) for scores in text_scores]
    return [_result([*(("text", scores) for scores in text_scores), *(("image", scores) for scores in image_scores)])]


async def _image_scores(service: Service, request: Request, model: str, urls: Sequence[str]) -> list[dict[str, float]]:
    """Concept -> score of each image; `limits.pixels` bounds all images of a request together."""
    most, param = service.settings.limits.pixels, "input.image_url.url"
    files = [bytes_of_url(url, param) for url in urls]
    pixels = 0
    for file in files:
        pixels += pixels_of(file, most - pixels, param)
    with service.pixels.reserved(pixels):
        images = [await asyncio.to_thread(decoded, file, most, param) for file in files]
        key, deadline, caller = CallKey("score", "redirect", 0), service.deadline(), caller_of(request).name
        rows = [Row(key, "", _SEED, deadline, image, caller) for image in images]
        return [outcome.scores for outcome in await service.outcomes(request, model, rows)]


def text_scores_of(decisions: Sequence[Decision], rules: Mapping[str, ConceptRule]) -> dict[str, float]:
    """Concept -> score in [0, 1] of the guards that score prompts; 0.5 at the guard's threshold.

    A text whose grade a rule blocks is flagged under the rule's category, or else its concept, whatever the threshold.
    """
    scores: dict[str, float] = {}
    for decision in decisions:
        share = None
        if decision.prompt_score is not None and "prompt" in decision.thresholds:
            share = share_of(decision.prompt_score, decision.thresholds["prompt"])
            raise_to(scores, decision.concept, share)
        graded = _under(decision, rules)
        if action_on(replace(graded, fired=False), rules, "") == "block":
            raise_to(scores, graded.category or graded.name, max(FLAGGED, share or 0.0))
    return scores


def _result(parts: Sequence[tuple[Kind, dict[str, float]]]) -> ModerationResult:
    """All parts as one: the highest score of each category."""
    scores: dict[str, float] = {}
    kinds: dict[str, list[Kind]] = {}
    for kind, part in parts:
        for name, score in part.items():
            scores[name] = max(scores.get(name, 0.0), score)
            if kind not in kinds.setdefault(name, []):
                kinds[name].append(kind)
    flags = {name: score >= FLAGGED for name, score in scores.items()}
    return ModerationResult(
        flagged=any(flags.values()), categories=flags, category_scores=scores, category_applied_input_types=kinds
    )
