"""Which checks are run: every feature with the guards and pipelines that can show something of their own.

Imports the registries of tests.contract; used by test_contract.py and table.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.contract.feature import Feature, NotApplicable, Refused, representative
from tests.contract.features import FEATURES
from tests.contract.guards import GUARDS, GuardCase, GuardKind
from tests.tiny_pipelines import PIPELINES, PipelineCase

from saferedir.errors import UnsupportedPipelineError
from saferedir.pipelines.families import TEXT_FAMILIES


class Check(NamedTuple):
    """One check of the plan."""

    feature: Feature
    case: PipelineCase
    guard: GuardCase

    @property
    def id(self) -> str:
        return f"{self.feature.name}-{self.case.name}-{self.guard.name}".replace(" ", "_")

    @property
    def is_slow(self) -> bool:
        """Whether it can be left out of a quick round: compilers, and what the first method nearly shows for the others."""
        of_others = self.guard.is_method and self.guard is not METHODS[0]
        return "compile" in self.feature.name or (of_others and self.feature.name not in EVERY_METHOD)

    def outcome(self) -> tuple[str, str]:
        """("works", "" or a note), ("refused", sentence) or ("n.a.", reason); a broken promise raises AssertionError."""
        try:
            self.feature.check(self.case, self.guard)
        except NotApplicable as reason:
            return "n.a.", str(reason)
        except (Refused, UnsupportedPipelineError) as sentence:
            return "refused", str(sentence)
        return "works", ""


METHODS = [guard for guard in GUARDS.values() if guard.is_method]
#: one method of each kind, for features that any guard of a kind shows
MODELS: dict[GuardKind, GuardCase] = {GUARDS[name].kind: GUARDS[name] for name in ("saferedir", "duo", "sld")}
#: features of every guard that quick tests see with every method, and that scripted guards go through
EVERY_METHOD = ("disabled", "acts", "detach", "batch", "guidance off", "gradients")
EVERY_SCRIPT = ("acts", "batch", "guidance off")


def checks(with_scripts: bool = True) -> Iterator[Check]:
    """All checks of the tests; or those of the page: no scripted guards in the place of methods, but every family."""
    scripts = [guard for guard in GUARDS.values() if not guard.is_method]
    for feature in FEATURES.values():
        if feature.about == "guard":
            guards = [*METHODS, *scripts] if with_scripts and feature.name in EVERY_SCRIPT else METHODS
        elif feature.about == "script":
            guards = [GUARDS[name] for name in feature.scripts] or METHODS[:1]
        else:
            guards = [MODELS[kind] for kind in feature.kinds]
        for guard in guards:
            for case in cases_of(feature, guard):
                if not with_scripts or not feature.tested or case.family in feature.tested:
                    yield Check(feature, case, guard)


def model_of(feature: Feature, guard: str) -> str:
    """The method that a "pipeline" feature was run with for this one."""
    kind = GUARDS[guard].kind
    return MODELS[kind if kind in feature.kinds else "steps"].name


def cases_of(feature: Feature, guard: GuardCase) -> list[PipelineCase]:
    """All pipelines, or one of every family; scripted guards go through the guards' features on one of every family."""
    is_thorough = feature.cases == "all" and (guard.is_method or feature.about == "script")
    return list(PIPELINES.values()) if is_thorough else [representative(family) for family in TEXT_FAMILIES]
