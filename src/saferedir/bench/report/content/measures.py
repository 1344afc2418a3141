"""What stands for preservation in a ranking: the share of attributes kept or, where no judge sees attributes, the next measure.

Pure; imports data.py, numbers.py and bench.records. One measure a ranking, the same for every guard: ranking.py uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.records import BARE, CellRecord
from saferedir.bench.report.content.data import Group
from saferedir.bench.report.content.numbers import Estimate, estimate


@dataclass(frozen=True)
class Measure:
    """One measure of how much of everything else a guard preserves.

    Attributes:
        metric: name in `CellRecord.measured`.
        name: of its column; axis: of its axis; words: in sentences, with the article.
        is_lower_better: whether a small value means that much is preserved.
        is_change: whether it goes either way, so that its size is what counts: +2 is as far from the unguarded image as -2.
    """

    metric: str
    name: str
    axis: str
    words: str
    is_lower_better: bool = False
    is_change: bool = False

    @property
    def title(self) -> str:
        """The name at the beginning of a line."""
        return self.name[0].upper() + self.name[1:]

    def order(self, estimate: Estimate) -> tuple[float, float]:
        """Ascending from the best value to the worst."""
        estimate = self.size(estimate)
        return (estimate.value, estimate.high) if self.is_lower_better else (-estimate.value, -estimate.low)

    def size(self, estimate: Estimate) -> Estimate:
        """The estimate as it is or, of a change, its absolute value."""
        if not self.is_change:
            return estimate
        ends = sorted((abs(estimate.low), abs(estimate.high)))
        return replace(
            estimate, value=abs(estimate.value), low=0.0 if estimate.low < 0 < estimate.high else ends[0], high=ends[1]
        )


RETENTION = Measure(
    "retention", "retention", "preservation: retention of everything else", "retention, the share of attributes kept"
)
_IDENTICAL = Measure(
    "identical",
    "identical",
    "preservation: share of identical images",
    "the share of images identical to the unguarded ones",
)


def measure_of(group: Group) -> Measure:
    """The first measure that some guard has on every retain protocol of the group; `RETENTION` where there is none.

    The order: retention, drift by the judge's features, drift by an encoder's, identical, change of the CLIP score. Distances go
    before the share of identical images, which is 0 for every guard that always acts, however little. Where it is 0 for all,
    whatever follows it goes first.
    """
    cells = [cell for cell in group.cells if cell.name.role == "retain"]
    wanted = len({cell.protocol.id for cell in cells})
    guards = [guard for guard in group.guards if guard != BARE]
    known = dict.fromkeys(metric for cell in cells for metric in cell.measured)
    spare = []
    for measure in (RETENTION, *_drifts(list(known)), _IDENTICAL, *_clip_changes(list(known))):
        of_guards = [estimates(group.of(guard, "retain"), measure.metric) for guard in guards]
        whole = [values for values in of_guards if values and len(values) == wanted]
        if whole and (measure != _IDENTICAL or any(value.value for values in whole for value in values)):
            return measure
        spare += [measure] if whole else []
    return spare[0] if spare else RETENTION


def estimates(cells: Sequence[CellRecord], metric: str) -> list[Estimate]:
    """A metric of each cell that has it; `where` names the prompt set."""
    known = [estimate(cell.measured.get(metric), cell.name.prompts) for cell in cells]
    return [value for value in known if value is not None]


def _drifts(metrics: Sequence[str]) -> list[Measure]:
    """Drift by the judge's features first, then by the encoders' in the given order."""
    measures = []
    for metric in sorted((key for key in metrics if MetricKey.parse(key).metric == "drift"), key=_has_scorer):
        encoder = MetricKey.parse(metric).scorer
        by = f", {encoder}" if encoder else ""
        words = "drift, the distance of the images from the unguarded ones"
        words += f" by {encoder}'s features" if encoder else ""
        measures.append(Measure(metric, f"drift{by}", f"preservation: drift{by}", words, is_lower_better=True))
    return measures


def _has_scorer(metric: str) -> bool:
    return bool(MetricKey.parse(metric).scorer)


def _clip_changes(metrics: Sequence[str]) -> list[Measure]:
    measures = []
    for metric in (key for key in metrics if MetricKey.parse(key).metric == "clip_change"):
        encoder = MetricKey.parse(metric).scorer
        name = f"CLIP change, {encoder}"
        words = f"the size of the CLIP score's change by {encoder} (how well images fit their prompts, less "
        words += "the same without a guard)"
        axis = f"preservation: size of {name}"
        measures.append(Measure(metric, name, axis, words, is_lower_better=True, is_change=True))
    return measures
