"""The one reader of text files that people bring: prompts, captions, pairs, tables, matrices, synonyms, labels.

Encoding: UTF-8 with or without a byte order mark; UTF-16 or UTF-32 with one. Anything else is refused, with the byte and the
line, and never guessed: a wrong guess is a wrong prompt that nobody notices.
Lines: LF, CRLF or CR ends one; U+2028, U+2029, U+0085, VT, FF and FS are characters like others. NUL is refused.
Tables: every row has as many fields as the header; a quote within quotes is doubled.

No message holds what stands in a file, except the names of its columns.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saferedir.errors import SaferedirError, TextFileError

MAX_LINE = 1 << 20  # characters; a prompt is some hundred
_LINE_END = re.compile(r"\r\n|\r|\n")
_MARKS = (  # the longer ones first: UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TableRows:
    """A table being read.

    Attributes:
        columns: the header's names, stripped, in order; "" for a column without a name.
        rows: (line on which the row begins, its fields, as many as `columns`); reading on may still refuse the file.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[int, list[str]]]


def read_text(path: Path, *, error: type[SaferedirError] = TextFileError) -> str:
    """All of a file, without its byte order mark; line ends as they stand.

    Raises:
        error: the file cannot be read, is in another encoding, or has a NUL character.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(_unreadable(path, problem)) from problem
    encoding = _encoding(data[:4])
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as problem:
        if encoding.startswith("utf-8") and b"\0" in data:  # UTF-16 without its mark
            text = data.decode("latin-1")
        else:
            raise error(_undecodable(path, data, encoding, problem)) from problem
    if "\0" in text:
        raise error(_nul(path, 1 + len(_LINE_END.findall(text[: text.index("\0")]))))
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; as `str.splitlines`, but only LF, CRLF and CR end one."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def iterate_lines(path: Path, *, error: type[SaferedirError] = TextFileError) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a file of any size, read bit by bit.

    Raises:
        error: as `read_text`, or a line longer than `MAX_LINE` characters.
    """
    number = 0
    try:
        with path.open("rb") as file:
            encoding = _encoding(file.read(4))
        with path.open(encoding=encoding, newline="") as lines:
            while line := lines.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise error(f"{path}, line {number} is longer than {MAX_LINE:,} characters; give a text file.")
                if "\0" in line:
                    raise error(_nul(path, number))
                yield number, line
    except UnicodeDecodeError:
        read_text(path, error=error)  # names the place in the whole file
        raise error(f"{path} changed while it was read; try again.") from None
    except OSError as problem:
        raise error(_unreadable(path, problem)) from problem


def read_rows(path: Path, delimiter: str, *, error: type[SaferedirError] = TextFileError) -> TableRows:
    """A table with a header, such as CSV; blank lines are left out.

    Raises:
        error: as `iterate_lines`, no header, a column named twice, a row with more or fewer fields, quotes that do not close or
            are escaped by a backslash.
    """
    reader = csv.reader((line for _, line in iterate_lines(path, error=error)), delimiter=delimiter, strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as problem:
                raise error(
                    f"{path}, line {line} is no row that can be read ({problem}); a quote within quotes is written twice."
                ) from problem
            if row is None:
                return
            if row:
                yield line, row

    rows = numbered()
    _, header = next(rows, (0, []))
    if not header:
        raise error(f"{path} is empty.")
    columns = tuple(name.strip() for name in header)
    if not any(columns):
        raise error(f"{path}: the first line names no column.")
    repeated = [position for position, name in enumerate(columns, 1) if name and columns.index(name) < position - 1]
    if repeated:
        raise error(f"{path}: column {repeated[0]} of the header has the name of an earlier one; rename it.")

    def checked() -> Iterator[tuple[int, list[str]]]:
        for line, row in rows:
            if len(row) != len(columns):
                raise error(
                    f"{path}, line {line} has {len(row)} fields where the header has {len(columns)}; quote texts that "
                    f"hold a {'tab' if delimiter == chr(9) else 'comma'}, a quote or a line break."
                )
            yield line, row

    return TableRows(columns, checked())


def parse_json(
    text: str, where: str, *, error: type[SaferedirError] = TextFileError, is_whole_file: bool = False
) -> Any:
    """The value of a JSON text; `where` is what the sentence of a refusal begins with.

    Raises:
        error: no JSON, nested too deeply, or half a surrogate pair, which is no character.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        location = f"{where}, line {problem.lineno}" if is_whole_file else where
        raise error(f"{location} is not JSON ({problem.msg.lower()}).") from problem
    except (RecursionError, ValueError) as problem:
        raise error(f"{where} holds JSON that is nested too deeply or has a number too long.") from problem
    if "\\u" in text and not is_encodable(json.dumps(value, ensure_ascii=False)):
        raise error(f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; correct it.")
    return value


def is_encodable(text: str) -> bool:
    """Whether a text has no lone surrogates, which no file and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _encoding(start: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def _undecodable(path: Path, data: bytes, encoding: str, problem: UnicodeDecodeError) -> str:
    # a codec that skips a byte order mark counts from behind it
    start = problem.start + (len(data) - len(problem.object))
    before = data[:start].decode(encoding, "replace")
    line = 1 + len(_LINE_END.findall(before))
    name = {"utf-8-sig": "UTF-8", "utf-8": "UTF-8"}.get(encoding, encoding.upper())
    advice = (
        "save it as UTF-8 (a file of an older Windows program: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW)"
        if name == "UTF-8"
        else "save it as UTF-8"
    )
    return f"{path} is not {name} text: byte 0x{data[start]:02x} at offset {start} (line {line}); {advice}."


def _nul(path: Path, line: int) -> str:
    return (
        f"{path}, line {line} has a NUL character; save the file as UTF-8 text (UTF-16 is read where it begins with its byte "
        "order mark)."
    )


def _unreadable(path: Path, problem: OSError) -> str:
    return f"{path} cannot be read ({(problem.strerror or str(problem)).lower()})."
