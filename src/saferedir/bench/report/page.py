"""The page: figures and the template page.html.j2 over `Contents`. Autoescaping is on; the only markup that passes is our own
figures.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from saferedir.bench.records import BARE
from saferedir.bench.report.content.headline import is_marked
from saferedir.bench.report.content.numbers import (
    decimal,
    join_words,
    mebibytes,
    p_value,
    percent,
    pluralise,
    seconds,
    times,
)
from saferedir.bench.report.content.sentences import TEMPLATES
from saferedir.bench.report.plots import bars as figures
from saferedir.bench.report.plots.bars import DESKTOP, MOBILE, FigureSize
from saferedir.bench.report.plots.kept import KeptFigures
from saferedir.bench.report.plots.scatter import absent, scatter
from saferedir.bench.report.sections import Contents, Section
from saferedir.utils.extras import require_extra


def render(contents: Contents, kept: KeptFigures | None = None) -> str:
    """The whole page as HTML text, with figures of an earlier one where they would be the same."""
    kept = kept or KeptFigures()
    jinja2 = require_extra("jinja2", "bench", "the report's page")
    markup = require_extra("markupsafe", "bench", "the report's page").Markup
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "decimal": decimal,
        "p": p_value,
        "seconds": seconds,
        "times": times,
        "memory": mebibytes,
        "image": _data_uri,
        "figure": markup,
        "guard": lambda name: "no guard" if name == BARE else name,
        "and": join_words,
    }
    script = (TEMPLATES / "sort.js.j2").read_text(encoding="utf-8")
    text: str = environment.get_template("page.html.j2").render(
        contents.values,
        plots={section.group.anchor: _plots(section, kept) for section in contents.sections},
        cost_plots=[
            {size: kept.get(figures.cost_bars, rows, f"cost-{number}", size) for size in (DESKTOP, MOBILE)}
            for number, rows in enumerate(contents.costs.values(), start=1)
        ],
        sizes=(("wide", DESKTOP), ("thin", MOBILE)),
        absent=absent,
        pluralise=pluralise,
        small=_is_small,
        script=markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text


def _plots(section: Section, kept: KeptFigures) -> Mapping[str, Mapping[FigureSize, Any]]:
    """Figures of a section by name, for wide windows and narrow ones."""
    title, name = f"Concept rate by phrasing: {section.title}", f"rates-{section.group.anchor}"
    stressed = [row.guard for row in section.ranking.rows if is_marked(row)]
    return {
        "scatter": {size: kept.get(scatter, section.ranking, size) for size in (DESKTOP, MOBILE)},
        "bars": {
            size: kept.get(figures.bars, section.rates.table, stressed, name, title, size) for size in (DESKTOP, MOBILE)
        },
    }


def _data_uri(image: bytes) -> str:
    """A PNG or WebP file as an address."""
    kind = "webp" if image.startswith(b"RIFF") else "png"
    return f"data:image/{kind};base64," + base64.b64encode(image).decode()


def _is_small(image: bytes) -> bool:
    """Whether it is a PNG of at most 128 pixels' width (its header says), so that enlarging should keep its pixels."""
    return not image.startswith(b"RIFF") and int.from_bytes(image[16:20], "big") <= 128
