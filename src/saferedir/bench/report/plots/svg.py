"""Matplotlib's SVG as a piece of a page: no namespaces, no fonts or styles of its own, colours that follow the page's
scheme, a title and a description for readers who do not see it. Matplotlib when first needed.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

from saferedir.utils.extras import require_extra

#: matplotlib gets these colours, the page shows its own
INK, SOFT, LINE, AREA = "#010101", "#020202", "#030303", "#040404"
GOOD, OTHER = "#050505", "#060606"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", AREA: "--area", GOOD: "--good", OTHER: "--other"}
#: points to CSS pixels, so that 9 pt text is 12 px where the figure has room
_PIXELS = 4 / 3


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of `width` x `height` CSS pixels, without pyplot's state; its display unit is the SVG's."""
    figure = require_extra("matplotlib.figure", "bench", "a figure of the report")
    return figure.Figure(figsize=(width / 96, height / 96), dpi=72, facecolor="none")


def plain(axes: Any) -> Any:
    """Axes in the page's quiet look."""
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=SOFT, labelsize=8.25, length=3, color=LINE)
    axes.xaxis.label.set(color=SOFT, fontsize=9)
    axes.yaxis.label.set(color=SOFT, fontsize=9)
    return axes


def literal(text: Any) -> Any:
    """A matplotlib text that takes its string as it is: names may hold dollar signs."""
    text.set_parse_math(False)
    return text


def to_svg(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element. `name` makes its ids differ from those of other figures on the page."""
    matplotlib = require_extra("matplotlib", "bench", "a figure of the report")
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    width, height = (float(value) for value in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)[0])
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    body = re.sub(r' id="(?!m[0-9a-f]{10}|p[0-9a-f]{10})[^"]*"', "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", body)
    body = re.sub(r'(<text style="[^"]*)"', r'\1; font-variant-numeric: tabular-nums"', body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"\s*\n\s*", " ", body)
    label = f'aria-labelledby="{name}-title" aria-describedby="{name}-text"'
    return (
        f'<svg class="figure" role="img" {label} viewBox="0 0 {width:g} {height:g}" '
        f'style="--width: {width * _PIXELS:.0f}px"><title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-text">{html.escape(description)}</desc>{body}</svg>'
    )
