"""What stands for preservation in a ranking: the share of attributes kept or, where no judge sees attributes, the next measure.

Pure; imports data.py, numbers.py and bench.records. One measure a ranking, the same for every guard: ranking.py uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saferedir.bench.records import BARE, CellRecord
from saferedir.bench.report.data import Group
from saferedir.bench.report.numbers import Estimate, estimate


@dataclass(frozen=True)
class Measure:
    """One measure of how much of everything else a guard preserves.

    Attributes:
        metric: name in `CellRecord.measured`.
        name: of its column; axis: of its axis; words: in sentences, with the article.
        is_lower_better: whether a small value means that much is preserved.
    """

    metric: str
    name: str
    axis: str
    words: str
    is_lower_better: bool = False

    @property
    def title(self) -> str:
        """The name at the beginning of a line."""
        return self.name[0].upper() + self.name[1:]

    def order(self, one: Estimate) -> tuple[float, float]:
        """Ascending from the best value to the worst."""
        return (one.value, one.high) if self.is_lower_better else (-one.value, -one.low)


KEPT = Measure("kept", "kept", "preservation: share of everything else kept", "the share of attributes kept")
_IDENTICAL = Measure(
    "identical",
    "identical",
    "preservation: share of identical pictures",
    "the share of pictures identical to the unguarded ones",
)


def measure_of(group: Group) -> Measure:
    """The first measure that some guard has on every retain protocol of the group; `KEPT` where there is none.

    The order: kept, identical, drift by the judge's features, drift by an encoder's, change of the CLIP score. A share of
    identical pictures that is 0 for every guard tells none apart, so whatever follows it goes first.
    """
    cells = [cell for cell in group.cells if cell.name.role == "retain"]
    wanted = len({cell.protocol.id for cell in cells})
    guards = [guard for guard in group.guards if guard != BARE]
    known = dict.fromkeys(metric for cell in cells for metric in cell.measured)
    spare = []
    for measure in (KEPT, _IDENTICAL, *_distances(list(known))):
        of_guards = [estimates(group.of(guard, "retain"), measure.metric) for guard in guards]
        whole = [found for found in of_guards if found and len(found) == wanted]
        if whole and (measure != _IDENTICAL or any(one.value for found in whole for one in found)):
            return measure
        spare += [measure] if whole else []
    return spare[0] if spare else KEPT


def estimates(cells: Sequence[CellRecord], metric: str) -> list[Estimate]:
    """A metric of each cell that has it; `where` names the prompt set."""
    found = [estimate(cell.measured.get(metric), cell.name.prompts) for cell in cells]
    return [one for one in found if one is not None]


def _distances(metrics: Sequence[str]) -> list[Measure]:
    """The measures among these metrics that are no shares, by kind and within a kind in the given order."""
    drifts = sorted((name for name in metrics if name.partition(":")[0] == "drift"), key=lambda name: ":" in name)
    return [_drift(name) for name in drifts] + [
        _clip_change(name) for name in metrics if name.startswith("clip_change:")
    ]


def _drift(metric: str) -> Measure:
    encoder = metric.partition(":")[2]
    by = f", {encoder}" if encoder else ""
    words = "drift, the distance of the pictures from the unguarded ones" + (f" by {encoder}'s features" if by else "")
    return Measure(metric, f"drift{by}", f"preservation: drift{by}", words, True)


def _clip_change(metric: str) -> Measure:
    encoder = metric.partition(":")[2]
    words = f"the change of the CLIP score by {encoder} (how well pictures fit their prompts, less the same without a guard)"
    return Measure(metric, f"CLIP change, {encoder}", f"preservation: CLIP change, {encoder}", words)
