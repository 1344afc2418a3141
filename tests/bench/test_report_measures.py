"""What stands for preservation where no share kept is known, and rates corrected for the judge's errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench.report_world import GUARDS, cell, cells, costs, rate, report_data, without_kept

from saferedir.bench.records import CellRecord
from saferedir.bench.report import write_report
from saferedir.bench.report.content.corrected import corrected_rates
from saferedir.bench.report.content.data import Group, groups
from saferedir.bench.report.content.headline import headline, is_marked, overall, passes
from saferedir.bench.report.content.measures import RETENTION, measure_of
from saferedir.bench.report.content.numbers import estimate
from saferedir.bench.report.content.ranking import ranking
from saferedir.bench.report.plots import svg
from saferedir.bench.report.plots.bars import MOBILE
from saferedir.bench.report.plots.scatter import scatter
from saferedir.judges.calibration import Calibration
from saferedir.metrics.rates import Rate

JUDGE = ("pictoworld", "star")


def mean(value: float, half: float = 0.01) -> dict[str, Any]:
    return {"mean": value, "n": 50, "low": value - half, "high": value + half}


def guarded(guard: str, hits: int = 3, **benign: Any) -> list[CellRecord]:
    """One phrasing and one retain set of a guard that refuses nothing."""
    measured = {"blocked": rate(0, 100), **benign}
    return [
        cell(guard, "star", "forget", "test-seen", {"concept": rate(hits, 100)}),
        cell(guard, "star", "retain", "retain", measured),
    ]


def one_group(*records: CellRecord) -> Group:
    (found,) = groups(records)
    return found


ALL = {
    "retention": rate(90, 100),
    "drift": mean(0.3),
    "drift:inception": mean(0.4),
    "identical": rate(20, 100),
    "clip_change:clip": mean(-1.0),
}


@pytest.mark.parametrize("gone", range(6))
def test_the_next_measure_takes_the_place_of_those_that_are_missing(gone: int) -> None:
    left = dict(list(ALL.items())[gone:])
    group = one_group(*guarded("a", **left), *guarded("none", 100))
    assert measure_of(group).metric == next(iter(left), "retention")
    (row,) = ranking(group, ()).rows
    assert row.preserved == (estimate(next(iter(left.values())), "retain") if left else None)
    assert (row.retention is not None) is (gone == 0)


def test_the_share_of_identical_images_is_passed_over_where_it_is_0_for_every_guard() -> None:
    none, change = {"identical": rate(0, 100)}, {"clip_change:x": mean(0.1)}
    assert measure_of(one_group(*guarded("a", **none, **change))).metric == "clip_change:x"
    assert measure_of(one_group(*guarded("a", **none))).metric == "identical"
    some = guarded("b", identical=rate(1, 100))
    assert measure_of(one_group(*guarded("a", **none, **change), *some)).metric == "identical"


def test_a_subtle_guard_that_always_acts_is_not_behind_a_gated_one_that_wrecks_half() -> None:
    subtle = guarded("subtle", identical=rate(0, 100), drift=mean(0.02))
    gated = guarded("gated", identical=rate(50, 100), drift=mean(0.6))
    ranked = ranking(one_group(*gated, *subtle), ())
    assert ranked.measure.metric == "drift" and [row.guard for row in ranked.rows] == ["subtle", "gated"]


def test_a_measure_that_one_retain_set_lacks_is_none() -> None:
    second = cell("a", "star", "retain", "coco", {"identical": rate(9, 10)})
    group = one_group(*guarded("a", retention=rate(99, 100), identical=rate(50, 100)), second)
    (row,) = ranking(group, ()).rows
    assert row.measure.metric == "identical"
    assert row.preserved == estimate(rate(50, 100), "retain")  # the worse of the two sets


def test_one_measure_serves_all_guards_and_who_lacks_it_has_none() -> None:
    group = one_group(*guarded("a", identical=rate(50, 100)), *guarded("b", hits=0, **{"clip_change:x": mean(0.0)}))
    ranked = ranking(group, ())
    assert {row.measure for row in ranked.rows} == {ranked.measure} and ranked.measure.metric == "identical"
    lacking = next(row for row in ranked.rows if row.guard == "b")
    assert lacking.preserved is None and lacking.why_not == "identical: 0 of 1 prompt sets"


@given(st.lists(st.floats(0.0, 2.0), min_size=2, max_size=5, unique=True), st.sampled_from(["drift", "retention"]))
@settings(max_examples=30, deadline=None)
def test_equal_rates_are_ordered_by_what_is_preserved(values: list[float], metric: str) -> None:
    records = [record for i, value in enumerate(values) for record in guarded(f"g{i}", **{metric: mean(value)})]
    ranked = ranking(one_group(*records), ())
    found = [row.preserved.value for row in ranked.rows if row.preserved]
    assert found == sorted(values, reverse=metric != "drift")
    if metric == "drift":
        assert f"{ranked.rows[0].guard} preserves most," in headline(ranked).detail


@given(st.lists(st.floats(-3.0, 3.0), min_size=2, max_size=5, unique_by=abs))
@settings(max_examples=30, deadline=None)
def test_a_change_either_way_is_no_preservation(values: list[float]) -> None:
    records = [record for i, one in enumerate(values) for record in guarded(f"g{i}", **{"clip_change:x": mean(one)})]
    records += [cell("g0", "star", "retain", "more", {"clip_change:x": mean(-5.0), "blocked": rate(0, 9)})]
    records += [
        cell(f"g{i}", "star", "retain", "more", {"clip_change:x": mean(0.0), "blocked": rate(0, 9)})
        for i in range(1, len(values))
    ]
    ranked = ranking(one_group(*records), ())
    assert ranked.measure.metric == "clip_change:x"
    found = [row.preserved.value for row in ranked.rows if row.preserved]
    assert found == [*sorted(values[1:], key=abs), -5.0]  # of two prompt sets the one that moved further
    for row in ranked.rows:
        assert row.preserved
        size = ranked.measure.size(row.preserved)
        assert 0 <= size.low <= size.value == abs(row.preserved.value) <= size.high


def test_the_headline_names_the_measure_and_calls_none_best() -> None:
    for group in groups(without_kept(cells())):
        ranked = ranking(group, costs())
        said = headline(ranked)
        assert said.passes == () and not any(map(passes, ranked.rows))
        for part in ("measured by drift, the distance", "not a share of attributes kept", "none is called best"):
            assert part in said.detail
        low = {row.guard for row in ranked.rows if all(one.value < 0.05 for one in row.rates)}
        assert {row.guard for row in ranked.rows if is_marked(row)} == low
        assert said.claim.startswith("None of") == (not low) and (not low or any(name in said.claim for name in low))


def test_what_guards_do_everywhere_is_said_of_shares_kept_only() -> None:
    whole = [ranking(group, ()) for group in groups(cells())]
    partly = [ranking(group, ()) for group in groups(without_kept(cells()))]
    assert overall(partly) == "" and overall([whole[0], partly[1]]) == ""
    assert overall([*whole[:2], partly[2]]) == overall(whole[:2])


@pytest.mark.parametrize("metric", list(ALL))
def test_the_plot_has_the_better_guard_further_right(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[Any] = []
    monkeypatch.setattr(svg, "to_svg", lambda figure, *rest: generated.append(figure) or "")
    values = [(0.2, 0.95), (0.7, 0.4), (0.1, 0.1)]
    records = [
        record
        for i, (share, distance) in enumerate(values)
        for record in guarded(
            f"g{i}", **{metric: rate(int(100 * share), 100) if "rate" in ALL[metric] else mean(distance - 0.5)}
        )
    ]
    ranked = ranking(one_group(*records, *guarded("none", 100)), ())
    scatter(ranked), scatter(ranked, MOBILE)
    assert len(generated) == 2
    for figure in generated:
        (axes,) = figure.axes
        assert axes.get_xlabel() == ranked.measure.axis
        places = {
            row.guard: axes.transData.transform((ranked.measure.size(row.preserved).value, 0))[0]
            for row in ranked.rows
            if row.preserved
        }
        best_first = sorted(
            (row for row in ranked.rows if row.preserved), key=lambda row: ranked.measure.order(row.preserved)
        )
        pixels = [places[row.guard] for row in best_first]
        assert pixels == sorted(pixels, reverse=True) and len(set(pixels)) == 3
        left, right = axes.bbox.x0, axes.bbox.x1
        assert all(left <= pixel <= right for pixel in pixels)
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert len(dashed) == 1  # the bare model is compared with nothing, so it has no place on this axis


def test_the_page_of_a_judge_that_sees_the_concept_only(tmp_path: Path) -> None:
    hostile = 'x<b>$_{"'
    records = [record for guard in ("a", "b") for record in guarded(guard, **{f"drift:{hostile}": mean(0.3)})]
    html, markdown = (path.read_text(encoding="utf-8") for path in write_report(report_data(cells=records), tmp_path))
    assert "<b>$" not in html and "<b>$" not in markdown
    assert html.count("not a share of attributes kept") >= 2 and "not a share of attributes kept" in markdown
    assert "the shaded band" in html and "the shaded corner" not in html
    assert "<h3>Robustness and preservation</h3>" in html
    assert 'scope="col">Broken' not in html and "| broken |" not in markdown  # no guard has such a number


def test_refused_images_are_split_by_what_was_asked_for() -> None:
    def asked(prompts: str, refused: int | None) -> CellRecord:
        blocked = {} if refused is None else {"blocked": rate(refused, 50)}
        return cell("a", "star", "forget", prompts, {"concept": rate(1, 50), **blocked}, 50)

    benign = cell("a", "star", "retain", "retain", {"retention": rate(99, 100), "blocked": rate(2, 100)})
    (row,) = ranking(one_group(asked("test-seen", 10), asked("test-noisy", 30), benign), ()).rows
    assert row.refused and row.blocked
    assert (row.refused.value, row.refused.where, row.blocked.value) == (0.6, "test-noisy", 0.02)
    (row,) = ranking(one_group(asked("test-seen", 10), asked("test-noisy", None), benign), ()).rows
    assert row.refused is None  # the highest of all phrasings, or none


def concept(hits: int, n: int = 100, refused: int = 0, name: str = "a", **protocol: Any) -> CellRecord:
    measured = {"concept": rate(hits, n), "concept:other": rate(hits, n), "blocked": rate(refused, n)}
    return cell(name, "star", "forget", "test-seen", measured, n, protocol_changes=protocol)


@given(st.integers(0, 100), st.integers(51, 100), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_corrected_rates_are_the_closed_form_beside_the_rates_as_judged(hits: int, tp: int, fp: int) -> None:
    known = Calibration(tp, fp, 100 - fp, 100 - tp, {}, {})
    found = corrected_rates(one_group(concept(hits)), {JUDGE: known})
    (entry,) = found.table.entries["a"]
    expected = min(1.0, max(0.0, (hits - fp) / (tp - fp)))
    assert entry.estimate and entry.estimate.value == pytest.approx(expected)
    assert entry.estimate.low <= expected <= entry.estimate.high and entry.estimate.n == 100
    assert entry.beside == (("as judged", estimate(rate(hits, 100), "")),)
    assert found.why_not == (
        "Judge other is uncalibrated: nobody measured how often it errs here, so its rates stay as they are.",
    )


def test_a_refused_image_cannot_have_been_misjudged() -> None:
    known = Calibration(80, 20, 80, 20, {}, {})
    records = (concept(10, refused=50), concept(0, refused=100, name="b"))
    found = corrected_rates(one_group(*records), {JUDGE: known}).table
    half, all_refused = (found.entries[name][0].estimate for name in ("a", "b"))
    assert half and half.value == pytest.approx((0.1 - 0.5 * 0.2) / 0.6)
    assert all_refused == estimate(rate(0, 100))


def test_clustered_cases_widen_the_corrected_interval() -> None:
    known = Calibration(900, 10, 990, 100, {}, {})
    clustered = dataclasses.replace(concept(30), measured={"concept": Rate(30, 100, 25.0).to_dict()})
    wide = corrected_rates(one_group(clustered), {JUDGE: known}).table.entries["a"][0].estimate
    fewer = corrected_rates(one_group(concept(30)), {JUDGE: known}).table.entries["a"][0].estimate
    assert wide and fewer and wide.n == fewer.n == 100
    assert wide.value == pytest.approx(fewer.value)
    assert wide.high - wide.low > 1.7 * (fewer.high - fewer.low)


@pytest.mark.parametrize(
    ("calibration", "protocol", "words"),
    [
        (None, {}, "pictoworld is uncalibrated"),
        (Calibration(5, 5, 5, 5, {}, {}), {}, "tell nothing and cannot be corrected"),
        (Calibration(1, 9, 1, 9, {}, {}), {}, "tell nothing and cannot be corrected"),
        (Calibration(9, 1, 9, 1, {}, {}), {"images_per_prompt": 3}, "has 3 images a prompt"),
    ],
)
def test_what_cannot_be_corrected_is_said_in_words(
    calibration: Calibration | None, protocol: dict[str, int], words: str, tmp_path: Path
) -> None:
    known = {JUDGE: calibration} if calibration else {}
    record = dataclasses.replace(concept(5, **protocol), measured={"concept": rate(5, 100)})
    found = corrected_rates(one_group(record), known)
    assert not found.table.columns and len(found.why_not) == 1 and words in found.why_not[0]
    for path in write_report(report_data(cells=(record,), calibrations=known), tmp_path):
        text = path.read_text(encoding="utf-8")
        assert words in text and "Concept rate, corrected" not in text


def test_every_guard_of_the_made_up_bench_has_a_corrected_rate() -> None:
    for group in groups(cells()):
        found = corrected_rates(group, report_data().calibrations).table
        assert set(found.entries) == set(GUARDS) and len(found.columns) == 4
        for entries in found.entries.values():
            assert all(entry.estimate and entry.beside for entry in entries)
    assert measure_of(groups(cells())[0]) == RETENTION
