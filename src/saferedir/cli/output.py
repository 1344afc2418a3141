"""Output folders: checked before the work starts, written beside their target, renamed when all is done.

A reader never sees half a result, and no file that is not ours is ever lost.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from saferedir.cli.stopping import NOTHING_WRITTEN, on_stop
from saferedir.errors import OutputError
from saferedir.utils.files import (
    check_file,
    check_guard_folder,
    check_weights_place,
    refuse_finished,
    replacing_folder,
    sweep,
    write_json,
    write_text,
)
from saferedir.utils.locks import output_lock
from saferedir.utils.packaged import library_version

__all__ = [
    "MEGABYTE",
    "SUMMARY",
    "OutputError",
    "check_space",
    "check_file",
    "check_guard_folder",
    "check_weights_place",
    "holds_out",
    "output_lock",
    "refuse_finished",
    "refuse_foreign_folder",
    "staged_output",
    "write_json",
    "write_text",
]

MEGABYTE = 1024**2
SUMMARY = "summary.json"
_MAKER = "saferedir"
T = TypeVar("T")
_LITTER = {".DS_Store", "Thumbs.db"}


def holds_out(command: Callable[..., T]) -> Callable[..., T]:
    """A command that writes to its `out`, which it gets as an absolute path and holds until it ends: a second one is refused.

    If it is stopped, it says that nothing was written, unless it says something else by `on_stop`.
    """

    @wraps(command)
    def holding(**options: Any) -> T:
        with output_lock(options["out"]) as out:
            on_stop(NOTHING_WRITTEN)
            return command(**{**options, "out": out})

    return holding


@contextmanager
def staged_output(
    out: Path, *, marker: str = SUMMARY, needs: int = 32 * MEGABYTE, overwrite: bool = True
) -> Iterator[tuple[Path, Path]]:
    """Yields (folder to write to now, its final name); the rename happens when the block ends without an error.

    The block must write the JSON object `marker`; who made it and which files belong to it are added there, so that
    a later run knows a folder of ours, which it may replace, from any other, which it refuses. Without `overwrite` a finished
    result of ours is refused, too. The target is locked until the end.
    """
    with output_lock(out, nested=True) as target:
        refuse_foreign_folder(target, marker)
        sweep(target)
        refuse_finished(target, (target / marker).is_file(), overwrite)
        check_space(target.parent, needs)
        with replacing_folder(target) as fresh:
            yield fresh, target
            _sign(fresh, marker)


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


def check_space(folder: Path, needs: int) -> None:
    """Raise unless the disk of `folder` (or of its nearest existing parent) has `needs` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needs:
        raise OutputError(
            f"the disk of {folder} has {free / MEGABYTE:.0f} MB free, but this needs about {needs / MEGABYTE:.0f} MB; "
            "free some space or choose another --out."
        )


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
