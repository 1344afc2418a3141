"""Checks that wait for the end of a run: what is read when, and that a failed one always raises."""

from __future__ import annotations

import pytest
import torch

from saferedir.errors import GuardError
from saferedir.utils.device import (
    Collecting,
    Pending,
    is_readable,
    may_hold,
    refuse,
    refuse_nonfinite,
    rehearsal,
    to_host,
)

NAN, INF = float("nan"), float("inf")


def error(text: str = "bad") -> GuardError:
    return GuardError(text)


def test_outside_a_run_everything_is_read_at_once() -> None:
    with rehearsal():
        assert is_readable(torch.zeros(1))
        assert not may_hold(torch.tensor([False]))
        with pytest.raises(GuardError, match="bad"):
            refuse(torch.tensor([False, True]), error)
        with pytest.raises(GuardError, match="bad"):
            refuse_nonfinite(torch.tensor([NAN]), error)


def test_values_of_the_cpu_are_read_at_once_in_a_run() -> None:
    with Collecting(Pending()), pytest.raises(GuardError, match="bad"):
        refuse(torch.tensor(True), error)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_value_that_is_not_finite_is_refused_at_the_end(value: float, dtype: torch.dtype) -> None:
    pending = Pending()
    values = torch.zeros(2, 3, 4, dtype=dtype)
    values[1, 2, 3] = value
    with rehearsal(), Collecting(pending):
        refuse_nonfinite(torch.full((4,), 6e4, dtype=dtype), error)  # their sum would overflow in float16
        refuse_nonfinite(values, error)
    with pytest.raises(GuardError, match="bad"):
        pending.settle()


def test_the_first_failed_check_raises_now_and_whenever_it_is_asked_again() -> None:
    pending = Pending()
    with rehearsal(), Collecting(pending):
        refuse(torch.tensor([False, False]), lambda: error("first"))
        refuse(torch.tensor([False, True]), lambda: error("second"))
        refuse(torch.tensor([True]), lambda: error("third"))
    for _ in range(2):
        with pytest.raises(GuardError, match="second"):
            pending.settle()


def test_reading_brings_the_checks_along() -> None:
    with rehearsal(), Collecting(Pending()):
        refuse(torch.tensor([True]), error)
        with pytest.raises(GuardError, match="bad"):
            to_host(torch.ones(2))


def test_an_eager_run_reads_at_once() -> None:
    with rehearsal(), Collecting(Pending(is_eager=True)):
        assert not may_hold(torch.tensor([False]))
        with pytest.raises(GuardError, match="bad"):
            refuse(torch.tensor([True]), error)


def test_unknown_flags_may_hold() -> None:
    with rehearsal(), Collecting(Pending()):
        assert may_hold(torch.tensor([False]))
