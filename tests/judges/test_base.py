"""A judge's answer is checked: every score of an image is a finite number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge


class Fixed(Judge):
    name = "fixed"
    labels = ("left", "right")

    def __init__(self, values: list[list[float]]) -> None:
        self.values = torch.tensor(values)

    def score(self, images: Tensor) -> Tensor:
        return self.values

    def facts(self) -> dict[str, Any]:
        return {}


IMAGES = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(JudgeError, match=r"judge 'fixed' gave .* for 'right', in 1 score"):
        Fixed([[0.0, 1.0], [2.0, bad]])(IMAGES)


def test_finite_scores_come_through() -> None:
    assert Fixed([[0.0, 1.0], [2.0, 3.0]])(IMAGES).values.tolist() == [[0.0, 1.0], [2.0, 3.0]]
