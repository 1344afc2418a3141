"""Which checks are run: every feature with the guards and pipelines that can show something of their own.

Imports the registries of tests.contract; used by test_contract.py and table.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.contract.feature import Feature, NotApplicable, Refused, representative
from tests.contract.features import FEATURES
from tests.contract.guards import GUARDS, GuardCase
from tests.tiny_pipelines import PIPELINES, PipelineCase

from saferedir.families import FAMILIES


class Check(NamedTuple):
    """One check of the plan."""

    feature: Feature
    case: PipelineCase
    guard: GuardCase

    @property
    def id(self) -> str:
        return f"{self.feature.name}-{self.case.name}-{self.guard.name}".replace(" ", "_")

    def outcome(self) -> tuple[str, str]:
        """("works", "" or a note), ("refused", sentence) or ("n.a.", reason); a broken promise raises AssertionError."""
        try:
            self.feature.check(self.case, self.guard)
        except NotApplicable as reason:
            return "n.a.", str(reason)
        except Refused as sentence:
            return "refused", str(sentence)
        return "works", ""


def checks(every_method: bool) -> Iterator[Check]:
    """All checks. With `every_method` those of every registered method, for the table, and no scripted guards beside them;
    else what any acting guard shows is shown by the first method, and scripted guards go through the guards' features.
    """
    methods = [guard for guard in GUARDS.values() if guard.is_method]
    scripts = [guard for guard in GUARDS.values() if not guard.is_method]
    for feature in FEATURES.values():
        if feature.about == "guard":
            guards = methods if every_method else [*methods, *scripts]
        elif feature.about == "script":
            guards = [GUARDS[name] for name in feature.scripts] or methods[:1]
        else:
            guards = methods if every_method else methods[:1]
        for guard in guards:
            for case in cases_of(feature, guard):
                yield Check(feature, case, guard)


def cases_of(feature: Feature, guard: GuardCase) -> list[PipelineCase]:
    """All pipelines, or one of every family; scripted guards go through the guards' features on one of every family."""
    is_thorough = feature.cases == "all" and (guard.is_method or feature.about == "script")
    return list(PIPELINES.values()) if is_thorough else [representative(family) for family in FAMILIES]
