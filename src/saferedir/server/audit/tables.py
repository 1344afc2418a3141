"""The audit's two tables, and what opening one of the two kinds of database takes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from saferedir.server.errors import ServerError

#: what the first record is chained to
GENESIS = "0" * 64


class Base(DeclarativeBase):
    """All tables of the audit."""


class Record(Base):
    """A record; `body` is all of it as canonical JSON, the other columns repeat parts of it to be searched.

    Attributes:
        seq: 1, 2, 3, … without gaps.
        image_id: of an image; of a checkpoint its own name.
        time: UTC, ISO 8601.
        action: delivered, blocked, withheld (a neighbour in the request was blocked), failed, or checkpoint.
        previous: hash of the record before.
        hash: SHA-256 of `previous`, seq and body.
    """

    __tablename__ = "audit_records"
    seq: Mapped[int] = mapped_column(sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)
    image_id: Mapped[str] = mapped_column(sa.String(64), unique=True)
    time: Mapped[str] = mapped_column(sa.String(40), index=True)
    action: Mapped[str] = mapped_column(sa.String(16), index=True)
    body: Mapped[str] = mapped_column(sa.Text)
    previous: Mapped[str] = mapped_column(sa.String(64))
    hash: Mapped[str] = mapped_column(sa.String(64))


class Head(Base):
    """The chain's end, in one row, which a writer locks."""

    __tablename__ = "audit_head"
    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    seq: Mapped[int] = mapped_column(sa.BigInteger)
    hash: Mapped[str] = mapped_column(sa.String(64))


#: for how long a database that is locked or hangs is waited for
_SECONDS = 10
_POSTGRES: dict[str, Any] = {
    "connect_timeout": _SECONDS,
    "options": f"-c statement_timeout={1000 * _SECONDS} -c lock_timeout={1000 * _SECONDS}",
    "keepalives_idle": 30,
}


_READ_ONLY = "-c default_transaction_read_only=on"


def check_exists(url: str) -> None:
    """Raise ServerError for an SQLite file that is not there, for whoever only reads."""
    name = url.removeprefix("sqlite:///")
    if name != url and not Path(name).is_file():
        raise ServerError(f"there is no audit at {name}; give --audit URL.")


def open_engine(url: str, is_read_only: bool = False) -> Engine:
    """An engine for SQLite (made if it is not there, in WAL mode, every commit on the disk) or PostgreSQL.

    Args:
        is_read_only: the database refuses every change by this engine.

    Raises:
        ServerError: another kind of database.
    """
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError:
        raise ServerError(
            "the audit's url cannot be read; expected sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
        ) from None
    if parsed.get_backend_name() == "sqlite":
        return _read_only_sqlite(parsed) if is_read_only else _sqlite(parsed)
    if parsed.get_backend_name() == "postgresql":
        arguments = _POSTGRES | {"options": f"{_POSTGRES['options']} {_READ_ONLY if is_read_only else ''}"}
        try:
            return sa.create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                connect_args=arguments,
                hide_parameters=True,
            )
        except ImportError as error:
            raise ServerError('PostgreSQL needs the package psycopg: pip install "saferedir[postgres]".') from error
    raise ServerError(f"the audit's database is {parsed.get_backend_name()!r}; expected sqlite or postgresql.")


def _file_of(url: URL) -> Path:
    if not url.database or url.database == ":memory:":
        raise ServerError("the audit's url names no file, and records in memory are none; give sqlite:///FILE.")
    return Path(url.database)


def _read_only_sqlite(url: URL) -> Engine:
    """Without a writer's `-wal` file nothing is written beside the database either: `immutable` makes no `-shm`."""
    file = _file_of(url).absolute()
    check_exists(f"sqlite:///{file}")

    def connect() -> sqlite3.Connection:
        is_at_rest = not file.with_name(f"{file.name}-wal").exists()
        mode = "mode=ro&immutable=1" if is_at_rest else "mode=ro"
        return sqlite3.connect(f"{file.as_uri()}?{mode}", uri=True, timeout=_SECONDS, check_same_thread=False)

    return sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.NullPool, hide_parameters=True)


def _sqlite(url: URL) -> Engine:
    file = _file_of(url)
    try:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"the audit cannot be written to {file} ({error.strerror}).") from error
    engine = sa.create_engine(url, connect_args={"timeout": _SECONDS}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def settle(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
