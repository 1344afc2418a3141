"""One sentence for an unknown name, with the nearest known one, and for options that do not fit."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """'there is no judge "nudnet"; did you mean "nudenet"? Known: …'"""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"there is no {kind} {name!r}{hint} known: {', '.join(names) or 'none'}."


def bad_options_message(kind: str, name: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """'judge "clip" takes the options model (required), …; found top.'; "" where `maker(**options)` has what it needs."""
    signature = inspect.signature(maker)
    try:
        signature.bind(**options)
    except TypeError:
        known = [
            f"{option.name} (required)" if option.default is option.empty else option.name
            for option in signature.parameters.values()
        ]
        return f"{kind} {name!r} takes the options {', '.join(known) or 'none'}; found {', '.join(options) or 'none'}."
    return ""
