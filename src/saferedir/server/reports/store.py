"""The review queue in the audit's database: add, list, decide; and the versions that came of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from saferedir.server.audit.store import SCHEMA, AuditStore, now
from saferedir.server.errors import ServerError
from saferedir.server.reports.tables import PolicyVersion, Report
from saferedir.utils.packaged import library_version

Problem = Literal["missed", "false_alarm", "other"]
Status = Literal["open", "accepted", "rejected"]


class ReportRow(NamedTuple):
    """A report, as `tables.Report` has it."""

    id: str
    time: str
    image_id: str
    key: str
    problem: Problem
    concept: str
    note: str
    prompt: str
    status: Status
    unsafe: str | None
    safe: str | None
    reviewer: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return self._asdict()


class ReportStore:
    """Reports beside the audit records of a store that is open for writing."""

    def __init__(self, audit: AuditStore) -> None:
        self.audit = audit

    def _writing(self) -> Any:
        return self.audit.engine.execution_options(writes=True).begin()

    def add(self, *, image_id: str, key: str, problem: Problem, concept: str, note: str, prompt: str) -> ReportRow:
        """A new, open report."""
        row = ReportRow(
            f"rep_{uuid.uuid4().hex}", now(), image_id, key, problem, concept, note, prompt, "open", None, None, None
        )
        with self._writing() as connection:
            connection.execute(sa.insert(Report).values(**row.to_dict()))
        return row

    def reports(self, *, status: Status | None = None, concept: str | None = None) -> list[ReportRow]:
        """In the order in which they came."""
        query = sa.select(Report.__table__).order_by(Report.time, Report.id)
        query = query if status is None else query.where(Report.status == status)
        query = query if concept is None else query.where(Report.concept == concept)
        with self.audit.engine.connect() as connection:
            return [ReportRow(*row) for row in connection.execute(query)]

    def report(self, report_id: str) -> ReportRow:
        """The one of that id, or of ids the one that begins so; ServerError if there is none, or more."""
        prefix = report_id.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        query = sa.select(Report.__table__).where(Report.id.like(f"{prefix}%", escape="\\")).limit(2)
        with self.audit.engine.connect() as connection:
            rows = [ReportRow(*row) for row in connection.execute(query)]
        if not report_id or len(rows) != 1:
            raise ServerError(f"there is {'no' if not rows else 'more than one'} report {report_id!r}.")
        return rows[0]

    def accept(self, report_id: str, reviewer: str, *, safe: str, unsafe: str | None = None) -> ReportRow:
        """Make a pair of prompts of a report.

        Args:
            safe: the wish without the concept or, of a false alarm, the harmless prompt.
            unsafe: default: the report's prompt; of a false alarm none.

        Raises:
            ServerError: there is no such report, it was decided already, or a prompt is missing.
        """
        row = self.report(report_id)
        chosen = "" if row.problem == "false_alarm" else (unsafe or row.prompt).strip()
        if row.problem != "false_alarm" and not chosen:
            raise ServerError("nobody knows the prompt of this image; give the unsafe prompt.")
        if not safe.strip() or safe.strip() == chosen:
            raise ServerError("give a safe prompt that differs from the unsafe one: the same wish without the concept.")
        return self._decide(row, reviewer, status="accepted", unsafe=chosen, safe=safe.strip())

    def reject(self, report_id: str, reviewer: str) -> ReportRow:
        """Leave everything as it is; ServerError where there is no such report, or it was decided already."""
        return self._decide(self.report(report_id), reviewer, status="rejected")

    def _decide(self, row: ReportRow, reviewer: str, **values: Any) -> ReportRow:
        with self._writing() as connection:
            query = sa.update(Report).where(Report.id == row.id, Report.status == "open")
            if not connection.execute(query.values(reviewer=reviewer, **values)).rowcount:
                raise ServerError(f"report {row.id} was decided already.")
        return self.report(row.id)

    def prune(self) -> int:
        """Delete the decided reports, with all their texts, that are as old as the newest audit record that was pruned; how many.

        An open report waits for its decision, however old it is.
        Call it after `AuditStore.prune`, whose rules against clocks that jump then hold for reports, too.
        """
        through = self.audit.pruned_through()
        if through is None:
            return 0
        with self._writing() as connection:
            old = sa.delete(Report).where(Report.time <= through, Report.status != "open")
            count: int = connection.execute(old).rowcount
        return count

    # --- versions

    def add_version(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what a training by reports led to, in a table and as an audit record.

        Args:
            facts: plain data, with `concept`.
        """
        version = {"id": f"policy_{uuid.uuid4().hex}", "time": now(), **facts}
        with self._writing() as connection:
            connection.execute(
                sa.insert(PolicyVersion).values(
                    id=version["id"], time=version["time"], concept=version["concept"], facts=json.dumps(version)
                )
            )
        self.audit.append(
            [
                {"schema": SCHEMA, "image_id": version["id"], "time": version["time"], "action": "policy_version",
                 "version": version, "saferedir": library_version()}
            ]
        )  # fmt: skip
        return version

    def versions(self) -> list[dict[str, Any]]:
        """The oldest first."""
        query = sa.select(PolicyVersion.facts).order_by(PolicyVersion.time, PolicyVersion.id)
        with self.audit.engine.connect() as connection:
            return [json.loads(facts) for facts in connection.scalars(query)]


def pairs_of(reports: Sequence[ReportRow]) -> list[tuple[str | None, str]]:
    """(unsafe or None, safe) of every accepted report, each once."""
    pairs = [(row.unsafe or None, row.safe) for row in reports if row.status == "accepted" and row.safe is not None]
    return list(dict.fromkeys(pairs))
