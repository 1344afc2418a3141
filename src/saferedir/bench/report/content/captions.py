"""What stands above the tables: the facts; the words are in templates/captions.j2."""

from __future__ import annotations

from collections.abc import Sequence

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.report.content.measures import RETENTION
from saferedir.bench.report.content.ranking import Ranking
from saferedir.bench.report.content.sentences import sentence
from saferedir.bench.report.content.tables import PairedTest, Table

#: metrics of the encoders' table, in the order in which they are explained
_QUALITY = ("clip_score", "clip_change", "drift", "kid", "fid", "cmmd", "csdr")


def rates(concept: str, table: Table) -> str:
    """Of the rates by phrasing."""
    has_live = any(entry.beside for row in table.entries.values() for entry in row)
    return sentence("captions.rates", concept=concept, has_live=has_live)


def side_effects(ranking: Ranking) -> str:
    """Of neighbours and look-alikes."""
    return sentence(
        "captions.side_effects",
        measure=ranking.measure.title,
        concept=ranking.group.concept,
        shows_refusal=ranking.measure != RETENTION,
    )


def quality(concept: str, table: Table) -> str:
    """Of the encoders' numbers: of those that the table has."""
    keys = [MetricKey.parse(column.metric) for column in table.columns]
    metrics = {key.metric for key in keys}
    return sentence(
        "captions.quality",
        concept=concept,
        kinds=[kind for kind in _QUALITY if kind in metrics],
        has_reference=any(key.against for key in keys),
        has_encoder=any(key.scorer for key in keys),
    )


def paired(concept: str, tests: Sequence[PairedTest]) -> str:
    """Of McNemar's tests."""
    is_clustered = any(test.is_clustered for test in tests)
    return sentence("captions.paired", concept=concept, is_clustered=is_clustered, number=len(tests))


def measured_on(ranking: Ranking) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Which columns of the ranking come from which protocols: (words, their ids)."""
    forget, retain = (tuple(protocol.id for protocol in protocols) for protocols in (ranking.forget, ranking.retain))
    columns = [
        ranking.measure.title,
        *(name for name in ranking.further if name != "broken"),
        "blocked on other prompts",
    ]
    others = ((sentence("captions.measured_on", columns=columns), retain),) if retain else ()
    return (sentence("captions.highest_over"), forget), *others
