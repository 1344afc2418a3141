"""Brings the audit's tables to this version's form; the steps are in `migrations/versions`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import Engine

from saferedir.server.errors import ServerError

_FOLDER = Path(__file__).with_name("migrations")


def upgrade(engine: Engine) -> None:
    """Make the tables, or change them to this version's form, in one transaction.

    Raises:
        ServerError: they are of a later saferedir.
    """
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    with engine.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ServerError(
                "the audit's database was made by a later saferedir; use that, or another url."
            ) from error
