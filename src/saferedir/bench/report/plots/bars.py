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


def bars(table: Table, good: Collection[str], name: str, title: str, room: FigureSize = DESKTOP) -> str:
    """Rates as one panel a column, one bar a guard, with 95 % whiskers; "" without a number. `good` are the guards to stress."""
    columns = [
        place for place, _ in enumerate(table.columns) if any(row[place].estimate for row in table.entries.values())
    ]
    if not columns:
        return ""
    across = min(len(columns), room.panels)
    lines = math.ceil(len(columns) / across)
    inner, above, below = len(table.guards) * _ROW, 26, 30
    width, height = room.names + room.panel * across, lines * (inner + above + below)
    figure = svg.new_figure(width, height)
    for number, place in enumerate(columns):
        down, right = divmod(number, across)
        top = height - down * (inner + above + below) - above
        spot = (
            (room.names + right * room.panel) / width,
            (top - inner) / height,
            0.8 * room.panel / width,
            inner / height,
        )
        axes = svg.plain(figure.add_axes(spot))
        _panel(axes, table, place, good)
        svg.literal(
            axes.set_title(short(table.columns[place].prompts, room), fontsize=9, color=svg.INK, loc="left", pad=5)
        )
        _names(axes, [short(guard, room) for guard in table.guards] if right == 0 else [""] * len(table.guards))
    panels = f"{pluralise(len(columns), 'panel')} of {pluralise(len(table.guards), 'bar')}"
    description = f"{panels}; the table beside it has the same numbers."
    return svg.to_svg(figure, name + room.suffix, title, description)


def cost_bars(costs: Sequence[Cost], name: str, room: FigureSize = DESKTOP) -> str:
    """Time of an image relative to the bare model's, one bar a guard; "" without a ratio."""
    shown = [cost for cost in costs if cost.ratio is not None]
    if not shown:
        return ""
    width, height = min(room.width, 720), len(shown) * _ROW + 50
    figure = svg.new_figure(width, height)
    told = [times(cost) if room == DESKTOP else f"{cost.ratio:.2f}{NBSP}×" for cost in shown]
    inner = width - room.names - _LETTER * max(map(len, told)) - 12  # the numbers stand right of the longest bar
    axes = svg.plain(figure.add_axes((room.names / width, 44 / height, inner / width, len(shown) * _ROW / height)))
    ratios = [cost.ratio or 0.0 for cost in shown]
    axes.barh(range(len(shown)), ratios, height=0.56, color=svg.OTHER)
    axes.axvline(1, color=svg.INK, linewidth=0.9)
    longest = max(1.0, *ratios)
    for place in range(len(shown)):
        axes.text(max(ratios[place], 1) + 0.02 * longest, place, told[place], va="center", fontsize=8.25, color=svg.INK)
    _names(axes, [short(cost.guard, room) for cost in shown])
    axes.set(xlim=(0, longest * 1.02), xlabel="time an image, bare model = 1")
    return svg.to_svg(figure, name + room.suffix, "Time an image", "The cost table has the same numbers.")


def _panel(axes: Any, table: Table, place: int, good: Collection[str]) -> None:
    found = [(row, guard, table.entries[guard][place].estimate) for row, guard in enumerate(table.guards)]
    shown = [(row, guard, one) for row, guard, one in found if one is not None]
    rows, values = [row for row, _, _ in shown], [one.value for _, _, one in shown]
    colours = [svg.LINE if guard == BARE else svg.GOOD if guard in good else svg.OTHER for _, guard, _ in shown]
    axes.barh(rows, values, height=0.56, color=colours)
    axes.hlines(rows, [one.low for _, _, one in shown], [one.high for _, _, one in shown], color=svg.INK, linewidth=1.0)
    axes.plot(values, rows, marker="|", markersize=7, color=svg.INK, linestyle="none")
    for row in {row for row, _, _ in found} - set(rows):
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


def short(name: str, room: FigureSize) -> str:
    """A guard's or prompt set's name, cut to what the room has place for."""
    name = "no guard" if name == BARE else name
    return name if len(name) <= room.letters else name[: room.letters - 1] + "…"
