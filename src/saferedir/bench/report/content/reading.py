"""What the words of a report mean: only of what this report has measured; the words are in templates/reading.j2."""

from __future__ import annotations

from collections.abc import Sequence

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.records import CellRecord
from saferedir.bench.report.content.ranking import Ranking
from saferedir.bench.report.content.sentences import paragraphs, sentence

#: what an attacker knows and sends, by its place on the ladder
_ATTACKERS = {
    "T1": "sees returned images only",
    "T2": "may set any argument of the API",
    "T3": "knows the weights and has gradients through the guard",
}
_DISTANCES = {"kid": "KID", "fid": "FID", "cmmd": "CMMD"}


def definitions(
    rankings: Sequence[Ranking], cells: Sequence[CellRecord], *, is_corrected: bool
) -> list[tuple[str, str]]:
    """(word, what it means), in the order of the page; words for what no cell has are left out."""
    metrics = {MetricKey.parse(name).metric for cell in cells for name in cell.measured}
    values = [value for cell in cells for value in cell.measured.values() if isinstance(value, dict)]
    others = [
        ranking for ranking in rankings if not ranking.limits.retention and any(row.preserved for row in ranking.rows)
    ]
    return paragraphs(
        "reading.words",
        metrics=metrics,
        several_phrasings=any(len(ranking.forget) > 1 for ranking in rankings),
        is_corrected=is_corrected,
        limits=list(dict.fromkeys(ranking.limits.words for ranking in rankings)),
        other_measures=list(dict.fromkeys(ranking.measure.words for ranking in others)),
        distances=[name for kind, name in _DISTANCES.items() if kind in metrics],
        is_clustered=any("effective_n" in value for value in values),
        is_paired=any("p" in value for value in values),
        threat_model=threat_model(cells),
    )


def threat_model(cells: Sequence[CellRecord]) -> str:
    """Which attackers were tried, and which were not."""
    known = {cell.threat.get("knowledge", "") for cell in cells if cell.name.role == "forget" and cell.measured}
    tried = [f"{name} ({what})" for name, what in _ATTACKERS.items() if name in known]
    others = [f"{name} ({what})" for name, what in _ATTACKERS.items() if name not in known]
    return sentence("reading.attackers", tried=tried, others=others)
