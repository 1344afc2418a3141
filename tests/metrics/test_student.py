"""Student's quantiles against scipy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from saferedir.errors import MetricError
from saferedir.metrics.student import NORMAL_95, student_quantile


@given(df=st.integers(1, 500), level=st.floats(0.01, 0.999))
def test_quantiles_agree_with_scipy(df: int, level: float) -> None:
    assert student_quantile(df, level) == pytest.approx(t.ppf((1 + level) / 2, df), rel=1e-9)


def test_many_degrees_are_normal_and_none_is_refused() -> None:
    assert student_quantile(100_000) == pytest.approx(NORMAL_95, abs=1e-4)
    for df, level in ((0, 0.95), (3, 1.0), (3, 0.0)):
        with pytest.raises(MetricError, match="expected df"):
            student_quantile(df, level)
