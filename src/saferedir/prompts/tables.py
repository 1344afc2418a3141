"""Reads CSV, TSV, JSON, JSON lines and plain text as a stream of entries, and refuses what is none.

How text is decoded, where a line ends and what a row must be: utils/text_files.py.

Every refusal is one sentence with a line or entry number and no content. The meaning of columns: formats.py, reading.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saferedir.errors import PromptFileError
from saferedir.utils.text_files import iterate_lines, parse_json, read_rows, read_text

MAX_JSON = 1 << 28  # bytes; JSON must be read as a whole
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")


@dataclass(frozen=True)
class PromptRow:
    """One row of a file: where it stands, and its columns, or a bare text."""

    position: int
    values: Mapping[str, Any] | str


@dataclass(frozen=True)
class Table:
    """A file being read.

    Attributes:
        entries: the rows; reading on may still refuse the file.
        unit: what `PromptRow.position` counts, "line" or "entry".
        columns: names in the header, None where each entry names its own.
    """

    entries: Iterator[PromptRow]
    unit: str
    columns: tuple[str, ...] | None = None


def git_blob_sha1(path: Path) -> str:
    """The checksum that git gives the file's content, 40 hexadecimal digits."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                size -= len(chunk)
                digest.update(chunk)
    except OSError as error:
        raise PromptFileError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}).") from error
    if size:
        raise PromptFileError(f"{path} changed while it was read; try again.")
    return digest.hexdigest()


def open_table(path: Path, *, under: str = "", part: str = "", is_nested: bool = False) -> Table:
    """Entries of a file; its ending says how it is written.

    Args:
        path: a file ending in one of `ENDINGS`.
        under: in a JSON object, the key of the list to read.
        part: of a nested file: "task" or "task/class"; "" for all of it.
        is_nested: whether the file must be JSON task -> class -> list of texts.

    Raises:
        PromptFileError: no such file, an unknown ending, an empty file, a wrong encoding, a malformed row.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise PromptFileError(f"{path} is no file{' but a folder' if path.is_dir() else ''}; give a prompt file.")
    if ending not in ENDINGS:
        raise PromptFileError(f"{path} ends in {ending or 'nothing'!r}; a prompt file ends in {', '.join(ENDINGS)}.")
    if is_nested and ending != ".json":
        raise PromptFileError(f"{path} ends in {ending!r}, but this format is JSON (task -> class -> list of texts).")
    if not path.stat().st_size:
        raise PromptFileError(f"{path} is empty.")
    if ending == ".json":
        whole = _json(path)
        return Table(_nested(whole, path, part) if is_nested else _listed(whole, path, under), "entry")
    if ending in (".jsonl", ".ndjson"):
        return Table(_json_lines(path), "line")
    if ending == ".txt":
        lines = iterate_lines(path, error=PromptFileError)
        return Table((PromptRow(n, text) for n, line in lines if (text := line.rstrip("\r\n")).strip()), "line")
    return _separated(path, "\t" if ending == ".tsv" else ",")


def _separated(path: Path, delimiter: str) -> Table:
    table = read_rows(path, delimiter, error=PromptFileError)
    entries = (PromptRow(line, dict(zip(table.columns, row, strict=True))) for line, row in table.rows)
    return Table(entries, "line", tuple(name for name in table.columns if name))


def _json_lines(path: Path) -> Iterator[PromptRow]:
    for number, line in iterate_lines(path, error=PromptFileError):
        if line.strip():
            where = f"{path}, line {number}"
            yield PromptRow(number, _row(parse_json(line, where, error=PromptFileError), where))


def _row(value: Any, where: str) -> Mapping[str, Any] | str:
    if not isinstance(value, (str, dict)):
        raise PromptFileError(f"{where} is neither a text nor an object with columns.")
    return value


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_JSON:
        raise PromptFileError(
            f"{path} is larger than {MAX_JSON >> 20} MiB; write it as JSON lines (.jsonl), which are read bit by bit."
        )
    text = read_text(path, error=PromptFileError)
    return parse_json(text, str(path), error=PromptFileError, is_whole_file=True)


def _listed(whole: Any, path: Path, under: str) -> Iterator[PromptRow]:
    if isinstance(whole, dict) and under in whole:
        whole = whole[under]
    if not isinstance(whole, list):
        allowed = f' (or an object with such a list under "{under}")' if under else ""
        raise PromptFileError(f"{path} must hold a list of texts or of objects with columns{allowed}.")
    return (PromptRow(position, _row(value, f"{path}, entry {position}")) for position, value in enumerate(whole, 1))


def _nested(whole: Any, path: Path, part: str) -> Iterator[PromptRow]:
    task, _, kind = part.partition("/")
    is_tree = isinstance(whole, dict) and all(isinstance(classes, dict) for classes in whole.values())
    if not is_tree or not all(_is_texts(texts) for classes in whole.values() for texts in classes.values()):
        raise PromptFileError(f"{path} must hold JSON of the form task -> class -> list of texts.")
    for chosen, names in ((task, whole), (kind, whole.get(task, {}))):
        if chosen and chosen not in names:
            raise PromptFileError(f"{path} has no part {part!r}; it has {_paths(whole)}.")
    position = 0
    for a, classes in whole.items():
        for b, texts in classes.items():
            for number, text in enumerate(texts):
                position += 1
                if task in ("", a) and kind in ("", b):
                    yield PromptRow(position, {"text": text, "key": f"{a}/{b}/{number}", "tags": [a, b]})


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _paths(whole: Mapping[str, Mapping[str, Any]]) -> str:
    """Some parts by name; a long name is not shown, it may be a text in the wrong place."""
    paths = [path for task, classes in whole.items() for kind in classes if len(path := f"{task}/{kind}") <= 40]
    return ", ".join(paths[:20]) or "none with a short name"
