"""Every bypass probe on every family's tiny pipeline is steered or refused; the limits are as docs/security.md says."""

from __future__ import annotations

import pytest
import torch
from tests.newer_pipelines import NEWER
from tests.security.bypass_table import rows_on_the_page
from tests.security.family_probes import (
    CASES,
    FAMILY_PROBES,
    FORGET,
    LIMITS,
    UNLIKE_THEIR_FAMILY,
    Target,
    outcome,
    probes_by_facts,
)
from tests.tiny_variants import VARIANTS

PLAIN = "prompt"  # has a test of its own
TRIALS = [(name, case) for name, probe in FAMILY_PROBES.items() for case in probe.cases if name != PLAIN]
LATER = {**NEWER, **VARIANTS}
TRIALS_OF_LATER = [(name, case) for case in LATER for name in probes_by_facts(LATER[case]) if name != PLAIN]
#: of variants, only those that go through many probes: tests/pipelines/test_coverage.py puts zeros on all
HEARD = [name for name in CASES if name not in VARIANTS or name in UNLIKE_THEIR_FAMILY]
LIMIT_TRIALS = [(name, case) for name, probe in LIMITS.items() for case in probe.cases]
#: pipelines of a probe which do not take such arguments, guarded or not
NOT_POSSIBLE = {
    *(("faint mask", "lumina2"), ("tilted mask", "lumina2")),
    *(("several images", "prx"), ("negative, guidance -5", "prx"), ("negative, guidance -5", "prx-unguided")),
}


@pytest.mark.parametrize(("name", "case"), TRIALS)
def test_nothing_of_the_attackers_prompt_is_left(name: str, case: str) -> None:
    found = outcome(FAMILY_PROBES[name], case, ask_bare=False)
    allowed = ("refused", "not possible") if (name, case) in NOT_POSSIBLE else ("steered", "refused")
    assert found.kind in allowed, found


@pytest.mark.parametrize(("name", "case"), TRIALS_OF_LATER)
def test_nothing_of_it_is_left_on_newer_families_and_variants(name: str, case: str) -> None:
    found = outcome(FAMILY_PROBES[name], case, ask_bare=False)
    allowed = ("refused", "not possible") if (name, case) in NOT_POSSIBLE else ("steered", "refused")
    assert found.kind in allowed, found


@pytest.mark.parametrize("case", HEARD)
def test_the_plain_prompt_is_heard_without_guard_and_steered_with_it(case: str) -> None:
    found = outcome(FAMILY_PROBES[PLAIN], case)
    assert found.is_heard and found.text == "steered"


@pytest.mark.parametrize(("name", "case"), LIMIT_TRIALS)
def test_what_the_page_calls_a_limit_is_one(name: str, case: str) -> None:
    found = outcome(LIMITS[name], case)
    assert found.is_heard and found.kind == "GOT THROUGH", f"{found}: a limit less, so move it to FAMILY_PROBES"


def test_both_experts_of_wan_are_steered() -> None:
    target = Target(CASES["wan-2.2"], is_guarded=True)
    safe = target.encode("a moon").prompt
    seen: dict[str, list[bool]] = {"transformer": [], "transformer_2": []}
    for name, calls in seen.items():

        def look(module: object, args: object, kwargs: dict[str, torch.Tensor], calls: list[bool] = calls) -> None:
            calls.append(torch.allclose(kwargs["encoder_hidden_states"], safe, atol=1e-6))

        getattr(target.pipe, name).register_forward_pre_hook(look, with_kwargs=True)  # after the guard's own hook
    target.draw(FORGET)
    assert all(calls[::2] and all(calls[::2]) for calls in seen.values()), seen


@pytest.mark.parametrize("table", [FAMILY_PROBES, LIMITS], ids=["families", "limits"])
def test_the_page_shows_no_family_probe_getting_through(table: dict[str, object]) -> None:
    name = "families" if table is FAMILY_PROBES else "limits"
    for cells in rows_on_the_page(name):
        assert "GOT THROUGH" not in cells[4], cells
