"""Calibration: counts and closed forms, labelled folders and tables, corrected rates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from saferedir.errors import JudgeError
from saferedir.judges.calibration import (
    Calibration,
    calibrate,
    calibrate_files,
    corrected_rate,
    count,
    read_labelled,
)
from saferedir.judges.callable import CallableJudge
from saferedir.judges.rules import AnyAbove

JUDGE = CallableJudge(lambda images: images.mean(dim=(1, 2, 3)), "bright", name="brightness")
BRIGHT = AnyAbove(("bright",), 0.5)
counts = st.integers(0, 60)


def of(tp: int, fp: int, tn: int, fn: int) -> Calibration:
    return Calibration(tp, fp, tn, fn, JUDGE.facts(), BRIGHT.to_dict(), "bright")


def grey(path: Path, level: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """3 positives, one of them dark; 2 negatives, one of them bright; one file that is no image."""
    for place, level in enumerate((200, 250, 10)):
        grey(tmp_path / "positive" / "deep" / f"{place}.png", level, (8 + place, 8))
    for place, level in enumerate((240, 30)):
        grey(tmp_path / "negative" / f"{place}.jpg", level)
    (tmp_path / "negative" / "torn.png").write_bytes(b"no image")
    return tmp_path


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_counts_and_rates_are_the_closed_forms(pairs: list[tuple[bool, bool]]) -> None:
    pairs = [*pairs, (True, True), (False, False)]
    decided, labels = torch.tensor([d for d, _ in pairs]), [label for _, label in pairs]
    found = count(decided, labels, judge={}, rule=BRIGHT)
    tp, fp = pairs.count((True, True)), pairs.count((True, False))
    tn, fn = pairs.count((False, False)), pairs.count((False, True))
    assert (found.precision.hits, found.precision.n) == (tp, tp + fp)
    assert (found.recall.hits, found.recall.n) == (tp, tp + fn)
    assert (found.false_positive_rate.hits, found.false_positive_rate.n) == (fp, fp + tn)
    assert found.n == len(pairs)
    expected = stats.binomtest(fp, fp + tn).proportion_ci(method="wilson")
    assert found.false_positive_rate.interval == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_calibrate_in_memory() -> None:
    images = [torch.full((3, 4, 4 + place), level) for place, level in enumerate((0.9, 0.2, 0.8, 0.1))]
    found = calibrate(JUDGE, BRIGHT, images, [True, True, False, False], preset="mine")
    assert found == Calibration(1, 1, 1, 1, JUDGE.facts(), BRIGHT.to_dict(), "mine")
    with pytest.raises(JudgeError, match="4 decisions and 3 labels"):
        calibrate(JUDGE, BRIGHT, images, [True, True, False])
    with pytest.raises(JudgeError, match="both kinds; found 4 positive and 0 negative"):
        calibrate(JUDGE, BRIGHT, images, [True] * 4)


@pytest.mark.parametrize("batch", [1, 32])
def test_a_labelled_folder(labelled: Path, batch: int, tmp_path: Path) -> None:
    found = calibrate_files(JUDGE, BRIGHT, labelled, batch=batch)
    assert (found.true_positives, found.false_negatives) == (2, 1)
    assert (found.false_positives, found.true_negatives) == (1, 1)
    assert dict(found.skipped) == {"negative/torn.png": "it is no image"}
    found.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == found
    written = json.loads((tmp_path / "calibration.json").read_text())
    assert written["recall"]["hits"] == 2 and written["precision"]["n"] == 3


def test_a_table_says_the_same_as_the_folder(labelled: Path) -> None:
    files, labels, _ = read_labelled(labelled)
    words = {True: ["positive", "1", "Yes", "true"], False: ["negative", "0", " no", "FALSE"]}
    rows = [
        f"{path.relative_to(labelled)},{words[label][place % 4]}"
        for place, (path, label) in enumerate(zip(files, labels, strict=True))
    ]
    (labelled / "labels.csv").write_text("\ufefffile,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    assert calibrate_files(JUDGE, BRIGHT, labelled / "labels.csv") == calibrate_files(JUDGE, BRIGHT, labelled)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name,label\na.png,1\n", "needs the columns file and label; found name, label"),
        ("", "is empty"),
        ("file,label\na.png,maybe\n", "line 2 of .* has label 'maybe', expected positive or negative"),
        ("file,label\na.png,1\n", "holds no negative image"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(JudgeError, match=words):
        read_labelled(tmp_path / "labels.csv")


def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="needs the subfolders positive and negative"):
        read_labelled(tmp_path)
    with pytest.raises(JudgeError, match="there is no folder or CSV file"):
        read_labelled(tmp_path / "nowhere")
    (tmp_path / "negative").mkdir()
    grey(tmp_path / "positive" / "a.png", 0)
    with pytest.raises(JudgeError, match="holds no negative image"):
        read_labelled(tmp_path)
    with pytest.raises(JudgeError, match="there is no score 'dark'"):
        calibrate_files(JUDGE, AnyAbove(("dark",), 0.5), tmp_path)
    with pytest.raises(JudgeError, match="has a field of the wrong type"):
        calibrate_files(JUDGE, AnyAbove(("bright",), "high"), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"schema": 0}, "no calibration of schema 1"), ({"true_positives": 0, "false_negatives": 0}, "both kinds")],
)
def test_a_file_that_is_no_calibration_is_one_sentence(change: dict[str, int], words: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(of(1, 1, 1, 1).to_dict() | change))
    with pytest.raises(JudgeError, match=words):
        Calibration.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[")
    with pytest.raises(JudgeError, match="there is no calibration in"):
        Calibration.load(tmp_path / "c.json")
    values = of(1, 1, 1, 1).to_dict()
    del values["judge"]
    with pytest.raises(JudgeError, match="incomplete: 'judge'"):
        Calibration.from_dict(values)


def test_a_calibration_fits_only_the_scores_and_the_rule_it_was_made_for() -> None:
    found = of(5, 1, 5, 1)
    assert found.fits(JUDGE.facts(), BRIGHT.to_dict())
    assert not found.fits(JUDGE.facts() | {"version": "2"}, BRIGHT.to_dict())
    assert not found.fits(JUDGE.facts(), AnyAbove(("bright",), 0.6).to_dict())


@given(st.integers(0, 50), st.integers(1, 50), counts, counts, counts, counts)
def test_the_corrected_rate_is_the_closed_form_inside_its_interval(
    hits: int, more: int, tp: int, fp: int, tn: int, fn: int
) -> None:
    if tp + fn == 0 or fp + tn == 0:
        return
    n, tpr, fpr = hits + more, tp / (tp + fn), fp / (fp + tn)
    found = corrected_rate(hits, n, of(tp, fp, tn, fn), resamples=200)
    if tpr <= fpr:
        assert found is None
        return
    assert found is not None
    assert found["rate"] == pytest.approx(min(1.0, max(0.0, (hits / n - fpr) / (tpr - fpr))))
    assert 0 <= found["low"] <= found["rate"] <= found["high"] <= 1
    assert found == corrected_rate(hits, n, of(tp, fp, tn, fn), resamples=200)


def test_a_judge_without_errors_corrects_nothing() -> None:
    found = corrected_rate(30, 100, of(100_000, 0, 100_000, 0), resamples=20_000)
    assert found is not None and found["rate"] == pytest.approx(0.3)
    jeffreys = stats.beta(30.5, 70.5).ppf([0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx(tuple(jeffreys), abs=0.005)


def test_no_hit_still_leaves_room() -> None:
    found = corrected_rate(0, 142, of(90, 1, 99, 10))
    assert found is not None and found["rate"] == found["low"] == 0 and 0.005 < found["high"] < 0.05


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Simulated judges with TPR .8 and FPR .1 on 150 + 150 labelled images, 200 sets of images, a true rate of 0.3."""
    generates, covered, repeats = np.random.default_rng(0), 0, 300
    for seed in range(repeats):
        tp, fp = int(generates.binomial(150, 0.8)), int(generates.binomial(150, 0.1))
        found = corrected_rate(
            int(generates.binomial(200, 0.3 * 0.8 + 0.7 * 0.1)),
            200,
            of(tp, fp, 150 - fp, 150 - tp),
            resamples=400,
            seed=seed,
        )
        assert found is not None
        covered += found["low"] <= 0.3 <= found["high"]
    assert 0.91 < covered / repeats < 0.99


