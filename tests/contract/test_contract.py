"""families x guards x features: every promise of docs/pipelines.md, checked on tiny random pipelines.

All of it comes from registries: a new family (src/saferedir/pipelines/families, tests/tiny_pipelines.py), a new guard
(tests/contract/guards.py) or a new feature (tests/contract/features.py) is checked against all others by itself.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.features import FEATURES
from tests.contract.guards import GUARDS
from tests.contract.plan import PAGE_FAMILIES, REFUSED_OF_NEWER, Check, checks, newer_checks
from tests.contract.table import PAGE, as_sentence, named_in, read_cells, section_of
from tests.newer_pipelines import EVERY

from saferedir.errors import GuardError
from saferedir.guards.registry import methods
from saferedir.pipelines.families import TEXT_FAMILIES
from saferedir.pipelines.schedules import SCHEDULER_KINDS

SECTION = section_of(PAGE.read_text(encoding="utf-8"))
#: (feature, family) -> guard -> outcome, as the page lists them
LISTED = read_cells(SECTION)


def applies(check: Check) -> bool:
    """Whether the page does not list this check as one that cannot apply; `python -m tests.contract.table` runs those, too."""
    outcomes = LISTED.get((check.feature.name, check.case.family), {})
    return outcomes.get(check.guard.name, ("", ""))[0] != "n.a."


def as_parameter(check: Check) -> Any:
    return pytest.param(check, id=check.id, marks=pytest.mark.slow if check.is_slow else ())


@pytest.mark.parametrize("check", map(as_parameter, filter(applies, checks())))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_contract(check: Check) -> None:
    outcome, reason = check.outcome()
    if outcome == "n.a.":
        pytest.skip(reason)
    # a refusal nobody has written down is a broken promise, not a design
    assert outcome == "works" or as_sentence(reason) in SECTION


@pytest.mark.parametrize("check", map(as_parameter, newer_checks()))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_contract_of_newer_families(check: Check) -> None:
    """A thinner set, of families that the page has no column for; a refusal is what the check itself expects, or a fault."""
    if why := REFUSED_OF_NEWER.get((check.feature.name, check.case.name, check.guard.name)):
        try:
            outcome, reason = check.outcome()
        except GuardError as error:
            outcome, reason = "refused", str(error)
        assert outcome == "refused" and why in reason
        return
    outcome, reason = check.outcome()
    if outcome == "n.a.":
        pytest.skip(reason)
    assert outcome == "works", reason


def test_every_registered_method_has_a_row_and_every_row_a_method() -> None:
    assert sorted(name for name, guard in GUARDS.items() if guard.is_method) == methods()


def test_every_family_has_a_tiny_pipeline() -> None:
    assert {case.family for case in EVERY.values()} == set(TEXT_FAMILIES)


def test_the_table_names_the_families_guards_features_and_schedulers_there_are() -> None:
    """Else run `python -m tests.contract.table` again."""
    section = SECTION
    assert named_in(section, "Feature") == PAGE_FAMILIES
    assert named_in(section, "Guard") == PAGE_FAMILIES
    assert named_in(section, "rows") == [*FEATURES, *methods()]
    assert all(f"`{name}`" in section for name in SCHEDULER_KINDS)
