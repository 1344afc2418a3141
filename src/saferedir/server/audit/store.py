"""The hash chain in a database: append, read, verify, prune. Each function is one transaction."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from saferedir.server.audit.tables import GENESIS, Head, Record, open_engine
from saferedir.server.errors import ServerError
from saferedir.utils.packaged import library_version

SCHEMA = 1
_BATCH = 1000
_MOST_PROBLEMS = 20


def now() -> str:
    """UTC, as records hold it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def canonical(record: Mapping[str, Any]) -> str:
    """The one JSON text of a record; numbers that JSON does not have become words."""
    return json.dumps(_plain(record), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def chained_hash(previous: str, seq: int, body: str) -> str:
    """SHA-256 by which the next record knows this one."""
    return hashlib.sha256(f"{previous}\n{seq}\n{body}".encode()).hexdigest()


@dataclass(frozen=True)
class Verification:
    """What a check of the chain says.

    Attributes:
        records: how many were read.
        first, last: their sequence numbers; 0 where there are none.
        head: hash of the last one; note it elsewhere to know later that nothing before it was changed.
        problems: one sentence each, at most 20; none: the chain is whole.
    """

    records: int
    first: int
    last: int
    head: str
    problems: tuple[str, ...] = field(default=())

    @property
    def is_whole(self) -> bool:
        return not self.problems


class Pruned(NamedTuple):
    """How many records were deleted, and how many more are old only if a clock that moved far ahead at once was right."""

    removed: int
    doubtful: int


def count_old(times: Sequence[datetime], now: datetime, age: timedelta) -> tuple[int, int]:
    """How many of the first records are older than `age`: (by the clock, without the clock's jumps).

    Args:
        times: of the records, in their order.
    """
    nothing = timedelta(0)
    most = age / 2 or timedelta.max
    by_clock = next((index for index, time in enumerate(times) if now - time <= age), len(times))
    elapsed, beyond_doubt = nothing, 0
    for index in reversed(range(len(times))):
        step = (times[index + 1] if index + 1 < len(times) else now) - times[index]
        elapsed += step if nothing < step <= most else nothing
        if elapsed > age:
            beyond_doubt = index + 1
            break
    return by_clock, min(by_clock, beyond_doubt)


class AuditStore:
    """The records in one database; tables are made or migrated when it is opened for writing.

    Args:
        url: sqlite:///FILE, or PostgreSQL's.
        is_read_only: nothing in the database is made, migrated or changed; it must be there.

    Raises:
        ServerError: the database cannot be opened, or belongs to a newer saferedir.
    """

    def __init__(self, url: str, is_read_only: bool = False) -> None:
        from saferedir.server.audit.migrate import check_form, upgrade

        self.engine: Engine = open_engine(url, is_read_only)
        try:
            (check_form if is_read_only else upgrade)(self.engine)
        except sa.exc.DBAPIError as error:
            raise ServerError(f"the audit's database cannot be opened ({type(error.orig).__name__}).") from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _writing(self) -> Any:
        return self.engine.execution_options(writes=True).begin()

    # --- writing

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records to the chain, all or none; they are on the disk when this returns.

        Args:
            records: plain data, each with image_id, time and action.
        """
        with self._writing() as connection:
            self._append(connection, records)

    def _append(self, connection: Connection, records: Sequence[Mapping[str, Any]]) -> None:
        query = sa.select(Head.seq, Head.hash).where(Head.id == 1).with_for_update()
        ((seq, previous),) = connection.execute(query).all()
        rows = []
        for record in records:
            seq += 1
            body = canonical(record)
            digest = chained_hash(previous, seq, body)
            rows.append(
                {"seq": seq, "image_id": record["image_id"], "time": record["time"], "action": record["action"], "body": body,
                 "previous": previous, "hash": digest}
            )  # fmt: skip
            previous = digest
        if rows:
            connection.execute(sa.insert(Record), rows)
            connection.execute(sa.update(Head).where(Head.id == 1).values(seq=seq, hash=previous))

    def prune(self, age: timedelta, trust_clock: bool = False) -> Pruned:
        """Delete the oldest records, as far as all are older than `age`.

        A checkpoint record in the same transaction says how many went, and holds the hash of the last of them, so that the
        rest of the chain can still be verified. A clock that jumps makes no record old: where it moves ahead by more than half of
        `age` from one record to the next, or from the last one to now, that time does not count.

        Args:
            trust_clock: count it nevertheless, for a service that really rested for so long.
        """
        with self._writing() as connection:
            connection.execute(sa.select(Head.seq).where(Head.id == 1).with_for_update())
            times = [
                (seq, datetime.fromisoformat(time))
                for seq, time in connection.execute(sa.select(Record.seq, Record.time).order_by(Record.seq))
            ]
            by_clock, beyond_doubt = count_old([time for _, time in times], datetime.now(UTC), age)
            count = by_clock if trust_clock else beyond_doubt
            if count:
                query = sa.select(Record.seq, Record.hash, Record.time).where(Record.seq == times[count - 1][0])
                (last,) = connection.execute(query).all()
                checkpoint = {
                    "schema": SCHEMA, "image_id": f"checkpoint-{uuid.uuid4().hex}", "time": now(), "action": "checkpoint",
                    "through_seq": last.seq, "through_hash": last.hash, "through_time": last.time, "removed": count,
                    "saferedir": library_version(),
                }  # fmt: skip
                self._append(connection, [checkpoint])
                connection.execute(sa.delete(Record).where(Record.seq <= last.seq))
            return Pruned(count, by_clock - count)

    # --- reading

    def pruned_through(self) -> str | None:
        """Time of the newest record that `prune` has deleted, by the latest checkpoint; None where none was."""
        query = sa.select(Record.body).where(Record.action == "checkpoint").order_by(Record.seq.desc()).limit(1)
        with self.engine.connect() as connection:
            body = connection.execute(query).scalar()
        return None if body is None else json.loads(body).get("through_time")

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record in order, its chain beside its body."""
        for row in self._rows():
            yield {"seq": row.seq, **json.loads(row.body), "previous": row.previous, "hash": row.hash}

    def record(self, image_id: str) -> dict[str, Any] | None:
        """The record of one image, or None."""
        with self.engine.connect() as connection:
            body = connection.execute(sa.select(Record.body).where(Record.image_id == image_id)).scalar()
        return None if body is None else json.loads(body)

    def _rows(self) -> Iterator[Any]:
        last = -1
        while True:
            with self.engine.connect() as connection:
                query = sa.select(Record.__table__).where(Record.seq > last).order_by(Record.seq).limit(_BATCH)
                rows = connection.execute(query).all()
            yield from rows
            if len(rows) < _BATCH:
                return
            last = rows[-1].seq

    def verify(self, expected: str | None = None) -> Verification:
        """Read the whole chain and say what is wrong with it.

        Args:
            expected: a hash that was noted earlier; it must still be there.
        """
        with self.engine.connect() as connection:
            (head,) = connection.execute(sa.select(Head.seq, Head.hash).where(Head.id == 1)).all()
        problems: list[str] = []
        count = first = seq = 0
        start = previous = GENESIS
        checkpoints: dict[int, str] = {}
        is_expected = expected in (None, GENESIS)
        for row in self._rows():
            if row.seq > head.seq:  # written since
                break
            if not count:
                first, start, previous, seq = row.seq, row.previous, row.previous, row.seq - 1
            if len(problems) < _MOST_PROBLEMS:
                problems += _problems_of(row, seq, previous)
            count, seq, previous = count + 1, row.seq, row.hash
            is_expected = is_expected or expected in (row.hash, row.previous)
            if row.action == "checkpoint":
                body = _read(row.body)
                checkpoints[body.get("through_seq", 0)] = body.get("through_hash", "")
        if count and first == 1 and start != GENESIS:
            problems.append("record 1 is not the beginning of a chain.")
        if count and first > 1 and checkpoints.get(first - 1) != start:
            problems.append(f"records before {first} are gone, and no checkpoint says that they were pruned.")
        if (seq, previous) != (head.seq, head.hash):
            problems.append(f"the chain ends at record {seq}, but its head says {head.seq}.")
        if not is_expected:
            problems.append("the expected hash is not in the chain.")
        return Verification(count, first, seq if count else 0, previous, tuple(problems[:_MOST_PROBLEMS]))


def _problems_of(row: Any, seq: int, previous: str) -> list[str]:
    problems = []
    if row.seq != seq + 1:
        problems.append(f"between records {seq} and {row.seq} some are missing.")
    elif row.previous != previous:
        problems.append(f"record {row.seq} does not follow the one before it.")
    body = _read(row.body)
    repeated = (body.get("image_id"), body.get("time"), body.get("action"))
    if chained_hash(row.previous, row.seq, row.body) != row.hash or repeated != (row.image_id, row.time, row.action):
        problems.append(f"record {row.seq} was changed.")
    return problems


def _read(body: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
