"""What the tests of guards that replace guidance share: counting a denoiser's rows, keeping its outputs."""

from __future__ import annotations

from typing import Any, Self

import pytest
from tests.tiny_pipelines import PIPELINES
from torch import Tensor, nn

by_case = pytest.mark.parametrize("case", PIPELINES.values(), ids=PIPELINES)


class RowCounter:
    """Keeps the raw output of every call of a denoiser, rows that the seam strips included."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.outputs: list[Tensor] = []

    @property
    def counts(self) -> list[int]:
        """Rows of each call."""
        return [len(output) for output in self.outputs]

    def __enter__(self) -> Self:
        forward = self.denoiser.forward

        def counting(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            self.outputs.append((output[0] if isinstance(output, tuple) else output.sample).detach())
            return output

        self.denoiser.forward = counting  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self.denoiser.forward


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two tensors agree, relative to the largest value of the second."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
