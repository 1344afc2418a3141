"""One sentence for a name nobody knows, with the nearest known one. Imports the standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """'there is no judge "nudnet"; did you mean "nudenet"? Known: …'"""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"there is no {kind} {name!r}{hint} known: {', '.join(names) or 'none'}."
