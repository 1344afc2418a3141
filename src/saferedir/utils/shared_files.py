"""Files of a guard's folder by name, and those that it shares with another guard's folder; read without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError, GuardNotFoundError
from saferedir.utils.packaged import GUARD_CONFIG

WEIGHTS, CARD = "model.safetensors", "README.md"
VERIFIER_CONFIG, VERIFIER_WEIGHTS = "verifier.json", "verifier.safetensors"
#: key of `guard_config.json` of a guard that has another's weights or image verifier and no copy of them: {"folder": that
#: guard's, relative to its own, "without": beginnings of the names of tensors that it leaves there}
SHARED_FILES = "shared_files"


def folders_of(folder: Path) -> list[Path]:
    """The folder of a guard, and that of the guard whose files it shares, if any; what cannot be read shares none."""
    try:
        shared, _ = shared_files(json.loads((folder / GUARD_CONFIG).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, AttributeError):
        return [folder]
    return [folder] if shared is None else [folder, shared]


def shared_files(config: dict[str, Any], folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """Take `SHARED_FILES` out of a config: that folder, or None, and beginnings of the names of tensors that are left there."""
    record = config.pop(SHARED_FILES, None)
    if record is None:
        return None, ()
    relative, left = (record.get("folder"), record.get("without", [])) if isinstance(record, dict) else (None, None)
    if not isinstance(relative, str) or not isinstance(left, list) or not all(isinstance(name, str) for name in left):
        raise GuardConfigError(
            f'{SHARED_FILES!r} in {folder / GUARD_CONFIG} is {record!r}; expected {{"folder": "../other", "without": []}}.'
        )
    shared = Path(os.path.normpath(folder.resolve() / relative))
    if not (shared / GUARD_CONFIG).is_file():
        raise GuardNotFoundError(
            f"the guard in {folder} shares the files of the guard in {shared}, which is not there; copy both folders, or "
            "load it where both are and save it, which makes a whole folder."
        )
    return shared, tuple(left)


def first_with(file: str, folder: Path, shared: Path | None) -> Path:
    """A guard's folder where it has this file, or none that it shares; the other's else."""
    return folder if shared is None or (folder / file).is_file() else shared


def files_of(folder: Path) -> list[Path]:
    """All files in the folder of a guard, and those that it has from the folder whose files it shares."""
    return sorted([*(path for path in folder.iterdir() if path.is_file()), *_files_from_elsewhere(folder)])


def _files_from_elsewhere(folder: Path) -> list[Path]:
    _, *others = folders_of(folder)
    names = [] if (folder / WEIGHTS).is_file() else [WEIGHTS]
    names += [] if (folder / VERIFIER_CONFIG).is_file() else [VERIFIER_CONFIG, VERIFIER_WEIGHTS]
    return [shared / name for shared in others for name in names if (shared / name).is_file()]


def with_shared_files(card: str, folder: Path) -> str:
    """The model card of the guard in `folder`, with a section on the files that it has from another folder, if any."""
    files = _files_from_elsewhere(folder)
    if not files:
        return card
    names = ", ".join(f"`../{path.parent.name}/{path.name}`" for path in files)
    return f"{card}\n## Shared files\nThis folder has no copy of {names}; move both folders together.\n"
