"""Reads what a person gives to make pairs from: synonyms and near concepts, captions, evaluation prompts.

Imports the standard library and errors. Every refusal names the file, the place in it and what was expected.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from saferedir.errors import GuardConfigError

CAPTION_COLUMNS = ("caption", "prompt", "text")
PROMPT_COLUMNS = (*CAPTION_COLUMNS, "unsafe", "safe")  # an evaluation file may itself hold pairs


def read_synonyms(path: Path) -> tuple[list[str], list[str]]:
    """(synonyms, near concepts) from a text file with a synonym a line, or JSON {"synonyms": [...], "near": [...]}.

    Raises:
        GuardConfigError: an unreadable or empty file, an unknown key, an entry that is no text.
    """
    text = _read(path)
    if text.lstrip()[:1] not in ("{", "["):
        return [line.strip() for line in text.splitlines() if line.strip()], []
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise GuardConfigError(f"{path} is not JSON ({error.msg}, line {error.lineno}).") from error
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

    The ending decides: .jsonl or .json, .csv or .tsv, anything else is text.

    Raises:
        GuardConfigError: an unreadable or empty file, a malformed line, or none of the columns in it.
    """
    text, ending = _read(path), path.suffix.lower()
    if ending in (".jsonl", ".ndjson", ".json"):
        found = _from_json_lines(text, path, columns)
    elif ending in (".csv", ".tsv"):
        found = _from_table(text, path, columns, "\t" if ending == ".tsv" else ",")
    else:
        found = text.splitlines()
    prompts = [" ".join(prompt.split()) for prompt in found if prompt.strip()]
    if not prompts:
        raise GuardConfigError(f"{path} holds no prompt.")
    return prompts


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise GuardConfigError(f"{path} is no UTF-8 text.") from error
    except OSError as error:
        raise GuardConfigError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from error
    if not text.strip():
        raise GuardConfigError(f"{path} is empty.")
    return text


def _from_json_lines(text: str, path: Path, columns: tuple[str, ...]) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            entries = [(f"entry {i}", entry) for i, entry in enumerate(json.loads(text), start=1)]
        except json.JSONDecodeError as error:
            raise GuardConfigError(f"{path} is not JSON ({error.msg}, line {error.lineno}).") from error
    else:
        entries = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entries.append((f"line {number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise GuardConfigError(f"{path}, line {number}: not JSON ({error.msg}).") from error
    return [value for where, entry in entries for value in _values(entry, f"{path}, {where}", columns)]


def _values(entry: Any, where: str, columns: tuple[str, ...]) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    fields = {k: v for k, v in entry.items() if k in columns} if isinstance(entry, dict) else {}
    if not fields or not all(isinstance(value, str) for value in fields.values()):
        raise GuardConfigError(f"{where}: expected a text, or an object with a text under {' or '.join(columns)}.")
    return list(fields.values())


def _from_table(text: str, path: Path, columns: tuple[str, ...], delimiter: str) -> list[str]:
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter))
    except csv.Error as error:
        raise GuardConfigError(f"{path} is no table that can be read ({error}).") from error
    header = [name.strip().lower() for name in rows[0]]
    chosen = [i for i, name in enumerate(header) if name in columns]
    if not chosen:
        raise GuardConfigError(
            f"{path} has the columns {', '.join(map(repr, rows[0]))}; expected one called {' or '.join(columns)}."
        )
    return [row[i] for row in rows[1:] for i in chosen if i < len(row)]
