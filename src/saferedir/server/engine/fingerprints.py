"""Short names for what made an image: hashes of a model, of a guard and of a policy, for audit records."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saferedir.guard import Guard


def digest_of(value: Any) -> str:
    """SHA-256 of plain data, written as JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def guard_fingerprint(guard: Guard[Any]) -> str:
    """SHA-256 of a guard's settings, weights and image verifier, of what it only logs, and of its anchors."""
    from saferedir.utils.digests import add_values  # torch

    tensors = {f"guard.{name}": value for name, value in guard.tensors().items()}
    if guard.image_verifier is not None:
        tensors |= {f"verifier.{name}": value for name, value in guard.image_verifier.state_dict().items()}
        verifier: Any = vars(guard.image_verifier.config)
    else:
        verifier = None
    facts = [guard.method, guard.config.settings(), verifier, *guard.set_by_policy().values()]
    digest = hashlib.sha256(digest_of(facts).encode())
    add_values(digest, tensors, "typed")
    return digest.hexdigest()
