"""What an interrupted `saferedir generate` left: its images, and how the same command goes on from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saferedir.cli.output import SUMMARY, OutputError

#: key of the summary of an interrupted run: the prompts of all images that were asked for
UNFINISHED = "unfinished"


def kept_rows(out: Path, settings: Mapping[str, Any], wanted: Sequence[str], batch: int) -> list[dict[str, Any]]:
    """Rows of the images that an interrupted run left in `out`, whole batches only; none where it is free or finished.

    Raises OutputError where they belong to other prompts or settings.
    """
    try:
        record = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(record, dict) or UNFINISHED not in record:
        return []
    rows: list[dict[str, Any]] = record.get("images", [])
    same = json.loads(json.dumps(settings))
    if record[UNFINISHED] != list(wanted) or any(record.get(name) != value for name, value in same.items()):
        raise OutputError(
            f"{out} holds {len(rows)} images of a run with other prompts or settings that was stopped; choose another --out, or "
            "give --force to replace them."
        )
    rows = rows[: len(rows) // batch * batch]
    return rows if all((out / row["file"]).is_file() for row in rows) else []


def copy_rows(rows: Sequence[Mapping[str, Any]], out: Path, fresh: Path) -> None:
    """Bring their images along."""
    for row in rows:
        shutil.copy2(out / row["file"], fresh / row["file"])
