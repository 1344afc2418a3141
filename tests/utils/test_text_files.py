"""One reader for every text file that people bring: encodings, line ends, tables, and the sentence for each refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saferedir.bench.planning.config import read_judges, read_matrix
from saferedir.cli.negation import _read_prompts as read_negation_prompts
from saferedir.errors import SaferedirError, TextFileError
from saferedir.judges.calibration import read_labelled
from saferedir.prompts import read_prompts as read_bench_prompts
from saferedir.training.saferedir.dataset import Pair, read_pairs, write_pairs
from saferedir.training.saferedir.pairs.files import PROMPT_COLUMNS, read_prompts, read_synonyms
from saferedir.utils.text_files import iterate_lines, parse_json, read_rows, read_text, split_lines

#: characters that some tools take for a line end, and no file format here does
NO_LINE_ENDS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le-mark", "utf-16-be-mark", "utf-32")


def encoded(text: str, encoding: str) -> bytes:
    if encoding.endswith("-mark"):
        return ("\ufeff" + text).encode(encoding.removesuffix("-mark"))
    return text.encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_encoding_with_a_mark_and_every_line_end_reads_the_same(tmp_path: Path, encoding: str, end: str) -> None:
    lines = ["a café", *(f"before{mark}after" for mark in NO_LINE_ENDS), "", "\U0001f31f last"]
    path = tmp_path / "text"
    path.write_bytes(encoded(end.join(lines) + end, encoding))
    assert split_lines(read_text(path)) == lines
    assert list(iterate_lines(path)) == [(n, line + end) for n, line in enumerate(lines, 1)]


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_reading_by_lines_is_splitting_the_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    whole = read_text(path)
    assert whole == text.removeprefix("\ufeff")
    assert [line.rstrip("\r\n") for _, line in iterate_lines(path)] == split_lines(whole)


TOML = '[star]\nname = "café"\nrule = {kind = "AnyAbove", labels = ["shape:star"], threshold = 0.3}\n'
MATRIX = (
    'title = "café"\nseeds = [0]\n[model.a]\nload = "pictoworld"\n[concept.star]\nprompts = "pictoworld/star"\n'
    + ('judge = {name = "pictoworld", preset = "star"}\n[guard.b]\nmethod = "sld"\n')
)
READERS: dict[str, tuple[str, str, Callable[[Path], Any], Any]] = {
    "pairs": (
        "p.jsonl", '{"unsafe": "a star", "safe": "a café"}\n', read_pairs, [Pair("a star", "a café")],
    ),
    "captions": ("c.txt", "a star\na café\n", read_prompts, ["a star", "a café"]),
    "captions as a table": ("c.csv", "id,caption\n1,a café\n", read_prompts, ["a café"]),
    "captions as JSON lines": ("c.jsonl", '{"caption": "a café"}\n', read_prompts, ["a café"]),
    "synonyms": ("s.txt", "a café\n", read_synonyms, (["a café"], [])),
    "synonyms as JSON": ("s.json", '{"near": ["a café"]}', read_synonyms, ([], ["a café"])),
    "prompts of a negation set": ("n.txt", "a star\na café\n", read_negation_prompts, ["a star", "a café"]),
    "prompts of the bench": (
        "b.csv", "prompt\na café\n", lambda path: read_bench_prompts(path, "plain").texts, ["a café"],
    ),
    "prompts of the bench as JSON": (
        "b.json", '["a café"]', lambda path: read_bench_prompts(path, "plain").texts, ["a café"],
    ),
    "judges of the bench": ("j.toml", TOML, lambda path: read_judges(path)["star"].name, "café"),
    "matrix of the bench": ("m.toml", MATRIX, lambda path: read_matrix(str(path)).title, "café"),
    "labels of a calibration": (
        "l.csv", "file,label\ncafé.png,yes\nb.png,no\n", lambda path: [p.name for p in read_labelled(path)[0]],
        ["café.png", "b.png"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_every_encoding_and_refuses_others_by_name_and_place(tmp_path: Path, reader: str) -> None:
    name, text, read, found = READERS[reader]
    path = tmp_path / name
    for encoding in ENCODINGS:
        path.write_bytes(encoded(text, encoding))
        assert read(path) == found, encoding
    # a file of an older Windows program is refused, not guessed
    data = text.encode("cp1252")
    path.write_bytes(data)
    at, line = data.index(b"\xe9"), 1 + data[: data.index(b"\xe9")].count(b"\n")
    with pytest.raises(SaferedirError) as caught:
        read(path)
    message = str(caught.value)
    assert f"{path} is not UTF-8 text: byte 0xe9 at offset {at} (line {line})" in message and "iconv" in message
    path.write_bytes(text.encode("utf-16-le"))  # without its mark: NUL characters
    with pytest.raises(SaferedirError, match=r"line 1 has a NUL character; save the file as UTF-8"):
        read(path)


def test_the_place_of_a_wrong_byte_counts_the_mark_and_every_line_end(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\nd\xff")
    with pytest.raises(TextFileError, match=r"byte 0xff at offset 11 \(line 4\)"):
        read_text(path)
    with pytest.raises(TextFileError, match=r"byte 0xff at offset 11 \(line 4\)"):
        list(iterate_lines(path))
    path.write_bytes(b"\xff\xfea\x00\n\x00b")
    with pytest.raises(TextFileError, match=r"is not UTF-16 text: byte 0x62 at offset 6 \(line 2\)"):
        read_text(path)
    with pytest.raises(TextFileError, match=r"cannot be read \(no such file or directory\)"):
        read_text(tmp_path / "nowhere")


@pytest.mark.parametrize("mark", NO_LINE_ENDS)
def test_what_ends_no_line_stays_in_its_prompt(tmp_path: Path, mark: str) -> None:
    """The value: one prompt, its words whole; captions have white space made one space."""
    said = f"a red house{mark}at night"
    table, lines, text, pairs = (tmp_path / name for name in ("c.csv", "c.jsonl", "c.txt", "p.jsonl"))
    table.write_text(f"id,caption\n1,{said}\n2,a tree\n", encoding="utf-8")
    lines.write_text(json.dumps(said, ensure_ascii=ord(mark) < 32) + '\n"a tree"\n', encoding="utf-8")
    text.write_text(f"{said}\na tree\n", encoding="utf-8")
    for path in (table, lines, text):
        assert read_prompts(path) == ["a red house at night", "a tree"], path
    assert read_negation_prompts(text) == ["a red house at night", "a tree"]
    assert read_bench_prompts(text, "plain").texts == [said, "a tree"]
    rows = [Pair(said, "a tree"), Pair(None, said)]
    write_pairs(rows, pairs)
    assert read_pairs(pairs) == rows


PROMPTS = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(st.none() | PROMPTS, PROMPTS).filter(lambda row: row[0] != row[1]), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_writing_pairs_and_reading_them_is_the_identity(tmp_path: Path, rows: list[tuple[str | None, str]]) -> None:
    pairs = [Pair("a star", "a circle"), *(Pair(*row) for row in rows)]
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_half_a_surrogate_pair_is_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(SaferedirError, match="pair 2 holds half of a surrogate pair"):
        write_pairs([Pair("a", "b"), Pair(None, "caf\udce9")], path)
    assert not path.exists()
    path.write_text('{"unsafe": "a \\udce9", "safe": "b"}\n')
    with pytest.raises(SaferedirError, match="line 1 holds half of a surrogate pair"):
        read_pairs(path)
    assert parse_json('"\\ud83c\\udf1f"', "here") == "\U0001f31f"  # a whole pair is a character


TABLES = {
    "an unquoted comma": ("id,caption\n1,a house\n2,a house, harsh shadows\n", "line 3 has 3 fields where the header has 2"),
    "backslash quotes": ('caption,id\n"a \\"red\\" house, at night",1\n', "line 2 is no row that can be read"),
    "a missing field": ("id,caption\n1,a house\n2\n", "line 3 has 1 fields where the header has 2"),
    "a trailing comma": ("caption\na house,\n", "line 2 has 2 fields where the header has 1"),
    "a quote that does not close": ('id,caption\n1,"a house\n2,a tree\n', "line 2 is no row that can be read"),
    "a column twice": ("caption,id,caption\na,1,b\n", "column 3 of the header has the name of an earlier one"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_might_be_misread_is_refused_everywhere(tmp_path: Path, case: str) -> None:
    text, words = TABLES[case]
    path = tmp_path / "c.csv"
    for column, read in (
        ("caption", read_prompts),
        ("prompt", lambda path: read_prompts(path, PROMPT_COLUMNS)),  # what --evaluation reads
        ("prompt", lambda path: read_bench_prompts(path, "plain")),
        ("caption", lambda path: list(read_rows(path, ",").rows)),
    ):
        path.write_text(text.replace("caption", column))
        with pytest.raises(SaferedirError, match=words):
            read(path)
    (tmp_path / "l.csv").write_text(text.replace("caption", "label").replace("id", "file"))
    with pytest.raises(SaferedirError):
        read_labelled(tmp_path / "l.csv")


def test_quotes_and_line_breaks_within_quotes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('id,caption\n1,"a ""red"" house, at night"\n\n2,"two\nlines"\n')
    assert list(read_rows(path, ",").rows) == [(2, ["1", 'a "red" house, at night']), (4, ["2", "two\nlines"])]
    assert read_prompts(path) == ['a "red" house, at night', "two lines"]
