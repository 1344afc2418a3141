"""Alembic reads this file when it runs the steps; it is not imported."""

from __future__ import annotations

from alembic import context

from saferedir.server.audit.tables import Base


def run_steps() -> None:
    """Run them on the connection in the configuration's attributes."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=Base.metadata, version_table="audit_version")
    with context.begin_transaction():
        context.run_migrations()


run_steps()
