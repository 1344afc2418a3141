"""What an interrupted `saferedir generate` left: its images, and how the same command goes on from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saferedir.cli.output import SUMMARY, OutputError
from saferedir.utils.packaged import packaged_guard_path
from saferedir.utils.shared_files import folders_of

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


def digest_of_json(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, 16 digits: an option that is there in one run only makes another."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def guard_digests(names: Sequence[str]) -> dict[str, str]:
    """Digest of the files of each guard that is a folder here, so that a guard that was trained again is another one."""
    digests = {}
    for name in names:
        folder = packaged_guard_path(name) or Path(name).expanduser()
        if folder.is_dir():
            digest = hashlib.sha256()
            for directory in folders_of(folder):
                for file in sorted(path for path in directory.iterdir() if path.suffix in (".json", ".safetensors")):
                    digest.update(file.name.encode() + file.read_bytes())
            digests[name] = digest.hexdigest()[:16]
    return digests


def copy_rows(rows: Sequence[Mapping[str, Any]], out: Path, fresh: Path) -> None:
    """Bring their images along."""
    for row in rows:
        shutil.copy2(out / row["file"], fresh / row["file"])