def test_the_judge_errs_only_in_images_it_saw() -> None:
    """Half of 400 images refused: those seen are corrected as if they were all, and count for half."""
    known = of(80, 20, 80, 20)
    part, whole = corrected_rate(100, 400, known, unseen=200), corrected_rate(100, 200, known)
    assert part is not None and whole is not None
    assert part["rate"] == pytest.approx(whole["rate"] / 2) and part["high"] <= 0.6
    nothing = corrected_rate(0, 400, known, unseen=400)
    assert nothing is not None and nothing["rate"] == 0 and nothing["high"] < 0.02
    with pytest.raises(JudgeError, match="4 of 5 cases are unseen, expected 0 to 3"):
        corrected_rate(2, 5, known, unseen=4)


def test_the_interval_covers_the_truth_where_images_are_refused_too() -> None:
    """As above, with 40 % refused and the concept in half of the rest."""
    generates, covered, repeats = np.random.default_rng(1), 0, 300
    for seed in range(repeats):
        tp, fp, seen = (
            int(generates.binomial(150, 0.8)),
            int(generates.binomial(150, 0.1)),
            int(generates.binomial(200, 0.6)),
        )
        hits = int(generates.binomial(seen, 0.5 * 0.8 + 0.5 * 0.1))
        known = of(tp, fp, 150 - fp, 150 - tp)
        found = corrected_rate(hits, 200, known, unseen=200 - seen, resamples=400, seed=seed)
        assert found is not None
        covered += found["low"] <= 0.3 <= found["high"]
    assert covered / repeats > 0.91


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_one_sentence(hits: int, n: int) -> None:
    with pytest.raises(JudgeError, match="expected a number from 0 to n"):
        corrected_rate(hits, n, of(5, 1, 5, 1))
    assert math.isclose(of(5, 1, 5, 1).recall.value, 5 / 6)
