"""Gate: what decides whether a guard acts on an image, for those who look on while it happens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Gate(NamedTuple):
    """score (B,), in the graph, and the threshold it is held against: the guard acts where score >= threshold."""

    score: Tensor
    threshold: float

    @property
    def margin(self) -> Tensor:
        """(B,) score - threshold: negative where the guard keeps still."""
        return self.score - self.threshold
