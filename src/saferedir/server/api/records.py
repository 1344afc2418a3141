"""The audit record of one image."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, NamedTuple

from saferedir.server.api.service import Service
from saferedir.server.audit.store import SCHEMA, now
from saferedir.server.config import ModelSettings
from saferedir.server.engine.fingerprints import digest_of
from saferedir.server.engine.rows import Outcome, Row
from saferedir.server.policies import policy_facts
from saferedir.utils.packaged import library_version


def digest_of_text(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def new_id() -> str:
    """Of an image and its record."""
    return f"img_{uuid.uuid4().hex}"


class Asked(NamedTuple):
    """Of the request, what its records repeat.

    Attributes:
        caller: name of the key.
        identifier: the client's own name of its user, of which the hash is kept.
        input_sha256: of the file that an edit starts from, as the client sent it; None without one.
    """

    caller: str
    identifier: str | None
    input_sha256: str | None


def record_of(
    service: Service,
    asked: Asked,
    model: ModelSettings,
    row: Row,
    image_id: str,
    action: str,
    outcome: Outcome | None,
    file: bytes | None,
) -> dict[str, Any]:
    """Plain data: who asked for what, what made it, what was decided, and the hash of the file that leaves.

    Its guards are those that act or log under the policy of the call (`policies.policy_facts`, which says which only log).

    Args:
        outcome: None where nothing came of it.
        file: the bytes that the client gets; None where it gets none.
    """
    if row.key.kind == "bare":
        policy: dict[str, Any] = {"on_unsafe": "none", "retries": 0, "verify": [], "guards": []}
    else:
        policy = policy_facts(model, row.key.policy, row.key.retries, row.key.profile)
    listed = {*policy["guards"], *policy.get("logged", ())}
    facts = None if outcome is None else outcome.facts
    return {
        "schema": SCHEMA,
        "image_id": image_id,
        "time": now(),
        "action": action,
        "kind": row.key.kind,
        "key": asked.caller,
        "prompt_sha256": digest_of_text(row.prompt),
        "prompt": row.prompt if service.settings.audit.prompts == "text" else None,
        "identifier_sha256": None if asked.identifier is None else digest_of_text(asked.identifier),
        "input_sha256": asked.input_sha256,
        "seed": row.seed,
        "model": model.name,
        "model_fingerprint": None if facts is None else facts.fingerprint,
        "guards": {}
        if facts is None
        else {guard.name: guard.fingerprint for guard in facts.guards if guard.name in listed},
        "policy": policy,
        "policy_fingerprint": digest_of(policy),
        "steps": model.steps,
        "guidance": model.guidance,
        "decisions": [] if outcome is None else [{**d.to_dict(), "image": 0} for d in outcome.decisions],
        "blocked_by": [] if outcome is None else list(outcome.blocked_by),
        "image_sha256": None if file is None else hashlib.sha256(file).hexdigest(),
        "saferedir": library_version() if facts is None else facts.saferedir,
    }
