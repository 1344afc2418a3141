"""Alembic's folder: `env.py` runs the steps in `versions` on a connection that `migrate.upgrade` hands over."""
