"""Files and folders that appear whole or not at all, with the rights that the umask gives.

Everything that is kept goes through here: `replacing` for one file, `replacing_folder` for a folder. Who may write to a
place is the business of `locks.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saferedir.errors import OutputError
from saferedir.utils.file_names import shown_name
from saferedir.utils.packaged import GUARD_CONFIG

if TYPE_CHECKING:
    from torch import Tensor

#: of the temporary folder beside a place, as `tempfile` names it
_ROOM = r"[a-z0-9_]{8}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling that takes the place of `path` when the block ends without an error.

    The file is flushed to the disk first, and gets the rights that the umask gives (safetensors alone writes 0600).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        rights = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(rights)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text, UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def finite_json(text: str) -> Any:
    """Plain data of JSON; ValueError for NaN and infinities, which JSON has no words for and nobody can decide by."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number to decide by")


def write_json(path: Path, record: Any, indent: int = 2) -> None:
    """Write JSON, whole or not at all; ValueError for numbers that JSON does not have."""
    write_text(path, json.dumps(record, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `out` when the block ends without an error.

    Hold the place's lock (`locks.output_lock`): what a killed run left beside it is removed first. After the block, and before
    the rename, an earlier `out` still stands, so that files can be taken over from it.
    """
    out = out.absolute()
    sweep(out)
    room = make_room(out)
    try:
        fresh, old = room / "new", room / "old"
        fresh.mkdir()
        yield fresh
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


def take_over(old: Path, fresh: Path, without: Collection[str]) -> None:
    """Bring what the folder `old` holds into `fresh`, but for some names; both have it, by links where the disk knows them."""
    for entry in old.iterdir() if old.is_dir() else ():
        if entry.name in without:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, fresh / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, fresh / entry.name)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target, follow_symlinks=False)


def make_room(out: Path) -> Path:
    """Make a temporary folder beside `out`."""
    try:
        return Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise OutputError(f"cannot write beside {out} ({reason(error)}); choose another --out.") from error


def sweep(out: Path) -> None:
    """Remove what a killed run left beside `out`; call it while holding the place's lock.

    Only names and contents that `replacing` and `replacing_folder` make are touched. An earlier result that a kill caught
    between two renames goes back to its place.
    """
    rooms = re.compile(rf"\.{re.escape(out.name)}\.{_ROOM}")
    files = re.compile(rf"\.{re.escape(out.name)}\.(\d+\.)?tmp")
    with suppress(FileNotFoundError):
        for entry in list(out.parent.iterdir()):
            if files.fullmatch(entry.name) and entry.is_file():
                entry.unlink(missing_ok=True)
            elif rooms.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                if {inner.name for inner in entry.iterdir()} <= {"new", "old"}:
                    if (entry / "old").is_dir() and not out.exists():
                        (entry / "old").rename(out)
                    shutil.rmtree(entry, ignore_errors=True)


def make_parents(out: Path) -> list[Path]:
    """Make the folders above `out`; returns the new ones, innermost first."""
    parent = out.parent
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {out} ({reason(error)}); choose another --out.") from error
    return missing


def refuse_finished(out: Path, finished: bool, overwrite: bool, how: str = "give --force") -> None:
    """Raise an OutputError where `out` holds finished work and may not be replaced.

    Args:
        how: what the caller must do to replace it; "pass overwrite=True" from Python.
    """
    if finished and not overwrite:
        raise OutputError(f"{out} holds finished work; choose another --out, or {how} to replace it.")


def check_weights_place(out: Path) -> None:
    """Raise an OutputError where safetensors, which opens no path that is not UTF-8, could write nothing after all the work."""
    if (shown := shown_name(out)) != out.as_posix():
        raise OutputError(
            f"{shown} is a path that is not UTF-8, and safetensors files cannot be there; choose another --out."
        )


def check_file(out: Path, overwrite: bool, how: str = "give --force") -> None:
    """Raise an OutputError unless a file may be written to `out`: there is none, or it may go (`how`: see `refuse_finished`)."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder; give a file as --out.")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; choose another --out, or {how} to replace it.")


def check_guard_folder(out: Path, overwrite: bool, how: str = "give --force") -> None:
    """Raise an OutputError unless a guard may be written to `out`: it is free, empty, or a guard's that may go.

    Args:
        how: what the caller must do to replace a guard; "pass overwrite=True" from Python.
    """
    check_weights_place(out)
    if out.is_file():
        raise OutputError(f"{out} is a file; choose another --out.")
    if out.is_dir() and any(out.iterdir()):
        if not (out / GUARD_CONFIG).is_file():
            raise OutputError(f"{out} is not empty and holds no guard; choose another --out.")
        refuse_finished(out, True, overwrite, how)


def reason(error: OSError) -> str:
    """Why a file operation failed, in small letters."""
    return (error.strerror or str(error)).lower()
