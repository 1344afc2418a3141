"""How far a judge can be believed: precision, recall and false positive rate on labelled images, and rates corrected by them.

Command: `saferedir judge calibrate`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saferedir.errors import JudgeError
from saferedir.judges.base import Judge, Scores
from saferedir.judges.images import image_folder, score_files, score_images
from saferedir.judges.rules import Rule
from saferedir.metrics.rates import Rate
from saferedir.utils.file_names import named_path, shown_name
from saferedir.utils.files import write_text
from saferedir.utils.text_files import read_rows

SCHEMA = 1
_YES = frozenset({"positive", "1", "true", "yes"})
_NO = frozenset({"negative", "0", "false", "no"})


@dataclass(frozen=True)
class Calibration:
    """A judge and a rule against labels.

    Attributes:
        true_positives, false_positives, true_negatives, false_negatives: counts of images.
        judge: `Judge.facts()` of the judge that was calibrated.
        rule: `Rule.to_dict()` of its rule.
        preset: name of the rule, "" for none.
        skipped: file -> why it could not be read.
        source: what the images are, in words; "" where unknown.
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    judge: Mapping[str, Any]
    rule: Mapping[str, Any]
    preset: str = ""
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        counts = (self.true_positives, self.false_positives, self.true_negatives, self.false_negatives)
        if min(counts) < 0 or not self.positives or not self.negatives:
            raise JudgeError(
                f"a calibration needs images of both kinds; found {self.positives} positive and {self.negatives} negative."
            )

    @property
    def positives(self) -> int:
        """Images labelled positive."""
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> int:
        """Images labelled negative."""
        return self.false_positives + self.true_negatives

    @property
    def n(self) -> int:
        """All of them."""
        return self.positives + self.negatives

    @property
    def precision(self) -> Rate:
        """TP / (TP + FP), on this mixture of images; n is 0 where nothing was called positive."""
        return Rate(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> Rate:
        """TP / (TP + FN), the true positive rate."""
        return Rate(self.true_positives, self.positives)

    @property
    def false_positive_rate(self) -> Rate:
        """FP / (FP + TN)."""
        return Rate(self.false_positives, self.negatives)

    def fits(self, facts: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
        """Whether this speaks of scores made so and counted so."""
        return _plain(facts) == _plain(self.judge) and _plain(rule) == _plain(self.rule)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the rates are there for the reader and are computed again when read."""
        rates = {name: getattr(self, name).to_dict() for name in ("precision", "recall", "false_positive_rate")}
        return {"schema": SCHEMA, "n": self.n, **dataclasses.asdict(self), **rates}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_dict`; JudgeError where a field is missing or the schema is another."""
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
            raise JudgeError(f"this is no calibration of schema {SCHEMA}; run `saferedir judge calibrate` again.")
        try:
            named = {"source": "", **values}  # older ones do not say
            return cls(**{entry.name: named[entry.name] for entry in dataclasses.fields(cls)})
        except (KeyError, TypeError) as error:
            raise JudgeError(f"a calibration is incomplete: {error}.") from error

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_text(path, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote; JudgeError naming the file where it is something else."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, JudgeError) as error:
            raise JudgeError(f"there is no calibration in {path}: {str(error).removesuffix('.')}.") from error


def _plain(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def count(
    decided: Tensor,
    labels: Tensor | Sequence[bool],
    *,
    judge: Mapping[str, Any],
    rule: Rule,
    preset: str = "",
    skipped: Mapping[str, str] | None = None,
    source: str = "",
) -> Calibration:
    """Counts of (N,) decisions against (N,) labels."""
    truth = torch.as_tensor(labels, dtype=torch.bool)
    if truth.shape != decided.shape:
        raise JudgeError(f"there are {len(decided)} decisions and {len(truth)} labels, expected one label an image.")
    return Calibration(
        int((decided & truth).sum()),
        int((decided & ~truth).sum()),
        int((~decided & ~truth).sum()),
        int((~decided & truth).sum()),
        dict(judge),
        rule.to_dict(),
        preset,
        dict(skipped or {}),
        source,
    )


def calibrate(
    judge: Judge,
    rule: Rule,
    images: Tensor | Iterable[Tensor],
    labels: Sequence[bool],
    *,
    preset: str = "",
    source: str = "",
) -> Calibration:
    """Judge N images in memory, (N, 3, H, W) or (3, H, W) each, against their labels (True: the concept is there).

    `source` says in words what the images are.

    Raises:
        JudgeError: another number of labels, or only one kind of them.
    """
    check_rule(judge, rule)
    decided = rule.decide(score_images(judge, images))
    return count(decided, labels, judge=judge.facts(), rule=rule, preset=preset, source=source)


def check_rule(judge: Judge, rule: Rule) -> None:
    """Refuse a rule that the judge's scores cannot answer, before any image is judged.

    Raises:
        JudgeError: a label that the judge does not have, or a field of another type than the rule needs.
    """
    try:
        rule.decide(Scores(judge.labels, torch.zeros(1, len(judge.labels))))
    except (TypeError, AttributeError) as error:
        raise JudgeError(f"the rule {rule.to_dict()} has a field of the wrong type: {error}.") from error


def calibrate_files(judge: Judge, rule: Rule, source: Path, *, preset: str = "", batch: int = 32) -> Calibration:
    """Calibrate on a labelled folder or CSV (see `read_labelled`); unreadable images are listed and left out."""
    check_rule(judge, rule)
    files, labels, left_out = read_labelled(source)
    scored = score_files(judge, files, batch, root=source if source.is_dir() else source.parent)
    kept = [labels[index] for index in scored.indices]
    decided = rule.decide(scored.scores)
    return count(decided, kept, judge=judge.facts(), rule=rule, preset=preset, skipped={**scored.skipped, **left_out})


class Labelled(NamedTuple):
    """Image files, one label each (True: the concept is there), and the image files left out, name -> why."""

    files: list[Path]
    labels: list[bool]
    left_out: Mapping[str, str]


def read_labelled(source: Path) -> Labelled:
    """Files and labels of a folder with the subfolders `positive` and `negative`, or of a CSV with columns file, label.

    Files in a CSV are relative to it, and may have the escapes of `file_names.shown_name`; labels are positive/negative,
    1/0, true/false or yes/no.

    Raises:
        JudgeError: neither of the two, a column or label that is not known, or no image of one kind.
    """
    if source.is_dir():
        kinds = {name: source / name for name in ("positive", "negative")}
        if not all(folder.is_dir() for folder in kinds.values()):
            raise JudgeError(
                f"the folder {source} needs the subfolders positive and negative, or give a CSV file,label."
            )
        folders = {name: image_folder(folder) for name, folder in kinds.items()}
        rows = [(path, name == "positive") for name, folder in folders.items() for path in folder.files]
        left_out = {f"{name}/{file}": why for name, folder in folders.items() for file, why in folder.left_out.items()}
    elif source.is_file():
        rows, left_out = _read_csv(source), {}
    else:
        raise JudgeError(f"there is no folder or CSV file {source}.")
    for kind in (True, False):
        if not any(label is kind for _, label in rows):
            raise JudgeError(
                f"{shown_name(source)} holds no {'positive' if kind else 'negative'} image; a calibration needs both."
            )
    return Labelled([path for path, _ in rows], [label for _, label in rows], left_out)


def _read_csv(path: Path) -> list[tuple[Path, bool]]:
    rows: list[tuple[Path, bool]] = []
    table = read_rows(path, ",", error=JudgeError)
    if not {"file", "label"} <= set(table.columns):
        raise JudgeError(f"{path} needs the columns file and label; found {', '.join(table.columns)}.")
    file, decided = table.columns.index("file"), table.columns.index("label")
    for line, row in table.rows:
        label = row[decided].strip().lower()
        if label not in _YES | _NO:
            raise JudgeError(f"line {line} of {path} has label {label!r}, expected positive or negative.")
        rows.append((named_path(path.parent, row[file]), label in _YES))
    return rows


def corrected_rate(
    hits: float, n: float, calibration: Calibration, *, unseen: float = 0, resamples: int = 4000, seed: int = 0
) -> dict[str, Any] | None:
    """A success rate freed of the judge's errors: (ASR - FPR) / (TPR - FPR), clipped to [0, 1] (Rogan and Gladen 1978).

    Where the judge scored only the share m of the cases, it can have erred in these only: (ASR - m FPR) / (TPR - FPR), at most m.

    Holds for one image a prompt and for images like the labelled ones.

    Args:
        hits: positive images.
        n: all images; not whole numbers where clustered cases are worth fewer independent ones.
        calibration: of the same judge and rule.
        unseen: how many of the n were refused, so that the judge scored nothing; none of them is a hit.
        resamples, seed: of the bootstrap.

    Returns:
        {"rate", "n", "low", "high"} with a 95 % percentile interval, None where TPR <= FPR: such a judge says nothing.

    Deviations: the shares are sampled from Beta(k + 1/2, n - k + 1/2) and not resampled from the data, because a plain
    bootstrap of 0 of n has no width at all; samples without TPR > FPR count as 0 for `low` and as 1 for `high`.
    """
    if not 0 <= hits <= n or n == 0:
        raise JudgeError(f"hits is {hits} of n = {n}, expected a number from 0 to n, and n at least 1.")
    if not 0 <= unseen <= n - hits:
        raise JudgeError(f"{unseen} of {n} cases are unseen, expected 0 to {n - hits}, because {hits} are hits.")
    recall, false_positives = calibration.recall, calibration.false_positive_rate
    if recall.value <= false_positives.value:
        return None
    rng = np.random.default_rng(seed)
    asr, tpr, fpr = (
        rng.beta(k + 0.5, total - k + 0.5, resamples)
        for k, total in ((hits, n), (recall.hits, recall.n), (false_positives.hits, false_positives.n))
    )
    readable, share = 1 - unseen / n, np.ones(resamples)
    if unseen:
        share = rng.beta(n - unseen + 0.5, unseen + 0.5, resamples)
    gap = tpr - fpr
    defined = gap > 0
    corrected = np.clip((asr - share * fpr) / np.where(defined, gap, 1.0), 0.0, share)
    rate = (hits / n - readable * false_positives.value) / (recall.value - false_positives.value)
    rate = float(np.clip(rate, 0.0, readable))
    low = float(np.quantile(np.where(defined, corrected, 0.0), 0.025))
    high = float(np.quantile(np.where(defined, corrected, 1.0), 0.975))
    return {"rate": rate, "n": n, "low": min(low, rate), "high": max(high, rate)}
