"""The report's sentences as plain text: each is a macro of a template in templates/, and page and Markdown escape it themselves.

A template may break its lines anywhere; "95 %" gets its no-break space here.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from saferedir.bench.report.content.numbers import NBSP, join_words, percent, pluralise
from saferedir.utils.extras import require_extra

TEMPLATES = Path(__file__).parents[1] / "templates"


def sentence(name: str, **facts: Any) -> str:
    """The text of the macro "FILE.MACRO", such as "captions.rates" of templates/captions.j2, with these arguments."""
    return re.sub(r"(?<=\d) %", f"{NBSP}%", _one_line(_macro(name)(**facts)))


def paragraphs(name: str, **facts: Any) -> list[tuple[str, str]]:
    """(word, text) of each paragraph "WORD: TEXT" of such a macro."""
    blocks = (_one_line(block) for block in re.split(r"\n\s*\n", _macro(name)(**facts)))
    parts = (block.partition(": ") for block in blocks if block)
    return [(word, re.sub(r"(?<=\d) %", f"{NBSP}%", text)) for word, _, text in parts]


def _macro(name: str) -> Any:
    file, _, macro = name.partition(".")
    return getattr(_environment().get_template(f"{file}.j2").module, macro)


def _one_line(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text).strip()


@cache
def _environment() -> Any:
    """Jinja without escaping; no value can break a line."""
    jinja2 = require_extra("jinja2", "bench", "the report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # sentences; the templates of pages escape  # nosec B701
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: _spaced(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "whole_percent": lambda share: f"{100 * share:.0f}{NBSP}%",
        "and": join_words,
    }
    environment.globals["pluralise"] = pluralise
    return environment


def _spaced(text: str) -> str:
    """Without line breaks; spaces at the ends stay."""
    return re.sub(r"[\r\n]+", " ", text)
