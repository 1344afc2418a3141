"""What stands above the tables, the same in the page and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.report.content.measures import RETENTION
from saferedir.bench.report.content.numbers import NBSP, join_words
from saferedir.bench.report.content.ranking import Ranking
from saferedir.bench.report.content.tables import PairedTest, Table

CORRECTED = (
    f"(rate − false positives) ÷ (recall − false positives), within 0 and 100{NBSP}%, with a 95{NBSP}% bootstrap interval that "
    "allows for the small numbers of the calibration, too; beside it the rate as judged. Holds if the labelled images "
    "are like these."
)
COST = (
    f"Median time of an image, and its ratio to the bare model's for the same prompts with the 95{NBSP}% interval over "
    "shards; n: images timed."
)
#: what each kind of metric of the encoders' table says
_QUALITY = {
    "clip_score": "clip_score: higher fits the prompt better; where {concept} is asked for, a guard should lower it",
    "clip_change": "clip_change: how well images fit their prompts, less the same of the unguarded ones",
    "drift": "drift: 0 is the unguarded image, 1 the distance between two of the bare model's own images",
    "kid": "kid: distance from the unguarded images, lower is nearer; chance may take it below 0",
    "fid": "fid: distance from the unguarded images, lower is nearer",
    "cmmd": "cmmd: distance from the unguarded images, lower is nearer",
    "csdr": "csdr, in per cent: how far the fit is from that of images that were never asked for {concept}, lower is nearer",
}
_BIASED = ("fid", "cmmd")


def rates(concept: str, shown: Table) -> str:
    """Of the rates by phrasing."""
    told = (
        f"Share of prompts whose image shows {concept}, by phrasing of the request, with its 95{NBSP}% interval and n."
    )
    if any(entry.beside for row in shown.entries.values() for entry in row):
        told += " asr_live: only over prompts that show it in the bare model, where these are fewer."
    return f"{told} Each column is one protocol."


def bystanders(ranking: Ranking) -> str:
    """Of neighbours and look-alikes."""
    concept = ranking.group.concept
    refused = "" if ranking.measure == RETENTION else ", and how often the guard blocked the image"
    return (
        f"{ranking.measure.title}, as in the ranking, on prompts that are easily mistaken for {concept}{refused}; for "
        "look-alikes, which a careless filter refuses, also how often the guard blocked the image, and how often it "
        "intervened at all."
    )


def quality(concept: str, shown: Table) -> str:
    """Of the encoders' numbers: of those that the table has."""
    columns = [MetricKey.parse(column.metric) for column in shown.columns]
    kinds = [kind for kind in _QUALITY if any(key.metric == kind for key in columns)]
    told = "; ".join(_QUALITY[kind].format(concept=concept) for kind in kinds)
    told += "; @reference: from the images of a folder" if any(key.against for key in columns) else ""
    by = "By the encoder behind the colon. " if any(key.scorer for key in columns) else ""
    biased = [kind for kind in _BIASED if kind in kinds]
    if biased:
        verb = "are" if len(biased) > 1 else "is"
        told += f". {' and '.join(biased)} {verb} not corrected for bias at small n: compare at the same n only"
    return f"{by}{told}. Refused images are left out."


def paired(concept: str, tests: Sequence[PairedTest]) -> str:
    """Of McNemar's tests."""
    is_clustered = any(test.is_clustered for test in tests)
    what = "pairs of prompt and seed" if is_clustered else "prompts"
    told = (
        f"McNemar's exact test on the same prompts and noise: how many {what} show {concept} with one of the two only."
    )
    told += (
        " The test exchanges all pairs of a prompt together, because they are no independent cases."
        if is_clustered
        else ""
    )
    return f"{told} Holm's correction is over all {len(tests)} tests of this table."


def ranked(ranking: Ranking) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Which columns of the ranking come from which protocols: (words, their ids)."""
    forget, retain = (tuple(one.id for one in protocols) for protocols in (ranking.forget, ranking.retain))
    names = [ranking.measure.title, *(name for name in ranking.further if name != "broken"), "blocked on other prompts"]
    others = ((f"{join_words(names)}: measured on", retain),) if retain else ()
    return ("Worst concept rate, and blocked where the concept was asked for: the highest over", forget), *others
