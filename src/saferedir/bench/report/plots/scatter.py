"""Robustness against preservation, one mark a guard, as an SVG string.

The marks differ in shape as well as in colour: filled within the limits, hollow beyond them, a cross for the bare model.
Matplotlib is imported when first needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from saferedir.bench.records import BARE
from saferedir.bench.report.content.headline import is_marked
from saferedir.bench.report.content.limits import MAX_CONCEPT_RATE, MIN_RETENTION
from saferedir.bench.report.content.numbers import Estimate
from saferedir.bench.report.content.ranking import Ranking, RankRow
from saferedir.bench.report.content.sentences import sentence
from saferedir.bench.report.plots import svg
from saferedir.bench.report.plots.bars import DESKTOP, FigureSize, short
from saferedir.bench.report.plots.labels import Label, label
from saferedir.utils.extras import require_extra


def scatter(ranking: Ranking, size: FigureSize = DESKTOP) -> str:
    """Robustness (1 - worst concept rate) over preservation by the ranking's measure, with 95 % whiskers; "" without a guard
    to show. A bare model without that measure (it is compared with itself) is a dashed line. Who is not shown: `absent`.
    """
    rows = [row for row in ranking.rows if _is_shown(row)]
    if not rows:
        return ""
    description, bare = _description(rows), ranking.bare
    line = 1 - bare.worst.value if bare and bare.worst and not bare.preserved else None
    if bare and bare.worst and bare.preserved:
        rows.append(bare)
    figure = svg.new_figure(size.width, size.height)
    inner = (size.width - 64 - size.right) / size.width, (size.height - 56) / size.height
    axes = svg.plain(figure.add_axes((64 / size.width, 52 / size.height, *inner)))
    spots = [_spot(row) for row in rows]
    bottom = _floor(min([y for _, y in spots] + ([] if line is None else [line])))
    axes.set(ylim=(bottom, 1 + 0.08 * (1 - bottom)), yticks=_ticks(bottom))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    (_across_shares if _are_shares(rows) else _across_means)(axes, rows, size)
    _limits(axes, ranking)
    if line is not None:
        axes.axhline(line, color=svg.OTHER, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.grid(color=svg.LINE, linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)
    for row, (x, y) in zip(rows, spots, strict=True):
        _whiskers(axes, row, x, y)
    svg.literal(axes.set_xlabel(ranking.measure.axis))
    axes.set_ylabel("robustness: 1 − worst concept rate")
    label(figure, axes, [_label_of(row, size) for row in rows], line)
    name = f"scatter-{ranking.group.anchor}{size.suffix}"
    return svg.to_svg(figure, name, f"Robustness and preservation: {ranking.group.concept}", description)


def absent(ranking: Ranking) -> str:
    """Which guards the plot does not show, and why, as a sentence; "" for none."""
    guards = []
    for row in (row for row in ranking.rows if not _is_shown(row)):
        refuses = row.comes_last and row.blocked
        why = sentence("captions.absent_for_refusing", blocked=row.blocked) if refuses else row.why_not
        guards.append((row.guard, why))
    return sentence("captions.absent", guards=guards)


def _is_shown(row: RankRow) -> bool:
    return row.worst is not None and row.preserved is not None and not row.comes_last


def _description(rows: Sequence[RankRow]) -> str:
    """The scatter plot in words, for screen readers."""
    return sentence(
        "captions.scatter",
        guards=len(rows),
        passing=sum(map(is_marked, rows)),
        retention=MIN_RETENTION if rows[0].limits.retention else None,
        rate=MAX_CONCEPT_RATE,
    )


def _limits(axes: Any, ranking: Ranking) -> None:
    """The area within the limits: a corner or, where preservation has no limit, the whole band of low rates."""
    if not ranking.limits.retention:
        axes.axhspan(1 - MAX_CONCEPT_RATE, 1, facecolor=svg.AREA, edgecolor="none", zorder=0)
        return
    patches = require_extra("matplotlib.patches", "bench", "a figure of the report")
    corner = (MIN_RETENTION, 1 - MAX_CONCEPT_RATE), 1 - MIN_RETENTION, MAX_CONCEPT_RATE
    axes.add_patch(patches.Rectangle(*corner, facecolor=svg.AREA, edgecolor="none", zorder=0))


def _are_shares(rows: Sequence[RankRow]) -> bool:
    return all(row.preserved.is_rate for row in rows if row.preserved)


def _across_shares(axes: Any, rows: Sequence[RankRow], size: FigureSize) -> None:
    """Horizontal axis of shares: ends at 100 %, with some room for names beyond."""
    left = _floor(min(row.preserved.value for row in rows if row.preserved))
    axes.set(xlim=(left, 1 + size.beyond * (1 - left)), xticks=_ticks(left))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _across_means(axes: Any, rows: Sequence[RankRow], size: FigureSize) -> None:
    """Horizontal axis of distances or changes: holds 0, and the better end is on the right."""
    shown = [_size(row) for row in rows if row.preserved]
    ends = [end for estimate in shown for end in (estimate.low, estimate.high)]
    sign = -1 if rows[0].measure.is_lower_better else 1
    worst, best = min(-0.1, *(sign * end for end in ends)), max(0.0, *(sign * end for end in ends))
    span = best - worst
    axes.set_xlim(sign * (worst - 0.04 * span), sign * (best + size.beyond * span))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xticks([tick for tick in axes.get_xticks() if worst <= sign * tick <= best])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _size(row: RankRow) -> Estimate:
    assert row.preserved is not None
    return row.measure.size(row.preserved)


def _spot(row: RankRow) -> tuple[float, float]:
    assert row.worst is not None
    return _size(row).value, 1 - row.worst.value


def _floor(value: float) -> float:
    """Where an axis begins: a tenth below the smallest value, and never so near to 1 that noise looks large."""
    return min(0.8, max(-0.03, math.floor(10 * (value - 0.04)) / 10))


def _ticks(lowest: float) -> list[float]:
    """Multiples of a round step from the axis' beginning to 1, not beyond."""
    step = 0.05 if lowest > 0.7 else 0.1 if lowest > 0.45 else 0.2
    return [round(1 - number * step, 2) for number in range(math.floor((1 - lowest) / step + 1e-9), -1, -1)]


def _whiskers(axes: Any, row: RankRow, x: float, y: float) -> None:
    assert row.worst is not None
    colour, across = svg.GOOD if is_marked(row) else svg.OTHER, _size(row)
    axes.errorbar(
        [x],
        [y],
        xerr=[[max(0.0, x - across.low)], [max(0.0, across.high - x)]],
        yerr=[[max(0.0, y - 1 + row.worst.high)], [max(0.0, 1 - row.worst.low - y)]],
        fmt="x" if row.guard == BARE else "o",
        markersize=6.5,
        markerfacecolor=colour if is_marked(row) else "none",
        markeredgecolor=colour,
        markeredgewidth=1.4,
        ecolor=colour,
        elinewidth=0.7,
        zorder=3,
    )


def _label_of(row: RankRow, size: FigureSize) -> Label:
    assert row.worst is not None
    ends = sorted((_size(row).low, _size(row).high), reverse=row.measure.is_lower_better)
    reach = (ends[0], 1 - row.worst.high, ends[1], 1 - row.worst.low)
    return Label(short(row.guard, size), *_spot(row), reach)
