"""Published numbers: complete, in range, as the sources have them, and never two protocols in one table."""

import json
from collections import Counter

import pytest

from saferedir.bench.report.published import DATA, EVIDENCE, HIGHER_IS_BETTER, PublishedRow, published, tables
from saferedir.errors import BenchError

RANGES = {"percent": (0.0, 100.0), "proportion": (0.0, 1.0), "score": (0.0, float("inf"))}


def value(table: str, system: str, attack: str, metric: str = "asr") -> float:
    (found,) = [r for r in published(table) if (r.system, r.attack, r.metric) == (system, attack, metric)]
    return found.value


@pytest.mark.parametrize("table", [table.name for table in tables()])
def test_every_row_is_complete_and_in_range(table: str) -> None:
    rows = published(table)
    assert rows
    for row in rows:
        assert row.table == table
        for name in ("system", "attack", "judge_preset", "model", "source"):
            assert getattr(row, name).strip(), name
        assert row.metric in HIGHER_IS_BETTER and row.evidence in EVIDENCE
        low, high = RANGES[row.unit]
        assert isinstance(row.value, float | int) and low <= row.value <= high
        assert row.n is None or (isinstance(row.n, int) and row.n > 0)
    keys = Counter((row.system, row.attack, row.metric) for row in rows)
    assert max(keys.values()) == 1, "two values for one thing need two tables"


def test_one_metric_has_one_unit_within_a_table_and_judges_are_told_apart() -> None:
    for table in tables():
        units = {(row.metric, row.unit) for row in published(table.name)}
        assert len({metric for metric, _ in units}) == len(units)
        judged = {row.judge_preset for row in published(table.name) if row.judge_preset != "none"}
        assert len(judged) == 1 or table.name == "safree-plus"  # two papers, whose judges agree


def test_tables_are_named_and_described() -> None:
    names = [table.name for table in tables()]
    assert len(set(names)) == len(names)
    assert {table.section for table in tables()} == {f"8.{i}" for i in range(1, 9)}
    for table in tables():
        assert table.title and table.protocol.endswith(".")
        assert "\n" not in table.protocol
    assert [row.table for row in published()] == sorted((r.table for r in published()), key=names.index)


def test_contradicting_values_stay_in_tables_of_their_own() -> None:
    assert value("steerers-table-1", "MACE", "unlearndiffatk-seeds") == 2.8
    assert value("trce", "MACE", "undiff") == 11.3
    assert value("tina-study", "MACE", "unlearndiffatk") == 81.7
    assert value("tina-study-second-note", "MACE", "unlearndiffatk") == 88.7
    found = {
        row.table: row.value for row in published() if (row.system, row.attack) == ("AdvUnlearn", "concept-inversion")
    }
    assert found == {"tina-study": 76.8, "recare-concept-inversion": 65.5, "des-concept-inversion": 6.2}
    assert len({row.table for row in published() if (row.system, row.attack) == ("SAFREE", "ring-a-bell")}) >= 5


def test_counts_that_can_be_counts() -> None:
    """A percentage of n prompts must be k / n for a whole k, rounded or cut off to the digits given."""
    for row in published():
        if row.n is None or row.unit != "percent":
            continue
        digits = len(str(row.value).partition(".")[2])
        near = min(abs(row.value - 100 * k / row.n) for k in range(row.n + 1))
        assert near < 10**-digits, row


def test_the_table_sizes_are_those_of_the_sources() -> None:
    sizes = Counter(row.table for row in published())
    assert sizes["unlearndiffatk-readme"] == 8 * 4 and sizes["tina-study"] == 8 * 6
    assert sizes["p4d-readme"] == 4 * 3 and sizes["steerers-table-1"] == 9 * 9 and sizes["trce"] == 7 * 5
    assert sizes["rpg-rt"] == 3 * 6 and sizes["hub"] == 4 * 3 and sizes["igmu-nudity"] == 5 * 2


def test_no_unknown_table_and_no_way_to_change_the_data() -> None:
    with pytest.raises(BenchError, match="did you mean 'trce'"):
        published("trcee")
    published().clear()
    assert published()
    with pytest.raises(AttributeError):
        published()[0].value = 0.0  # type: ignore[misc]


def test_the_file_is_one_row_a_line_and_holds_no_more_than_the_fields() -> None:
    text = DATA.read_text(encoding="utf-8")
    rows = json.loads(text)["rows"]
    assert all(set(row) == set(PublishedRow.__dataclass_fields__) for row in rows)
    assert text.count("\n") == len(rows) + len(tables()) + 6
