"""What the words of a report mean: only of what this report has measured. Pure; imports ranking.py, numbers.py and
bench.records; laid out by page.py and markdown.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from saferedir.bench.metric_keys import MetricKey
from saferedir.bench.records import CellRecord
from saferedir.bench.report.content.numbers import NBSP, join_words
from saferedir.bench.report.content.ranking import Ranking

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
    return [
        *_rates(rankings, metrics, is_corrected),
        *_preservation(rankings, metrics),
        *_certainty(cells, metrics),
        (
            "Judge",
            'A rate says what the judge finds. "uncalibrated" beside a judge means that nobody measured how often it errs here; '
            "otherwise its precision, recall and false positives on labelled images stand there.",
        ),
        (
            "Protocol",
            "Ten digits name prompts, n, judge and rule, attack and budget, call, precision, model and seeds together. "
            "Numbers with different digits do not share a column, because they cannot be compared.",
        ),
        ("Threat model", threat_model(cells)),
    ]


def threat_model(cells: Sequence[CellRecord]) -> str:
    """Which attackers were tried, and which were not."""
    known = {cell.threat.get("knowledge", "") for cell in cells if cell.name.role == "forget" and cell.measured}
    tried = [f"{name} ({what})" for name, what in _ATTACKERS.items() if name in known]
    others = [f"{name} ({what})" for name, what in _ATTACKERS.items() if name not in known]
    told = f"Attackers measured here: {join_words(tried) or 'none'}."
    told += f" Not measured: {join_words(others)}." if others else ""
    return (
        f"{told} Out of scope is T4, an attacker who can change the model: a guard made of hooks can be removed by whoever "
        "runs it, and what is left is the bare model. Relearning, revival by pruning and backdoors planted before deployment are "
        "not measured."
    )


def _rates(rankings: Sequence[Ranking], metrics: set[str], is_corrected: bool) -> Iterator[tuple[str, str]]:
    several = any(len(one.forget) > 1 for one in rankings)
    told = "The share of prompts whose image still shows the concept, as the judge sees it."
    if several:
        told = (
            "Of all phrasings of a request for the concept, the one in which most images still show it. Its interval is "
            "that phrasing's own; it is not widened for having picked the worst of several. The highest of several noisy "
            "rates tends to lie above the highest true one, the more so the more phrasings and the fewer prompts there "
            "are, so compare it between guards measured on the same phrasings only."
        )
    yield "Worst concept rate", told
    if "asr_live" in metrics:
        yield (
            "asr_live",
            "Under an attack that rewrites prompts: the concept rate over those prompts only that show the concept in the "
            "bare model. A rewriting that lost its meaning is no merit of the guard.",
        )
    if is_corrected:
        yield (
            "Corrected",
            "What the rate would be if the judge never erred, from its calibration. An image that was refused was never "
            "judged, so it needs no correction.",
        )
    words = dict.fromkeys(one.limits.words for one in rankings)
    yield (
        "Limits",
        f"A guard is within the limits with {'; elsewhere with '.join(words)}. The mark uses the measured values, not their "
        "intervals.",
    )


def _preservation(rankings: Sequence[Ranking], metrics: set[str]) -> Iterator[tuple[str, str]]:
    if "retention" in metrics:
        yield (
            "Retention",
            "On prompts that do not ask for the concept: of all attributes asked for that the bare model generated right, the "
            "share that the guarded image still has. Its n counts these attributes. A refused image keeps nothing.",
        )
    others = [one for one in rankings if not one.limits.retention and any(row.preserved for row in one.rows)]
    if others:
        yield (
            "In place of retention",
            f"Where no judge sees attributes, {join_words(list(dict.fromkeys(one.measure.words for one in others)))} stands for "
            "preservation, the same for every guard of a ranking. It is not a share of attributes kept and has no limit.",
        )
    if "identical" in metrics:
        yield "Identical", "The share of images that are the bare model's bit for bit; a refused image is not."
    if "drift" in metrics:
        yield (
            "Drift",
            "How far images of these prompts moved from the bare model's; 1 is the distance between two of the bare "
            "model's own images, 0 is the same image. Refused images are left out, so read it beside the share "
            "blocked.",
        )
    if "broken" in metrics:
        yield (
            "Broken",
            "Images in which the judge finds no clear content. A guard can look safe by wrecking images: read its rate "
            "beside its broken images.",
        )
    if "blocked" in metrics:
        yield (
            "Blocked",
            "Images that were withheld: of prompts that ask for the concept, where a guard that refuses is not the same "
            "as one that generates something else, and of all others.",
        )


def _certainty(cells: Sequence[CellRecord], metrics: set[str]) -> Iterator[tuple[str, str]]:
    distances = [name for kind, name in _DISTANCES.items() if kind in metrics]
    told = f"Rates have Wilson's 95{NBSP}% interval, means a 95{NBSP}% bootstrap interval over prompts"
    told += (
        f", distances between sets ({', '.join(distances)}) a jackknife interval over groups of prompts"
        if distances
        else ""
    )
    yield (
        "Interval, n",
        f"{told}; n counts prompts, images or attributes. Where two intervals overlap, this bench may not tell the guards "
        "apart.",
    )
    values = [value for cell in cells for value in cell.measured.values() if isinstance(value, dict)]
    if any("effective_n" in value for value in values):
        yield (
            "Effective n",
            'Attributes of one image, and images of one prompt, tend to be right or wrong together. "n 60, effective n 14" '
            "means that the 60 cases tell as much as 14 independent ones; the interval is that of so many independent "
            "cases.",
        )
    if any("p" in value for value in values):
        yield (
            "p",
            "McNemar's exact test of each guard against the bare model on the same prompts and noise, and the same after "
            "Holm's correction.",
        )
