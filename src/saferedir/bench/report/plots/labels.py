"""Names beside the marks of a plot, without overlap. Matplotlib when first needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from saferedir.bench.report.plots import svg
from saferedir.utils.extras import require_extra

_MARK = 5.0  # half a mark's width, in the figure's units
#: left, bottom, right, top
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """A mark's name and place in data coordinates. `reach`: ends of its whiskers, (left, bottom, right, top)."""

    text: str
    x: float
    y: float
    reach: Box


def label(figure: Any, axes: Any, labels: Sequence[Label], level: float | None = None) -> None:
    """Write each name near its mark where it meets no other name, mark, whisker or border, nor a horizontal line at `level`; a
    thin line leads back from afar.
    """
    canvas = require_extra("matplotlib.backends.backend_agg", "bench", "a figure of the report").FigureCanvasAgg(figure)
    lines = require_extra("matplotlib.lines", "bench", "a figure of the report")
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    taken = [box for item in labels for box in _marks(axes, item)]
    if level is not None:
        height = _pixels(axes, 0, level)[1]
        taken.append((frame.x0, height - 1, frame.x1, height + 1))
    for item in sorted(labels, key=lambda item: item.x + item.y, reverse=True):
        x, y = _pixels(axes, item.x, item.y)
        text = svg.literal(axes.text(0, 0, item.text, fontsize=8.6, color=svg.INK, zorder=5))
        size = text.get_window_extent(renderer)
        box, far = place(x, y, size.width, 0.8 * size.height, taken, (frame.x0, frame.y0, frame.x1, frame.y1))
        taken.append(box)
        text.set_transform(None)
        text.set_position((box[0], box[1] + 1))
        if far:
            ends = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
            axes.add_line(
                lines.Line2D([x, ends[0]], [y, ends[1]], color=svg.SOFT, linewidth=0.5, transform=None, zorder=2)
            )


def place(x: float, y: float, width: float, height: float, taken: Sequence[Box], frame: Box) -> tuple[Box, bool]:
    """A free box of that size near (x, y) inside the frame, and whether it is far enough to need a leader line.

    Where no box is free, the first one is taken: a name that overlaps is better than none.
    """
    boxes = [(*corner, corner[0] + width, corner[1] + height) for corner in _corners(x, y, width, height)]
    for number, box in enumerate(boxes):
        wide = (box[0] - 3, box[1] - 1, box[2] + 3, box[3] + 1)
        inside = frame[0] <= wide[0] and frame[1] <= wide[1] and wide[2] <= frame[2] and wide[3] <= frame[3]
        if inside and not any(meet(wide, other) for other in taken):
            return box, number >= 8
    return boxes[0], False


def meet(first: Box, other: Box) -> bool:
    """Whether two boxes share a point inside."""
    return first[0] < other[2] and other[0] < first[2] and first[1] < other[3] and other[1] < first[3]


def _corners(x: float, y: float, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Lower left corners to try: beside the mark, at its four corners, above and below, then on growing rings."""
    right, left, middle = x + _MARK + 4, x - _MARK - 4 - width, x - width / 2
    above, below, level = y + _MARK, y - _MARK - height, y - height / 2
    yield from ((right, level), (left, level), (right, above), (left, above), (right, below), (left, below))
    yield from ((middle, above + 2), (middle, below - 2))
    for radius in range(14, 420, 6):
        for turn in range(24):
            cosine, sine = math.cos(math.pi * (1 + turn / 12)), math.sin(math.pi * (1 + turn / 12))
            yield x + radius * cosine - (width if cosine < 0 else 0), y + radius * sine - height / 2


def _pixels(axes: Any, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _marks(axes: Any, item: Label) -> list[Box]:
    """What a mark covers: itself and its two whiskers."""
    x, y = _pixels(axes, item.x, item.y)
    left, bottom = _pixels(axes, item.reach[0], item.reach[1])
    right, top = _pixels(axes, item.reach[2], item.reach[3])
    return [(x - _MARK, y - _MARK, x + _MARK, y + _MARK), (left, y - 1, right, y + 1), (x - 1, bottom, x + 1, top)]
