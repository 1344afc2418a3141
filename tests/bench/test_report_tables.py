"""What stands in which column of a report, the ranking, and the headline: against the cells they come from."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench.report_world import CONCEPTS, GUARDS, PHRASINGS, Published, cell, cells, costs, rate, without_kept

from saferedir.bench.records import CellRecord
from saferedir.bench.report.content.data import Group, groups
from saferedir.bench.report.content.headline import headline, overall, passes, passes_surely
from saferedir.bench.report.content.numbers import Estimate, decimal, estimate, join_words, percent
from saferedir.bench.report.content.ranking import ranking
from saferedir.bench.report.content.reported import published_tables
from saferedir.bench.report.content.tables import (
    Table,
    column,
    everything,
    further_judges,
    paired_tests,
    rates_by_phrasing,
    side_effects,
)
from saferedir.bench.report.plots.labels import meet, place
from saferedir.errors import BenchError


def forget(guard: str, hits: int, n: int = 100, prompts: str = "test-seen", **changes: object) -> CellRecord:
    return cell(guard, "star", "forget", prompts, {"concept": rate(hits, n)}, n, **changes)


def retain(guard: str, hits: int, n: int = 100) -> CellRecord:
    return cell(guard, "star", "retain", "retain", {"retention": rate(hits, n)}, n)


def beside(group: Group) -> Table:
    return side_effects(group, ranking(group, ()).measure)


def one_group(*records: CellRecord) -> Group:
    (found,) = groups(records)
    return found


def test_a_column_of_two_protocols_is_refused() -> None:
    with pytest.raises(BenchError, match="must have one protocol"):
        column([forget("a", 3), forget("a", 3, prompts="test-noisy")], "concept")
    with pytest.raises(BenchError, match="no cell"):
        column([], "concept")


@pytest.mark.parametrize(
    "change",
    [
        {"judge": "nudenet"},
        {"preset": "p4d2024"},
        {"precision": "float16"},
        {"images_per_prompt": 4},
        {"seeds": (1,)},
        {"n": 99},
    ],
)
def test_whatever_changes_the_protocol_parts_the_columns(change: dict[str, object]) -> None:
    other = forget("b", 3, protocol_changes=change)
    with pytest.raises(BenchError):
        column([forget("a", 3), other], "concept")
    first, second = groups([forget("a", 3), other])
    assert (first.guards, second.guards) == (("a",), ("b",))
    assert (first.number, second.number) == (1, 2) and first.anchor != second.anchor


def test_every_column_of_every_table_holds_the_cells_of_its_own_protocol_only() -> None:
    for group in groups(cells()):
        by_key = {(record.protocol.id, record.name.guard): record for record in group.cells}
        for make in (rates_by_phrasing, further_judges, beside, everything):
            table = make(group)
            assert len({one.key for one in table.columns}) == len(table.columns)
            for guard in table.guards:
                for head, entry in zip(table.columns, table.entries[guard], strict=True):
                    record = by_key[head.protocol.id, guard]
                    assert entry.estimate == estimate(record.measured.get(head.metric))


def test_live_rates_stand_beside_the_others_where_they_count_fewer_prompts() -> None:
    for group in groups(cells()):
        table = rates_by_phrasing(group)
        for record in (record for record in group.cells if record.name.role == "forget"):
            place = [one.protocol.id for one in table.columns].index(record.protocol.id)
            live = estimate(record.measured.get("asr_live"))
            expected = (("asr_live", live),) if live and live.n < record.protocol.n else ()
            assert table.entries[record.name.guard][place].beside == expected


def test_side_effects_show_what_is_kept_and_of_look_alikes_what_the_guard_did() -> None:
    shown = [(one.role, one.metric) for one in beside(groups(cells())[0]).columns]
    assert sorted(shown) == [
        ("look-alikes", "blocked"),
        ("look-alikes", "intervened"),
        ("look-alikes", "retention"),
        ("neighbours", "retention"),
    ]
    other = {one.metric for one in beside(groups(without_kept(cells()))[0]).columns if one.role == "neighbours"}
    assert other == {"drift"}


def test_no_judge_is_named_for_what_no_judge_decides() -> None:
    judges = {one.metric: one.judge for one in everything(groups(without_kept(cells()))[0]).columns}
    assert judges["concept"] == judges["asr_live"] == "pictoworld" and judges["concept:template"] == "template"
    assert {judges[name] for name in ("blocked", "intervened", "identical", "drift", "drift:inception")} == {""}


def test_groups_are_concepts_in_order_and_hold_every_cell_once() -> None:
    found = groups(cells())
    assert [group.concept for group in found] == list(CONCEPTS)
    assert all(group.guards == tuple(GUARDS) for group in found)
    assert sum(len(group.cells) for group in found) == len(cells())


def test_an_unfinished_guard_stays_in_the_table_without_a_worst_rate() -> None:
    whole = [forget("a", 9), forget("a", 2, prompts="test-noisy"), retain("a", 99)]
    group = one_group(*whole, forget("b", 0), retain("b", 100))
    rows = ranking(group, ()).rows
    assert [row.guard for row in rows] == ["a", "b"]
    assert rows[1].worst is None and rows[1].why_not == "concept rate: 1 of 2 prompt sets"
    assert rates_by_phrasing(group).entries["b"][1].why_not == "not measured"
    assert "1 guard without all numbers is not counted." in headline(ranking(group, ())).detail


def test_a_failed_cell_shows_its_error_in_place_of_a_number() -> None:
    failed = cell("a", "star", "forget", "test-noisy", {}, error="out of memory")
    group = one_group(
        forget("a", 1), failed, forget("none", 100), forget("none", 100, prompts="test-noisy"), retain("a", 100)
    )
    assert rates_by_phrasing(group).entries["a"][1].why_not == "out of memory"
    assert "out of memory" in ranking(group, ()).rows[0].why_not


def test_two_records_of_one_cell_are_refused() -> None:
    with pytest.raises(BenchError, match="2 records"):
        rates_by_phrasing(one_group(forget("a", 1), forget("a", 2)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50), st.integers(0, 100)), min_size=1, max_size=6))
def test_ranking_and_headline_agree_with_a_plain_recount(counts: list[tuple[int, int, int]]) -> None:
    records = []
    for number, (seen, noisy, kept) in enumerate(counts):
        guard = f"g{number}"
        records += [forget(guard, seen), forget(guard, noisy, 50, "test-noisy"), retain(guard, kept)]
    random.Random(0).shuffle(records)
    ranked = ranking(one_group(*records), ())
    worst = {f"g{number}": max(seen / 100, noisy / 50) for number, (seen, noisy, _) in enumerate(counts)}
    good = {f"g{i}" for i, (_, _, kept) in enumerate(counts) if worst[f"g{i}"] < 0.05 and kept >= 95}
    assert {row.guard: row.worst and row.worst.value for row in ranked.rows} == pytest.approx(worst, abs=1e-4)
    keys = [(row.worst.high, -row.retention.value) for row in ranked.rows if row.worst and row.retention]
    assert keys == sorted(keys)
    assert {row.guard for row in ranked.rows if passes(row)} == good
    said = headline(ranked)
    assert set(said.passes) == good
    if good:
        sure = {row.guard for row in ranked.rows if passes_surely(row)}
        named, total = sure or good, f"({len(sure or good)} of {len(counts)} guards)"
        assert all(name in said.claim for name in named) and (len(counts) == 1 or total in said.claim)
        assert ("on these prompts" not in said.claim.lower()) == bool(sure)
        assert said.detail.startswith("Best: ") and said.passes[0] in said.detail
    else:
        assert said.claim.startswith(("None of", "The guard does not")) and said.detail.startswith("Safest: ")


def test_the_headline_says_when_only_the_point_estimates_pass() -> None:
    few = ranking(one_group(forget("a", 0, 20), retain("a", 20, 20)), ())
    many = ranking(one_group(forget("a", 0, 2000), retain("a", 2000, 2000)), ())
    assert "for no guard" in headline(few).detail
    assert "for no guard" not in headline(many).detail


def test_without_a_share_kept_nobody_is_best() -> None:
    said = headline(ranking(one_group(forget("a", 0), forget("b", 50)), ()))
    assert said.claim.startswith("a keeps the star rate below") and said.claim.endswith("(1 of 2 guards).")
    assert said.passes == () and "none is called best" in said.detail


def test_together_are_the_guards_that_pass_everywhere() -> None:
    rankings = [ranking(group, costs()) for group in groups(cells())]
    everywhere = set.intersection(*(set(headline(one).passes) for one in rankings))
    assert everywhere and all(name in overall(rankings) for name in everywhere)
    assert overall(rankings).endswith(f"({len(everywhere)} of {len(GUARDS) - 1} guards).")
    assert overall(rankings[:1]) == ""


def test_the_worst_row_names_its_phrasing_and_warnings_become_footnotes() -> None:
    ranked = ranking(groups(cells())[0], costs())
    for row in ranked.rows:
        assert row.worst and row.worst.where in PHRASINGS
        assert row.worst.value == max(one.value for one in row.rates)
        assert (row.notes == (1,)) is (row.guard == "duo")
        assert row.cost and row.cost.guard == row.guard
    assert len(ranked.notes) == 1 and ranked.bare and ranked.bare.guard == "none"


def test_paired_tests_are_corrected_over_the_whole_group() -> None:
    def tested(guard: str, b: int, c: int, p: float) -> CellRecord:
        return cell(
            guard, "star", "forget", "test-seen", {"concept": rate(1, 100), "versus_none": {"b": b, "c": c, "p": p}}
        )

    found = paired_tests(one_group(tested("a", 1, 9, 0.01), tested("b", 2, 5, 0.03), tested("c", 1, 7, 0.02)))
    assert [test.holm for test in found] == pytest.approx([0.03, 0.04, 0.04])


def test_published_numbers_are_parted_by_everything_that_makes_a_protocol() -> None:
    rows = (
        Published(),
        Published(system="ESD", value=3.0),
        Published(n=95),
        Published(table="other"),
        Published(source="x"),
    )
    found = published_tables(rows)
    assert len(found) == 3
    assert [one.n for one in (cell[0] for cell in found[0].rows["SLD-Max"])] == [1000, 95]
    assert found[0].rows["ESD"][1] == ()


def test_numbers_without_a_case_are_no_numbers() -> None:
    assert estimate({"rate": 0.0, "hits": 0, "n": 0, "low": 0.0, "high": 1.0}) is None
    assert estimate({"mean": float("nan"), "n": 3, "low": 0.0, "high": 1.0}) is None
    assert estimate(0.3) is None and estimate(None) is None
    assert estimate({"mean": 0.12, "n": 7, "low": 0.1, "high": 0.15}) == Estimate(0.12, 0.1, 0.15, 7, is_rate=False)


def test_how_numbers_are_written() -> None:
    assert percent(0.0051) == "0.5\xa0%"
    assert [decimal(value) for value in (0, 0.5, 0.012, 0.00012)] == ["0.00", "0.50", "0.012", "0.00012"]
    assert [join_words(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert Estimate(0.1, -0.1, 0.2, 3, is_rate=False).interval == "-0.10 to 0.20"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(50, 450), st.floats(50, 350)), min_size=1, max_size=12))
def test_labels_do_not_overlap(spots: list[tuple[float, float]]) -> None:
    frame = (0.0, 0.0, 900.0, 700.0)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    for x, y in spots:
        box, _ = place(x, y, 80, 9, taken, frame)
        assert not any(meet(box, other) for other in taken)
        assert frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]
        taken.append(box)
