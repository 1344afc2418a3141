"""The second form: reports and policy versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "reports"
down_revision = "first_tables"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    texts = [sa.Column(name, sa.Text, nullable=False) for name in ("note", "prompt")]
    op.create_table(
        "reports",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("time", sa.String(40), nullable=False),
        sa.Column("image_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(100), nullable=False),
        sa.Column("problem", sa.String(16), nullable=False),
        sa.Column("concept", sa.String(200), nullable=False),
        *texts,
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("unsafe", sa.Text),
        sa.Column("safe", sa.Text),
        sa.Column("reviewer", sa.String(100)),
    )
    op.create_table(
        "policy_versions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("time", sa.String(40), nullable=False),
        sa.Column("concept", sa.String(200), nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
    )
    for name in ("time", "image_id", "concept", "status"):
        op.create_index(f"ix_reports_{name}", "reports", [name])
    for name in ("time", "concept"):
        op.create_index(f"ix_policy_versions_{name}", "policy_versions", [name])


def downgrade() -> None:
    """Reports are not deleted by a step back."""
    raise NotImplementedError("reports are not taken down; delete the database by hand.")
