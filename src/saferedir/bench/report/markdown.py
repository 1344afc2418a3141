"""The report in Markdown: the template report.md.j2 over the same `Contents` as the page, without images and figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from saferedir.bench.records import BARE
from saferedir.bench.report.content.numbers import NBSP, Estimate, mebibytes, p_value, seconds, times
from saferedir.bench.report.content.sentences import TEMPLATES
from saferedir.bench.report.sections import Contents
from saferedir.utils.extras import require_extra

#: what means something within a line: code, emphasis, links, cells, headings (at their end, too), strikethrough, formulas
_ANYWHERE = re.compile(r"([\\`*_\[\]|#~$])")
#: what would begin a list, a rule, an underlined heading or a table; a signed number begins none
_AT_THE_START = re.compile(r"^([-+](?!\.?\d)|=|:(?=-))")
#: what would begin a numbered list
_NUMBERED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


def render(contents: Contents) -> str:
    """The whole report as Markdown text. Every value is escaped: what a template prints cannot leave its place."""
    jinja2 = require_extra("jinja2", "bench", "the report in Markdown")
    markup = require_extra("markupsafe", "bench", "the report in Markdown").Markup

    def escaped(value: Any) -> Any:
        return value if isinstance(value, markup) else markup(escape(str(value)))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "full": _full,
        "guard": lambda name: "no guard" if name == BARE else name,
        "marks": _marks,
        "memory": mebibytes,
        "p": p_value,
        "seconds": seconds,
        "times": times,
    }
    text: str = environment.get_template("report.md.j2").render(contents.values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escape(text: str) -> str:
    """Text that Markdown shows as it is and that cannot leave its table cell."""
    text = " ".join(text.replace(NBSP, " ").split())
    text = _ANYWHERE.sub(r"\\\1", text)
    text = _NUMBERED.sub(r"\1\\\2", _AT_THE_START.sub(r"\\\1", text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _full(estimate: Estimate | None) -> str:
    return estimate.full_text if estimate else "–"


def _marks(notes: Sequence[int]) -> Any:
    """' (note 1, 2)', '' for none: markup, so that its space stays."""
    markup = require_extra("markupsafe", "bench", "the report in Markdown").Markup
    return markup(f" (note {', '.join(str(note) for note in notes)})" if notes else "")
