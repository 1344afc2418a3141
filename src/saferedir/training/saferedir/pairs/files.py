"""Reads what a person gives to make pairs from: synonyms and near concepts, captions, evaluation prompts.

How text is decoded, where a line ends and what a table must be: utils/text_files.py.
Every refusal names the file, the place in it and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError
from saferedir.utils.text_files import parse_json, read_rows, read_text, split_lines

CAPTION_COLUMNS = ("caption", "prompt", "text")
PROMPT_COLUMNS = (*CAPTION_COLUMNS, "unsafe", "safe")  # an evaluation file may itself hold pairs


def read_synonyms(path: Path) -> tuple[list[str], list[str]]:
    """(synonyms, near concepts) from a text file with a synonym a line, or JSON {"synonyms": [...], "near": [...]}.

    Raises:
        GuardConfigError: an unreadable or empty file, an unknown key, an entry that is no text.
    """
    text = _read(path)
    if text.lstrip()[:1] not in ("{", "["):
        return [line.strip() for line in split_lines(text) if line.strip()], []
    record = parse_json(text, str(path), error=GuardConfigError, is_whole_file=True)
    lists = {"synonyms": record} if isinstance(record, list) else record
    unknown = sorted(set(lists) - {"synonyms", "near"})
    if unknown:
        raise GuardConfigError(f'{path} has the key {unknown[0]!r}; expected "synonyms" and "near" only.')
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
            raise GuardConfigError(f'{path}: "{name}" must be a list of non-empty texts.')
    if not any(lists.values()):
        raise GuardConfigError(f"{path} holds neither a synonym nor a near concept.")
    synonyms, near = ([" ".join(v.split()) for v in lists.get(name, [])] for name in ("synonyms", "near"))
    return synonyms, near


def read_prompts(path: Path, columns: tuple[str, ...] = CAPTION_COLUMNS) -> list[str]:
    """Prompts from a text file (one a line), JSON lines (a text, or an object) or CSV with one of `columns`.

    The ending decides: .jsonl or .json, .csv or .tsv, anything else is text. White space within a prompt becomes one space.

    Raises:
        GuardConfigError: an unreadable or empty file, a malformed line, or none of the columns in it.
    """
    texts: Iterable[str]
    text, ending = _read(path), path.suffix.lower()
    if ending in (".jsonl", ".ndjson", ".json"):
        texts = _from_json_lines(text, path, columns)
    elif ending in (".csv", ".tsv"):
        texts = _from_table(path, columns, "\t" if ending == ".tsv" else ",")
    else:
        texts = split_lines(text)
    prompts = [" ".join(prompt.split()) for prompt in texts if prompt.strip()]
    if not prompts:
        raise GuardConfigError(f"{path} holds no prompt.")
    return prompts


def _read(path: Path) -> str:
    text = read_text(path, error=GuardConfigError)
    if not text.strip():
        raise GuardConfigError(f"{path} is empty.")
    return text


def _from_json_lines(text: str, path: Path, columns: tuple[str, ...]) -> list[str]:
    if text.lstrip().startswith("["):
        whole = parse_json(text, str(path), error=GuardConfigError, is_whole_file=True)
        entries = [(f"entry {i}", entry) for i, entry in enumerate(whole, start=1)]
    else:
        entries = [
            (location, parse_json(line, f"{path}, {location}", error=GuardConfigError))
            for number, line in enumerate(split_lines(text), start=1)
            if line.strip() and (location := f"line {number}")
        ]
    return [value for where, entry in entries for value in _values(entry, f"{path}, {where}", columns)]


def _values(entry: Any, where: str, columns: tuple[str, ...]) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    fields = {k: v for k, v in entry.items() if k in columns} if isinstance(entry, dict) else {}
    if not fields or not all(isinstance(value, str) for value in fields.values()):
        raise GuardConfigError(f"{where}: expected a text, or an object with a text under {' or '.join(columns)}.")
    return list(fields.values())


def _from_table(path: Path, columns: tuple[str, ...], delimiter: str) -> list[str]:
    table = read_rows(path, delimiter, error=GuardConfigError)
    chosen = [i for i, name in enumerate(table.columns) if name.lower() in columns]
    if not chosen:
        raise GuardConfigError(
            f"{path} has the columns {', '.join(map(repr, table.columns))}; expected one called {' or '.join(columns)}."
        )
    return [row[i] for _, row in table.rows for i in chosen]
