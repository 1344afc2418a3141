"""Output folders: checked before the work starts, written beside their place, renamed when all is done.

Imports the standard library and `packaged`. A reader never sees half a result, and no file that is not ours is ever lost.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saferedir.packaged import library_version

MEGABYTE = 1024**2
SUMMARY = "summary.json"
_MAKER = "saferedir"
_LITTER = {".DS_Store", "Thumbs.db"}


class OutputError(OSError):
    """The place for the results cannot be used; the message says why and what to do."""


@contextmanager
def staged_output(out: Path, *, marker: str = SUMMARY, needs: int = 32 * MEGABYTE) -> Iterator[tuple[Path, Path]]:
    """Yields (folder to write to now, its final place); the rename happens when the block ends without an error.

    The block must write the JSON object `marker`; who made it and which files belong to it are added there, so that
    a later run knows a folder of ours, which it may replace, from any other, which it refuses.
    """
    out = out.expanduser().resolve()
    refuse_foreign_folder(out, marker)
    created = _make_parents(out.parent, out)
    room: Path | None = None
    try:
        room = _make_room(out)
        check_space(out.parent, needs)
        fresh, old = room / "new", room / "old"
        fresh.mkdir()
        yield fresh, out
        _sign(fresh, marker)
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        if room is not None:
            shutil.rmtree(room, ignore_errors=True)
        for folder in created:
            if not any(folder.iterdir()):
                folder.rmdir()


def refuse_foreign_folder(out: Path, marker: str = SUMMARY) -> None:
    """Raise unless `out` is free, empty, or holds an earlier result of ours and nothing else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out} is a file; choose another --out.")
    if out.is_mount() or Path.cwd().is_relative_to(out):
        raise OutputError(f"{out} itself cannot be replaced; give a new folder below it as --out.")
    if not any(out.iterdir()):
        return
    files = _own_files(out / marker)
    if files is None:
        raise OutputError(f"{out} is not empty and holds no earlier result of saferedir; choose another --out.")
    present = {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path.name not in _LITTER
    }
    extra = sorted(present - files - {marker})
    if extra:
        raise OutputError(
            f"{out} also holds {extra[0]}, which saferedir did not write; move it away or choose another --out."
        )


def check_space(place: Path, needs: int) -> None:
    """Raise unless the disk of `place` (or of its nearest existing parent) has `needs` bytes free."""
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needs:
        raise OutputError(
            f"the disk of {place} has {free / MEGABYTE:.0f} MB free, but this needs about {needs / MEGABYTE:.0f} MB; "
            "free some space or choose another --out."
        )


def check_writable(out: Path) -> None:
    """Raise unless a file can be made beside `out`; nothing is left behind."""
    out = out.expanduser().resolve()
    created = _make_parents(out.parent, out)
    try:
        _make_room(out).rmdir()
    finally:
        for folder in created:
            folder.rmdir()


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write JSON through a temporary sibling and a rename."""
    text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write text through a temporary sibling and a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _own_files(marker: Path) -> set[str] | None:
    """Files that the marker lists as ours, None where it is missing or not ours."""
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not str(record.get("made_by", "")).startswith(_MAKER):
        return None
    files = record.get("files", [])
    return {str(name) for name in files} if isinstance(files, list) else None


def _sign(folder: Path, marker: str) -> None:
    record = json.loads((folder / marker).read_text(encoding="utf-8"))
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    write_json(folder / marker, {**record, "made_by": f"{_MAKER} {library_version()}", "files": files})


def _make_parents(parent: Path, out: Path) -> list[Path]:
    """Make the folders above `out`; returns the new ones, innermost first."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {out} ({_reason(error)}); choose another --out.") from error
    return missing


def _make_room(out: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise OutputError(f"cannot write beside {out} ({_reason(error)}); choose another --out.") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
