"""The report's bars, as SVG strings: rates by phrasing, and cost. Robustness against preservation: scatter.py.

Matplotlib when first needed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from saferedir.bench.records import BARE, Cost
from saferedir.bench.report.content.numbers import NBSP, pluralise, times
from saferedir.bench.report.content.tables import Table
from saferedir.bench.report.plots import svg

_ROW = 21  # pixels a bar
_LETTER = 5.4  # pixels a letter of the numbers beside bars


@dataclass(frozen=True)
class FigureSize:
    """How much place a figure has, in CSS pixels.

    Attributes:
        width, height: of the scatter plot; names: width of guard names beside bars; panel: width of one panel of bars;
        panels: how many stand side by side; letters: longest name that is written whole.
        right: margin right of the scatter plot; beyond: how far its axis goes past its best value, for names, as a share of its
        length.
        suffix: what makes the figure's ids differ from those of its twin.
    """

    width: int
    height: int
    names: int
    panel: int
    panels: int
    letters: int
    right: int
    beyond: float
    suffix: str = ""


DESKTOP = FigureSize(width=980, height=520, names=170, panel=222, panels=4, letters=26, right=6, beyond=0.14)
MOBILE = FigureSize(
    width=358, height=400, names=128, panel=113, panels=2, letters=19, right=12, beyond=0.03, suffix="-thin"
)


def bars(table: Table, good: Collection[str], name: str, title: str, size: FigureSize = DESKTOP) -> str:
    """Rates as one panel a column, one bar a guard, with 95 % whiskers; "" without a number. `good` are the guards to stress."""
    columns = [
        index for index, _ in enumerate(table.columns) if any(row[index].estimate for row in table.entries.values())
    ]
    if not columns:
        return ""
    across = min(len(columns), size.panels)
    lines = math.ceil(len(columns) / across)
    inner, above, below = len(table.guards) * _ROW, 26, 30
    width, height = size.names + size.panel * across, lines * (inner + above + below)
    figure = svg.new_figure(width, height)
    for number, index in enumerate(columns):
        down, right = divmod(number, across)
        top = height - down * (inner + above + below) - above
        spot = (
            (size.names + right * size.panel) / width,
            (top - inner) / height,
            0.8 * size.panel / width,
            inner / height,
        )
        axes = svg.plain(figure.add_axes(spot))
        _panel(axes, table, index, good)
        svg.literal(
            axes.set_title(short(table.columns[index].prompts, size), fontsize=9, color=svg.INK, loc="left", pad=5)
        )
        _names(axes, [short(guard, size) for guard in table.guards] if right == 0 else [""] * len(table.guards))
    panels = f"{pluralise(len(columns), 'panel')} of {pluralise(len(table.guards), 'bar')}"
    description = f"{panels}; the table beside it has the same numbers."
    return svg.to_svg(figure, name + size.suffix, title, description)


def cost_bars(costs: Sequence[Cost], name: str, size: FigureSize = DESKTOP) -> str:
    """Time of an image relative to the bare model's, one bar a guard; "" without a ratio."""
    shown = [cost for cost in costs if cost.ratio is not None]
    if not shown:
        return ""
    width, height = min(size.width, 720), len(shown) * _ROW + 50
    figure = svg.new_figure(width, height)
    labels = [times(cost) if size == DESKTOP else f"{cost.ratio:.2f}{NBSP}×" for cost in shown]
    inner = width - size.names - _LETTER * max(map(len, labels)) - 12  # the numbers stand right of the longest bar
    axes = svg.plain(figure.add_axes((size.names / width, 44 / height, inner / width, len(shown) * _ROW / height)))
    ratios = [cost.ratio or 0.0 for cost in shown]
    axes.barh(range(len(shown)), ratios, height=0.56, color=svg.OTHER)
    axes.axvline(1, color=svg.INK, linewidth=0.9)
    longest = max(1.0, *ratios)
    for index in range(len(shown)):
        axes.text(
            max(ratios[index], 1) + 0.02 * longest, index, labels[index], va="center", fontsize=8.25, color=svg.INK
        )
    _names(axes, [short(cost.guard, size) for cost in shown])
    axes.set(xlim=(0, longest * 1.02), xlabel="time an image, bare model = 1")
    return svg.to_svg(figure, name + size.suffix, "Time an image", "The cost table has the same numbers.")


def _panel(axes: Any, table: Table, index: int, good: Collection[str]) -> None:
    estimates = [(row, guard, table.entries[guard][index].estimate) for row, guard in enumerate(table.guards)]
    shown = [(row, guard, rate) for row, guard, rate in estimates if rate is not None]
    rows, values = [row for row, _, _ in shown], [rate.value for _, _, rate in shown]
    colours = [svg.LINE if guard == BARE else svg.GOOD if guard in good else svg.OTHER for _, guard, _ in shown]
    axes.barh(rows, values, height=0.56, color=colours)
    axes.hlines(
        rows, [rate.low for _, _, rate in shown], [rate.high for _, _, rate in shown], color=svg.INK, linewidth=1.0
    )
    axes.plot(values, rows, marker="|", markersize=7, color=svg.INK, linestyle="none")
    for row in {row for row, _, _ in estimates} - set(rows):
        axes.text(0.02, row, "no number", va="center", fontsize=7.5, color=svg.SOFT)
    axes.set(xlim=(0, 1.02), xticks=(0, 0.5, 1), xticklabels=("0 %", "50", "100"))
    axes.grid(axis="x", color=svg.LINE, linewidth=0.5)
    axes.set_axisbelow(True)


def _names(axes: Any, names: Sequence[str]) -> None:
    """Names at the bars, the first on top."""
    axes.set_yticks(range(len(names)), names)
    for text in axes.get_yticklabels():
        svg.literal(text)
        text.set(color=svg.INK, fontsize=8.6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)


def short(name: str, size: FigureSize) -> str:
    """A guard's or prompt set's name, cut to what the room has place for."""
    name = "no guard" if name == BARE else name
    return name if len(name) <= size.letters else name[: size.letters - 1] + "…"
