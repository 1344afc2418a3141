"""The scores of every guard over the sampling steps, as rows for a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saferedir.decisions import Decision

COLUMNS = ("step", "score − threshold", "score of")


def timeline(decisions: Sequence[Decision], guard: str = "") -> list[tuple[int, float, str]]:
    """(step, score − threshold, whose score) of prompts and images; above 0 the guard acts. `guard`: of this one only."""
    rows = []
    for decision in decisions:
        if guard and guard not in (decision.name, decision.guard):
            continue
        for kind, scores in (("prompt", decision.prompt_scores), ("image", decision.image_scores)):
            threshold = decision.thresholds.get(kind)
            if threshold is not None:
                rows += [(step, score - threshold, f"{decision.concept}, {kind}") for step, score in enumerate(scores)]
    return rows


#: of series in turn; they differ in lightness, too
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b5b5b", "#8f5fbf", "#b8a200", "#7a3b1d")


def colours_of(rows: Sequence[tuple[int, float, str]]) -> dict[str, str]:
    """Series -> its colour, in the order of the rows."""
    names = dict.fromkeys(name for _, _, name in rows)
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def as_frame(rows: Sequence[tuple[int, float, str]]) -> Any:
    """The rows as pandas' table, which Gradio's plots read."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(COLUMNS))
