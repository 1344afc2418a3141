"""Names of measured numbers: what was measured, by which judge or encoder, and against which images.

On the disk and in `CellRecord.measured` a key is text ("concept", "kid:clip@reference"); `MetricKey` reads and writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

#: the mark of numbers against a folder of reference images, in place of the bare model's own images
REFERENCE = "reference"


@dataclass(frozen=True, order=True)
class MetricKey:
    """The name of one measured number.

    Attributes:
        metric: what was measured ("concept", "retention", "kid").
        scorer: the judge or encoder that it was measured by, "" for the protocol's own judge.
        against: `REFERENCE` for a distance from a folder of reference images, "" for one from the bare model's images.
    """

    metric: str
    scorer: str = ""
    against: str = ""

    def __str__(self) -> str:
        return self.metric + (f":{self.scorer}" if self.scorer else "") + (f"@{self.against}" if self.against else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of `str`: a judge's name may hold any character, so only the ending "@reference" is set apart."""
        metric, _, scorer = text.partition(":")
        name = scorer.removesuffix(f"@{REFERENCE}")
        return cls(metric, name, REFERENCE if name != scorer else "")
