"""Seconds, memory and their ratio: against the clock itself and numpy's medians."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saferedir.errors import MetricError
from saferedir.metrics import Resampling, Stopwatch, measure, time_ratio

FEW = Resampling(resamples=300)
SECONDS = st.floats(0.01, 10)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=2, max_size=15))
def test_ratio_is_of_the_medians(rows: list[tuple[float, float]]) -> None:
    guarded, bare = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    found = time_ratio(guarded, bare, FEW)
    assert found.value == pytest.approx(np.median(guarded.numpy()) / np.median(bare.numpy()))
    assert found.n == len(rows)
    assert (
        float(guarded.min() / bare.max()) - 1e-9 <= found.low <= found.high <= float(guarded.max() / bare.min()) + 1e-9
    )


def test_a_constant_factor_has_no_width() -> None:
    bare = torch.rand(30, generator=torch.Generator().manual_seed(0)).double() + 0.5
    found = time_ratio(1.5 * bare, bare, FEW)
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))
    with pytest.raises(MetricError, match="expected >= 0 and > 0"):
        time_ratio(bare, bare - bare)
    with pytest.raises(MetricError, match="3 entries, expected 2"):
        time_ratio(bare[:2], bare[:3])


def test_a_stopwatch_on_a_cpu_counts_work_and_not_sleep() -> None:
    with Stopwatch() as watch:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        time.sleep(0.1)
    assert 0.05 <= watch.seconds < 0.1
    assert watch.peak_bytes is None


def test_measure_returns_the_value_and_warms_up_unmeasured() -> None:
    calls = []

    def work() -> int:
        calls.append(time.process_time())
        return len(calls)

    found = measure(work, warmups=3)
    assert (found.value, len(calls), found.peak_bytes) == (4, 4, None)
    assert 0 <= found.seconds < 1


def test_an_error_inside_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), Stopwatch() as watch:
        raise ZeroDivisionError
    assert watch.seconds >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stopwatch_on_a_gpu_sees_the_peak() -> None:
    start = torch.cuda.memory_allocated()
    found = measure(lambda: float(torch.ones(1 << 20, device="cuda").sum()), "cuda", warmups=1)
    assert found.value == 1 << 20
    assert found.peak_bytes is not None and found.peak_bytes >= start + (4 << 20)
    assert found.seconds > 0
