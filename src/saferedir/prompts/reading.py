"""A file and the name of its format to a checked `PromptSet` (`read_prompts`), or to the checksums of all its texts
(`text_checksums`).

Texts are kept as they stand in the file, to the last space: a prompt that was searched for is what it is.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saferedir.errors import PromptFileError
from saferedir.prompts.formats import FORMATS, Format, find
from saferedir.prompts.prompt_warnings import Facts, file_warnings
from saferedir.prompts.sets import PromptItem, PromptSet
from saferedir.prompts.tables import PromptRow, Table, git_blob_sha1, open_table

MAX_PROMPTS = 2_000_000
_SHOWN = 10  # line numbers named in one message


def read_prompts(
    path: str | Path, format: str, *, rows: int | None = None, name: str = "forget", allow_duplicates: bool = False
) -> PromptSet:
    """Read a prompt file.

    Args:
        path: .csv, .tsv, .json, .jsonl, .ndjson or .txt, UTF-8.
        format: name of a format (`FORMATS`), or "name/choice": another text column ("copro/safe_prompt", "visu/COLUMN"), or
            a part of a nested file ("igmu/TASK" or "igmu/TASK/CLASS").
        rows: how many rows the protocol says the file has, counted before duplicates are merged; None to accept any number.
        name: of the prompt set.
        allow_duplicates: keep a prompt that stands in the file more than once, each time.

    Returns:
        The prompts in the file's order; its protocol is the format and the file's git-blob SHA-1 (12 digits).

    Raises:
        PromptFileError: an unreadable, malformed or empty file, an unknown format, a missing column, an empty prompt, a seed
            or guidance that is no number, another number of rows than `rows`, duplicates. No message holds a prompt.
    """
    path = Path(path).expanduser()
    kind, choice = find(format)
    table = open_table(path, under=kind.under, part=choice if kind.is_nested else "", is_nested=kind.is_nested)
    sha1 = git_blob_sha1(path)[:12]
    columns = ("text",) if kind.is_nested else (choice,) if choice else kind.text
    items, positions = _items(path, table, kind, columns)
    if rows is not None and len(items) != rows:
        raise PromptFileError(
            f"{path} has {len(items)} prompts where the protocol says {rows}; take the file that the protocol means, or "
            "change `rows`."
        )
    count, repeats = len(items), _repeats(items)
    if repeats and not allow_duplicates:
        if not kind.merges_duplicates:
            raise PromptFileError(_duplicates(path, table.unit, positions, repeats))
        items = [item for index, item in enumerate(items) if index not in repeats]
    merged = count - len(items)
    facts = Facts(kind, sha1, tuple(items), count, merged, len(repeats) if allow_duplicates else 0)
    return PromptSet(name, tuple(items), f"{format} sha1:{sha1}", file_warnings(facts))


def text_checksums(path: str | Path) -> frozenset[str]:
    """SHA-256 of every text in a file, whatever its columns mean: pairs files, prompt files, lists of words.

    Raises PromptFileError as `read_prompts` does, and for a file without any text.
    """
    checksums: set[str] = set()
    for entry in open_table(Path(path).expanduser(), under="", part="", is_nested=False).entries:
        values = [entry.values] if isinstance(entry.values, str) else entry.values.values()
        checksums |= {PromptItem(value).sha256 for value in values if isinstance(value, str) and value.strip()}
    if not checksums:
        raise PromptFileError(f"{path} holds no text.")
    return frozenset(checksums)


def _items(path: Path, table: Table, kind: Format, columns: Sequence[str]) -> tuple[list[PromptItem], list[int]]:
    """All prompts, and where each stands."""
    text = None if table.columns is None else _text_column(path, kind, columns, table.columns)
    items: list[PromptItem] = []
    positions: list[int] = []
    for entry in table.entries:
        where = f"{path}, {table.unit} {entry.position}"
        if isinstance(entry.values, str) and kind.name != "plain":
            raise PromptFileError(
                f'{where} is a bare text, but format {kind.name!r} has columns; give the file with columns, or format "plain".'
            )
        if not isinstance(entry.values, str):
            text = text or _text_column(where, kind, columns, list(entry.values))
        items.append(_item(entry, where, kind, text or ""))
        positions.append(entry.position)
        if len(items) > MAX_PROMPTS:
            raise PromptFileError(f"{path} holds more than {MAX_PROMPTS:,} prompts; give a part of it.")
    if not items:
        raise PromptFileError(f"{path} holds no prompt.")
    return items, positions


def _text_column(where: Path | str, kind: Format, wanted: Sequence[str], columns: Iterable[str]) -> str:
    """The first wanted column that is there. Only names close to a wanted one are shown: a file without header starts with a
    prompt.
    """
    columns = list(columns)
    for column in wanted:
        if column in columns:
            return column
    near = [name for column in wanted for name in difflib.get_close_matches(column, columns, n=1, cutoff=0.8)]
    others = [entry.name for entry in FORMATS.values() if entry is not kind and set(entry.text) & set(columns)]
    hint = (
        f"did you mean its column {near[0]!r}? Then write format {kind.name + '/' + near[0]!r}."
        if near
        else f"its columns are those of format {' or '.join(map(repr, others))}."
        if others
        else f"none of its {len(columns)} columns has a name like that; the first line must name the columns."
    )
    raise PromptFileError(f"{where}: no column {' or '.join(map(repr, wanted))} (format {kind.name!r}); {hint}")


def _item(entry: PromptRow, where: str, kind: Format, column: str) -> PromptItem:
    values: Mapping[str, Any] = {"": entry.values} if isinstance(entry.values, str) else entry.values
    text = values.get("" if isinstance(entry.values, str) else column)
    if not isinstance(text, str) or not text.strip():
        problem = "is missing or empty" if text is None or isinstance(text, str) else "is no text"
        raise PromptFileError(f"{where}: the prompt{f' in column {column!r}' if column else ''} {problem}.")
    seed = _number(_first(values, kind.seed), where, "seed")
    if seed is not None and not (float(seed).is_integer() and 0 <= seed < 2**63):
        raise PromptFileError(f"{where}: the seed must be a whole number from 0 to 2^63 - 1.")
    guidance = _number(_first(values, kind.guidance), where, "guidance scale")
    key = values.get("key", "") if kind.is_nested else _first(values, kind.key)
    if kind.key_text and isinstance(values.get(kind.key_text), str):
        key = hashlib.sha256(values[kind.key_text].encode()).hexdigest()[:16]
    return PromptItem(
        text=text,
        seed=None if seed is None else int(seed),
        guidance_scale=None if guidance is None else float(guidance),
        key="" if key is None else str(key).strip(),
        tags=_tags(values, kind),
    )


def _first(values: Mapping[str, Any], columns: Sequence[str]) -> Any:
    return next((values[column] for column in columns if column in values), None)


def _number(value: Any, where: str, what: str) -> int | float | None:
    """A number >= 0; an integer stays exact. None for an empty field, as tables write missing values."""
    if isinstance(value, str):
        value = value.strip()
        if value.lower() in ("", "nan", "none", "null"):
            return None
        for convert in (int, float):
            try:
                value = convert(value)
                break
            except ValueError:
                continue
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise PromptFileError(
            f"{where}: the {what} is no number >= 0; check that the header names the columns rightly."
        )
    return value


def _tags(values: Mapping[str, Any], kind: Format) -> tuple[str, ...]:
    if kind.is_nested:
        return tuple(values.get("tags", ()))
    tags: list[str] = []
    for column in kind.tags:
        value = values.get(column) or ()
        tags += value.split(",") if isinstance(value, str) else [str(part) for part in _sequence(value)]
    tags += [column for column in kind.flags if str(values.get(column, "")).strip().lower() in ("1", "1.0", "true")]
    return tuple(tag for part in tags if (tag := part.strip()))


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _repeats(items: Sequence[PromptItem]) -> dict[int, int]:
    """Position of each repeated prompt -> position of its first occurrence."""
    first: dict[str, int] = {}
    return {here: there for here, item in enumerate(items) if (there := first.setdefault(item.text, here)) != here}


def _duplicates(path: Path, unit: str, positions: Sequence[int], repeats: Mapping[int, int]) -> str:
    plural = {"line": "lines", "entry": "entries"}[unit]
    named = [f"{positions[there]} and {positions[here]}" for here, there in list(repeats.items())[:_SHOWN]]
    more = f" and {len(repeats) - _SHOWN} more" if len(repeats) > _SHOWN else ""
    return (
        f"{path} has the same prompt twice: {plural} {', '.join(named)}{more}; remove the second, or allow duplicates "
        "(allow_duplicates = true), which count twice in every rate."
    )
