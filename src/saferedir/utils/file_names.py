r"""File names as text: bytes that are no UTF-8 become `\xNN`, so that a table, a JSON file or a terminal can hold any name.

One escape everywhere: `caf\xe9.png` stands for a name with the single byte E9.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def shown_name(path: PurePath | str) -> str:
    r"""The path with forward slashes; each byte that is no UTF-8 as `\xNN`, everything else as it is."""
    text = path.as_posix() if isinstance(path, PurePath) else path
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def named_path(folder: Path, name: str) -> Path:
    r"""The file below `folder` that `shown_name` calls `name`; a file that is really called so wins over the escape."""
    path = folder / name
    if "\\x" not in name or path.exists():
        return path
    data = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), name.encode("utf-8", "surrogateescape"))
    return folder / os.fsdecode(data)
