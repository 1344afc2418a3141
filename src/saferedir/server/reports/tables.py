"""Two tables beside the audit's: reports, and the policy versions that came of them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from saferedir.server.audit.tables import Base


class Report(Base):
    """A report of an image.

    Attributes:
        id: "rep_…".
        time: UTC, ISO 8601.
        image_id: of the image's audit record.
        key: name of the reporter's key.
        problem: "missed" (the concept is there), "false_alarm" (refused or changed without reason) or "other".
        concept: that the report is about.
        note: in the reporter's words.
        prompt: of the image; "" where neither the report nor the audit says it.
        status: open, accepted, or rejected.
        unsafe, safe: the pair of prompts that a reviewer made of it; None until then; `unsafe` is "" for a benign line.
        reviewer: name of the reviewer's key; None until then.
    """

    __tablename__ = "reports"
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    time: Mapped[str] = mapped_column(sa.String(40), index=True)
    image_id: Mapped[str] = mapped_column(sa.String(64), index=True)
    key: Mapped[str] = mapped_column(sa.String(100))
    problem: Mapped[str] = mapped_column(sa.String(16))
    concept: Mapped[str] = mapped_column(sa.String(200), index=True)
    note: Mapped[str] = mapped_column(sa.Text)
    prompt: Mapped[str] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.String(16), index=True)
    unsafe: Mapped[str | None] = mapped_column(sa.Text)
    safe: Mapped[str | None] = mapped_column(sa.Text)
    reviewer: Mapped[str | None] = mapped_column(sa.String(100))


class PolicyVersion(Base):
    """A guard that reports led to; `facts` is all of it as JSON, and its audit record repeats that."""

    __tablename__ = "policy_versions"
    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    time: Mapped[str] = mapped_column(sa.String(40), index=True)
    concept: Mapped[str] = mapped_column(sa.String(200), index=True)
    facts: Mapped[str] = mapped_column(sa.Text)
