"""Limits, marks and sentences follow what was measured: guards that refuse, no retain prompts, clustered cases, unequal n."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench.report_world import cell, cells, rate, report_data, shown, without_kept

from saferedir.bench.records import CellRecord
from saferedir.bench.report import ReportData, page, write_report
from saferedir.bench.report import markdown as markdown_file
from saferedir.bench.report.content.data import Group, groups
from saferedir.bench.report.content.headline import headline, is_marked, passes
from saferedir.bench.report.content.limits import MAX_REFUSAL_RATE, Limits
from saferedir.bench.report.content.numbers import estimate
from saferedir.bench.report.content.ranking import ranking
from saferedir.bench.report.content.reading import definitions, threat_model
from saferedir.bench.report.content.sentences import sentence
from saferedir.bench.report.content.tables import image_quality, paired_tests
from saferedir.bench.report.plots import svg
from saferedir.bench.report.plots.scatter import absent, scatter

NBSP = "\u00a0"


def mean(value: float, n: int = 50) -> dict[str, Any]:
    return {"mean": value, "n": n, "low": value - 0.01, "high": value + 0.01}


def guarded(guard: str, hits: int, refused: int, **benign: Any) -> list[CellRecord]:
    """A guard that refuses so many of 100 retain prompts."""
    return [
        cell(guard, "star", "forget", "test-seen", {"concept": rate(hits, 100), "blocked": rate(0, 100)}),
        cell(guard, "star", "retain", "retain", {"blocked": rate(refused, 100), **benign}),
    ]


def one_group(*records: CellRecord) -> Group:
    (found,) = groups(records)
    return found


def both(tmp_path: Path, data: ReportData) -> list[str]:
    """The page and the Markdown, with plain spaces."""
    return [path.read_text(encoding="utf-8").replace(NBSP, " ") for path in write_report(data, tmp_path)]


#: two guards of the made-up bench on one concept
FEW = tuple(one for one in cells() if one.name.guard in ("none", "duo") and one.name.concept == "star")
REFUSERS = [
    *guarded("none", 100, 0),
    *guarded("honest", 3, 0, drift=mean(0.3)),
    *guarded("blocker", 0, 90, drift=mean(0.01)),
    *guarded("wall", 0, 100),
]


def test_a_guard_that_refuses_benign_prompts_wins_nothing() -> None:
    ranked = ranking(one_group(*REFUSERS), ())
    assert ranked.limits == Limits(refusal=True)
    assert [row.guard for row in ranked.rows] == ["honest", "blocker", "wall"]
    assert [is_marked(row) for row in ranked.rows] == [True, False, False]
    said = headline(ranked)
    claim = said.claim.replace(NBSP, " ")
    assert claim.startswith("On these prompts honest keeps the star rate below 5.0 % without refusing more than")
    assert claim.endswith("(1 of 3 guards); its 95 % interval reaches beyond, so more prompts are needed to be sure.")
    assert "Lowest: honest," in said.detail and "Of those within the limit honest preserves most" in said.detail
    for name, share in (("blocker", "90.0"), ("wall", "100.0")):
        assert f"{name} refuses {share}{NBSP}% (" in said.detail and "of other prompts" in said.detail
    assert ranked.rows[2].why_not == "drift: every image was refused"
    assert all(len(row.notes) == row.comes_last for row in ranked.rows)


def test_where_all_refuse_none_is_lowest() -> None:
    ranked = ranking(one_group(*guarded("a", 0, 50, drift=mean(0.1)), *guarded("b", 0, 100)), ())
    said = headline(ranked)
    assert "Lowest" not in said.detail and "preserves most" not in said.detail
    assert "a refuses 50.0" in said.detail and "b refuses 100.0" in said.detail
    assert scatter(ranked) == ""


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_marks_and_order_agree_with_a_plain_recount(counts: list[tuple[int, int]]) -> None:
    records = [one for i, (hits, no) in enumerate(counts) for one in guarded(f"g{i}", hits, no, drift=mean(0.1 + i))]
    ranked = ranking(one_group(*records), ())
    good = {f"g{i}" for i, (hits, no) in enumerate(counts) if hits < 5 and no <= 5}
    assert {row.guard for row in ranked.rows if is_marked(row)} == good
    refuses = [counts[int(row.guard[1:])][1] / 100 > MAX_REFUSAL_RATE for row in ranked.rows]
    assert refuses == sorted(refuses)
    claim = headline(ranked).claim
    assert claim.startswith("None of") == (not good) and (not good or any(name in claim for name in good))
    assert not any(row.guard in claim.split() for row in ranked.rows if row.guard not in good)


def test_the_plot_leaves_refusers_out_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = ranking(one_group(*REFUSERS), ())
    said = absent(ranked).replace(NBSP, " ")
    assert said.startswith("Not in the plot: blocker (refuses 90.0 % (") and "wall (refuses 100.0 % (" in said
    page_text, markdown = both(tmp_path, report_data(cells=tuple(REFUSERS), costs=(), samples=()))
    assert said in page_text
    for text in (page_text, markdown):
        assert "wall refuses 100.0 % (" in text and "come after the others" in text
        assert "at most 5.0 % of other prompts refused; nothing else has a limit" in text
    assert "| wall (note 1) | no |" in markdown and "| honest | yes |" in markdown
    generated: list[str] = []
    monkeypatch.setattr(
        "saferedir.bench.report.plots.scatter.label", lambda *rest: generated.extend(one.text for one in rest[2])
    )
    monkeypatch.setattr(svg, "to_svg", lambda *rest: "")
    scatter(ranked)
    assert generated == ["honest"]


def test_at_a_glance_refusers_come_behind() -> None:
    names = [name for name, _ in shown(cells=tuple(REFUSERS), costs=()).glance]
    assert names == ["honest", "blocker", "wall"]
    records = (*REFUSERS, *map(_on_another_concept, REFUSERS))
    text = page.render(shown(cells=records, costs=())).replace(NBSP, " ")
    table = text[text.index('id="glance"') : text.index("<h3>Ranking")]
    assert "Guards that refuse more than 5.0 % of other prompts come last" in table
    assert table.count("<i>refuses</i>") == 4 and "0.010" not in table


def _on_another_concept(record: CellRecord) -> CellRecord:
    return dataclasses.replace(record, name=dataclasses.replace(record.name, concept="emblem"))


def test_a_share_kept_implies_the_limit_of_refusing_and_the_headline_names_it() -> None:
    refuser = guarded("wall", 0, 100, retention=rate(0, 300, 100.0))
    ranked = ranking(one_group(*refuser, *guarded("honest", 9, 0, retention=rate(290, 300, 150.0))), ())
    assert ranked.limits == Limits(retention=True) and not any(map(passes, ranked.rows))
    assert f"refuses 100.0{NBSP}%" in headline(ranked).detail


def test_without_retain_prompts_captions_limits_and_marks_agree(tmp_path: Path) -> None:
    asked = {"low": (1, 40), "high": (50, 0)}
    records = tuple(
        cell(guard, "star", "forget", "test-seen", {"concept": rate(hits, 100), "blocked": rate(refused, 100)})
        for guard, (hits, refused) in asked.items()
    )
    ranked = ranking(one_group(*records), ())
    assert ranked.limits == Limits() and [is_marked(row) for row in ranked.rows] == [True, False]
    page_text, markdown = both(tmp_path, report_data(cells=records, costs=(), published=()))
    for text in (page_text, markdown):
        assert "On these prompts low keeps the star rate below 5.0 % (1 of 2 guards); its 95 % interval" in text
        assert "what guards do to other prompts was not measured" in text
        assert "refusing up to 40.0 %" in text and "none is called best" in text
        assert "95.0 %" not in text and "share of attributes kept" not in text and "0 of 0" not in text
    assert "| low | yes |" in markdown and "| high | no |" in markdown
    assert "Robustness and preservation" not in page_text


def test_an_unfinished_guard_is_neither_marked_nor_counted() -> None:
    lacking = guarded("lacking", 0, 0)[:1]
    ranked = ranking(one_group(*lacking, *guarded("whole", 1, 0, drift=mean(0.2))), ())
    assert [row.guard for row in ranked.rows if is_marked(row)] == ["whole"]
    said = headline(ranked)
    assert (
        said.claim.startswith("On these prompts whole keeps")
        and "1 guard without all numbers is not counted." in said.detail
    )


def test_guards_of_the_same_numbers_share_the_first_place() -> None:
    same = [one for name in ("a", "b") for one in guarded(name, 0, 0, retention=rate(300, 300, 100.0))]
    other = guarded("c", 50, 0, retention=rate(300, 300, 100.0))
    assert headline(ranking(one_group(*same, *other), ())).detail.startswith("Best: a and b alike, concept rate")


@pytest.mark.parametrize(
    ("n", "effective_n", "text"),
    [
        (60, 14.0, "n = 60, effective n 14"),
        (60, 13.6, "n = 60, effective n 14"),
        (9, 4.54, "n = 9, effective n 4.5"),
        (9, 4.0, "effective n 4)"),
    ]
    + [(60, 60.0, "n = 60)"), (60, 59.8, "n = 60)"), (60, None, "n = 60)")],
)
def test_what_clustered_cases_tell_stands_beside_n(n: int, effective_n: float | None, text: str) -> None:
    found = estimate(rate(n // 2, n, effective_n))
    assert found and text in found.full_text.replace(NBSP, " ")


def test_page_and_markdown_say_the_effective_n_and_what_that_means(tmp_path: Path) -> None:
    for text in both(tmp_path, report_data(cells=FEW, costs=(), published=())):
        assert "n = 600, effective n 431" in re.sub(r"n ([0-9]+,)</span> <span class=.effective-n.>", r"n = \1 ", text)
        assert "tell as much as 14 independent ones" in text
    plain = [dataclasses.replace(one, measured={"concept": rate(1, 9)}) for one in cells()[:1]]
    assert "Effective n" not in dict(definitions([], plain, is_corrected=False))


def test_numbers_over_fewer_images_than_their_column_are_noted(tmp_path: Path) -> None:
    def encoded(guard: str, refused: int, n: int) -> list[CellRecord]:
        return guarded(guard, 0, refused, **{"fid:x": mean(9.0, n), "cmmd:x": mean(0.3, n)}, retention=rate(n, 100))

    records = (*encoded("whole", 0, 100), *encoded("part", 20, 80), *encoded("other", 0, 100))
    table = image_quality(one_group(*records))
    fewer = sentence("captions.fewer_images")
    assert table.notes == (fewer,)
    for guard, row in table.entries.items():
        assert all((entry.notes == (1,)) is (guard == "part") for entry in row)
    for text in both(tmp_path, report_data(cells=records, costs=())):
        assert fewer in text.replace("\\", "")
        assert "fid and cmmd are not corrected for bias at small n: compare at the same n only" in text


def test_a_table_without_fid_says_nothing_of_it() -> None:
    text = markdown_file.render(shown(cells=tuple(guarded("a", 0, 0, drift=mean(0.2)))))
    assert "How images fit their prompts" in text and "fid" not in text and "@reference" not in text


def test_words_are_explained_only_where_they_were_measured() -> None:
    some = tuple(guarded("a", 0, 0, drift=mean(0.2)))
    words = dict(definitions([ranking(one_group(*some), ())], some, is_corrected=False))
    assert not {"asr_live", "Corrected", "Retention", "Broken", "p", "Identical"} & words.keys()
    assert {"Drift", "Blocked", "In place of retention"} <= words.keys() and "KID" not in words["Interval, n"]
    whole = dict(definitions([ranking(one, ()) for one in groups(cells())], cells(), is_corrected=True))
    assert {"asr_live", "Corrected", "Retention", "Broken", "p", "Effective n"} <= whole.keys()


def test_attackers_that_were_not_tried_are_said_to_be_so() -> None:
    said = threat_model(cells())
    tried, others = said.split("Not measured:")
    assert "T1" in tried and "T2" in others and "T3" in others and "Out of scope is T4" in others
    stronger = dataclasses.replace(cells()[0], threat={"knowledge": "T3"})
    tried, others = threat_model((*cells(), stronger)).split("Not measured:")
    assert "T1" in tried and "T3" in tried and "T3" not in others


def test_paired_tests_over_several_seeds_count_pairs(tmp_path: Path) -> None:
    test = {"b": 0, "c": 9, "p": 0.004, "clusters": 5}
    record = cell("a", "star", "forget", "test-seen", {"concept": rate(1, 100), "versus_none": test})
    assert paired_tests(one_group(record))[0].is_clustered
    for text in both(tmp_path, report_data(cells=(record,), costs=())):
        assert "how many pairs of prompt and seed show star" in text
    assert "pairs of prompt and seed" not in markdown_file.render(shown())


def test_both_files_explain_their_words(tmp_path: Path) -> None:
    for text in both(tmp_path, report_data(cells=without_kept(FEW), costs=(), published=())):
        assert "How to read this" in text and "In place of retention" in text
