"""What the page offers for a model: policies, and whose scores to show; of a model under a policy file in the file's words."""

from __future__ import annotations

from collections.abc import Sequence

from saferedir.server.config import STRICTNESS, ModelSettings

STRICTEST = "as the key says"
ALL = "the one that acts most"


def policy_choices(model: ModelSettings) -> tuple[list[tuple[str, str]], str]:
    """((what the page says, what a request says) of each policy that may be chosen, a sentence on them)."""
    rules = model.rules
    if rules is None:
        return [(STRICTEST, STRICTEST), *((name, name) for name in STRICTNESS)], (
            "redirect steers; verify also checks the image; block refuses. Never weaker than your key's."
        )
    raised = [(f"every concept at least at {name}", name) for name in STRICTNESS]
    return [("as the policy file and the key say", STRICTEST), *raised], (
        f"The policy file {rules.name}, version {rules.version}, says what happens with each concept; a choice makes it stricter."
    )


def score_choices(models: Sequence[ModelSettings]) -> list[str]:
    """Names of those whose decisions can be shown: guards, or concepts of a policy file."""
    names = [ALL]
    for model in models:
        rules = model.rules
        names += model.guard_names if rules is None else [rule.concept for rule in rules.concepts]
    return list(dict.fromkeys(names))
