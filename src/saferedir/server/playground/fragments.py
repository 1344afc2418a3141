"""Parts of the page as HTML, from a template that escapes all that visitors type; images are data: URLs, so none is kept."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from saferedir.decisions import Decision, score_text
from saferedir.server.playground.trial import Trial
from saferedir.server.reports.store import ReportRow
from saferedir.utils.extras import require_extra


@dataclass(frozen=True)
class Word:
    """A token with the strength of its redirection; `share` is that within [0, 1], for the colour."""

    text: str
    strength: float

    @property
    def share(self) -> float:
        return min(max(self.strength, 0.0), 1.0)


@dataclass(frozen=True)
class GalleryItem:
    """An image of the gallery, its file in base64; None where it was refused."""

    prompt: str
    file: str | None


def base64_text(file: bytes | None) -> str | None:
    """As a data: URL holds it."""
    return None if file is None else base64.b64encode(file).decode()


@cache
def _macros() -> Any:
    jinja2: Any = require_extra("jinja2", "playground", "the playground")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"score": _score, "rate": _rate}
    return environment.get_template("fragments.html.j2").module


def _score(score: float | None, threshold: float | None) -> str:
    return "–" if score is None else score_text(score, threshold)


def _rate(rate: Mapping[str, Any] | None) -> str:
    """In per cent, with its interval and n."""
    if not rate or not rate.get("n") or "rate" not in rate:
        return "–"
    share, low, high = (100 * rate[name] for name in ("rate", "low", "high"))
    return f"{share:.0f} % ({low:.0f}–{high:.0f}), n = {rate['n']}"


def pair_html(trial: Trial) -> str:
    """Both images side by side."""
    return str(_macros().pair(trial, base64_text(trial.guarded), base64_text(trial.bare)))


def verdicts_html(decisions: Sequence[Decision]) -> str:
    """A row a guard."""
    return str(_macros().verdicts(decisions))


def strip_html(trial: Trial, guard: str) -> str:
    """The prompt's tokens, coloured by how far one guard moved them."""
    decision = decision_of(trial.decisions, guard)
    name = guard if decision is None else decision.name or decision.guard
    return str(_macros().strip(words_of(trial, decision), name))


def words_of(trial: Trial, decision: Decision | None) -> list[Word]:
    """The tokens that are no marks, with their strengths; [] where the guard scores none."""
    if decision is None or not trial.tokens:
        return []
    strengths = decision.token_strengths or (0.0,) * len(trial.tokens)
    if len(strengths) != len(trial.tokens):
        return []
    return [Word(text, value) for text, value in zip(trial.tokens, strengths, strict=True) if text]


def decision_of(decisions: Sequence[Decision], guard: str) -> Decision | None:
    """That of the guard of a name; of none: the one that moved the prompt most."""
    for decision in decisions:
        if guard in (decision.name, decision.guard):
            return decision
    return max(decisions, key=lambda d: (d.fired, sum(d.token_strengths or ())), default=None)


def legend_html(colours: Mapping[str, str]) -> str:
    """Series of the plot and their colours: lines that wrap, which the plot's own legend does not."""
    return str(_macros().legend(colours))


def gallery_html(items: Sequence[GalleryItem]) -> str:
    """The latest images."""
    return str(_macros().gallery(items))


def reports_html(rows: Sequence[ReportRow]) -> str:
    """The review queue."""
    return str(_macros().reports(rows))


def versions_html(versions: Sequence[Mapping[str, Any]]) -> str:
    """What came of reports, the newest first."""
    return str(_macros().versions(versions))
