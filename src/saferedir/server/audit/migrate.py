"""Brings the audit's tables to this version's form; the steps are in `migrations/versions`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Engine

from saferedir.server.errors import ServerError

_VERSIONS = "audit_version"  # the table with the number of the form; migrations/env.py names it, too
_FOLDER = Path(__file__).with_name("migrations")


_LATER = "the audit's database was made by a later saferedir; use that, or another url."


def check_form(engine: Engine) -> None:
    """Change nothing.

    Raises:
        ServerError: there are no tables of an audit, or they are of a later saferedir.
    """
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(_VERSIONS):
            raise ServerError("there is no audit in this database; `saferedir serve` makes one.")
        version = MigrationContext.configure(connection, opts={"version_table": _VERSIONS}).get_current_revision()
    known = {step.revision for step in ScriptDirectory.from_config(_config()).walk_revisions()}
    if version not in known:
        raise ServerError(_LATER)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


def upgrade(engine: Engine) -> None:
    """Make the tables, or change them to this version's form, in one transaction.

    Raises:
        ServerError: they are of a later saferedir.
    """
    config = _config()
    with engine.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ServerError(_LATER) from error
