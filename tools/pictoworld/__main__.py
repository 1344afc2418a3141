"""`python -m tools.pictoworld`."""

from __future__ import annotations

from tools.pictoworld.commands import app

if __name__ == "__main__":
    app()
