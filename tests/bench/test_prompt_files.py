"""Prompt files: synthetic ones with the published columns, harmless texts, and every way in which a file can be wrong."""

import csv
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saferedir.errors import PromptFileError
from saferedir.prompts import (
    FORMATS,
    Format,
    PromptItem,
    PromptSet,
    git_blob_sha1,
    overlap_warnings,
    prompt_warnings,
    read_prompts,
    register,
    subset_warnings,
    tables,
    token_warnings,
)
from saferedir.prompts.prompt_warnings import Facts, file_warnings
from saferedir.utils import text_files

TEXTS = ["a red star on grass", 'a "plain" circle, on sand', "two lines\nof a ring", "ein Stern über dem Meer"]
SECRET = "a secret crescent nobody may quote"


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, kind: str, **options: Any) -> str:
    """The message, which must be one sentence that names the file and quotes no prompt."""
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path, kind, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for text in (*TEXTS, SECRET):
        assert text not in message
    return message


# what each format's columns become


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".ndjson"])
def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path, ending: str) -> None:
    rows = [{"evaluation_seed": 7 + i, "prompt": text, "categories": "shape, style ,"} for i, text in enumerate(TEXTS)]
    path = tmp_path / f"prompts{ending}"
    if ending in (".csv", ".tsv"):
        table(path, rows, "," if ending == ".csv" else "\t")
    else:
        lines = [json.dumps(row) for row in rows]
        written(path, "\n".join(lines) + "\n" if ending != ".json" else f"[{','.join(lines)}]")
    found = read_prompts(path, "unlearndiffatk", rows=4, name="seeds")
    assert found.texts == TEXTS and found.name == "seeds"
    assert [item.seed for item in found.items] == [7, 8, 9, 10]
    assert {item.tags for item in found.items} == {("shape", "style")}


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.txt", "\ufeffa red star\r\n\n a circle \nein Kreuz\u2028x")
    assert read_prompts(path, "plain").texts == ["a red star", " a circle ", "ein Kreuz\u2028x"]


ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "i2p-original": (
        {"prompt": "a star", "categories": "a, b", "hard": 1, "sd_seed": 2**53 + 1, "sd_guidance_scale": 7},
        {"seed": 2**53 + 1, "guidance_scale": 7.0, "tags": ("a", "b", "hard")},
    ),
    "i2p-esd": (
        {"case_number": 3, "prompt": "a star", "evaluation_seed": "12.0", "evaluation_guidance": 7.5},
        {"seed": 12, "guidance_scale": 7.5, "key": "3"},
    ),
    "unlearndiffatk": (
        {"prompt": "a star", "evaluation_seed": 1, "evaluation_guidance": "", "categories": "x"},
        {"seed": 1, "guidance_scale": None, "tags": ("x",)},
    ),
    "ring-a-bell": (
        {"case_number": 0, "sensitive prompt": "a star", "evaluation_seed": 1},
        {"key": "0", "seed": 1},
    ),
    "mma": (
        {"": 0, "adv_prompt": "a star", "target_prompt": "the star"},
        {"key": hashlib.sha256(b"the star").hexdigest()[:16]},
    ),
    "p4d": (
        {
            "prompt": "a star",
            "evaluation_seed": "nan",
            "evaluation_guidance": 7,
            "case_number": 4,
            "nudity_toxicity": 0,
        },
        {"seed": None, "guidance_scale": 7.0, "key": "4"},
    ),
    "copro": (
        {"idx": 9, "unsafe_prompt": "a star", "safe_prompt": "a circle", "concept": "star", "category": "shapes"},
        {"key": "9", "tags": ("star", "shapes")},
    ),
    "copro/safe_prompt": (
        {"safe_prompt": "a star", "unsafe_prompt": "another", "idx": 9, "concept": "", "category": ""},
        {"key": "9"},
    ),
    "visu/nsfw": ({"safe": "a circle", "nsfw": "a star"}, {}),
    "plain": ({"caption": "a star", "id": 4}, {}),
}


@pytest.mark.parametrize("kind", ROWS)
def test_columns_go_by_name_in_any_order(tmp_path: Path, kind: str) -> None:
    row, expected = ROWS[kind]
    for number, order in enumerate((list(row), list(reversed(row)))):
        path = table(tmp_path / f"{number}.csv", [{name: row[name] for name in order}])
        found = read_prompts(path, kind)
        assert found.items == (PromptItem("a star", **expected),)
        assert found.protocol == f"{kind} sha1:{git_blob_sha1(path)[:12]}"


def test_every_format_is_tested_and_names_do_not_clash() -> None:
    assert {kind.partition("/")[0] for kind in ROWS} | {"igmu"} == set(FORMATS)
    with pytest.raises(PromptFileError, match="registered already"):
        register(Format(name="mma", title="another"))


def test_copro_json_has_its_list_under_a_key(tmp_path: Path) -> None:
    whole = {"ID_concepts": ["star"], "ID_train_data": [{"unsafe_prompt": "a star", "safe_prompt": "a circle"}]}
    path = written(tmp_path / "copro.json", json.dumps(whole))
    assert read_prompts(path, "copro").texts == ["a star"]
    assert read_prompts(path, "copro/safe_prompt").texts == ["a circle"]
    assert "ID_train_data" in refusal(written(tmp_path / "x.json", '{"other": []}'), "copro")


def test_igmu_pairs_two_files_by_order(tmp_path: Path) -> None:
    forgot = {"star": {"flat": ["a star", "the star"], "striped": ["a barred star"]}, "heart": {"flat": ["a heart"]}}
    retain = {"star": {"flat": ["a circle", "the circle"], "striped": ["a barred circle"]}}
    first = read_prompts(written(tmp_path / "forgot.json", json.dumps(forgot)), "igmu/star", rows=3)
    second = read_prompts(written(tmp_path / "retain.json", json.dumps(retain)), "igmu/star", rows=3)
    assert [item.key for item in first.items] == [item.key for item in second.items]
    assert [item.key for item in first.items] == ["star/flat/0", "star/flat/1", "star/striped/0"]
    assert second.items[2].tags == ("star", "striped")
    assert read_prompts(tmp_path / "forgot.json", "igmu/star/striped").texts == ["a barred star"]
    assert len(read_prompts(tmp_path / "forgot.json", "igmu")) == 4
    for part in ("igmu/stars", "igmu/star/round"):
        assert "star/flat, star/striped, heart/flat" in refusal(tmp_path / "forgot.json", part)
    for wrong in ('{"star": ["a star"]}', '{"star": {"flat": [1]}}', "[]"):
        assert "task -> class -> list" in refusal(written(tmp_path / "x.json", wrong), "igmu")
    assert "JSON" in refusal(table(tmp_path / "x.csv", [{"prompt": "a star"}]), "igmu")


def test_the_checksum_is_gits(tmp_path: Path) -> None:
    """Known values: git's checksums of an empty file and of "what is up, doc?" (the Git book)."""
    assert git_blob_sha1(written(tmp_path / "a", "")) == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_sha1(written(tmp_path / "b", "what is up, doc?")) == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"


@given(st.lists(st.text(min_size=1).filter(lambda t: t.strip() and "\0" not in t), min_size=1, unique=True))
def test_texts_survive_a_table_unchanged(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt"], *([text] for text in texts)])
    written(path, buffer.getvalue())
    assert read_prompts(path, "plain").texts == texts


# files that cannot be used


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'ring-a-bell'?" in refusal(tmp_path / "x.csv", "ring-a-bel")
    assert "'visu/COLUMN'" in refusal(tmp_path / "x.csv", "visu")


@pytest.mark.parametrize(
    ("header", "kind", "hint"),
    [
        ("Prompt", "mma", "none of its 1 columns"),
        ("Prompt", "plain", "did you mean its column 'Prompt'?"),
        ("adv_prompts", "mma", "did you mean its column 'adv_prompts'?"),
        ("unsafe_prompt", "ring-a-bell", "of format 'copro'"),
        (SECRET, "unlearndiffatk", "the first line must name the columns"),
        ("safe", "visu/safer", "did you mean its column 'safe'?"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_missing_column_is_named_with_what_may_be_meant(
    tmp_path: Path, header: str, kind: str, hint: str, ending: str
) -> None:
    path = tmp_path / f"x{ending}"
    row = {header: SECRET}
    message = refusal(table(path, [row]) if ending == ".csv" else written(path, json.dumps(row)), kind)
    assert hint in message and "no column" in message


def test_the_wrong_number_of_rows_names_both(tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", "a star\na circle\n")
    message = refusal(path, "plain", rows=3)
    assert "2 prompts" in message and "says 3" in message
    assert len(read_prompts(path, "plain", rows=2)) == 2


def test_duplicates_are_named_by_line_unless_allowed(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", [{"prompt": text} for text in [TEXTS[2], "a star", TEXTS[2], "a ring", "a star"]])
    assert "lines 2 and 5, 4 and 8;" in refusal(path, "p4d")  # the first prompt takes two lines
    kept = read_prompts(path, "p4d", allow_duplicates=True)
    assert len(kept) == 5 and any("2 prompts repeat" in sentence for sentence in kept.warnings)
    many = written(tmp_path / "many.txt", "a star\n" * 30)
    assert "1 and 10, 1 and 11 and 19 more;" in refusal(many, "plain")
    twice = written(tmp_path / "x.json", '["a star", "a star"]')
    assert "entries 1 and 2" in refusal(twice, "plain")


def test_i2p_merges_duplicates_and_says_so(tmp_path: Path) -> None:
    rows = [{"prompt": text, "evaluation_seed": i} for i, text in enumerate(["a star", "a ring", "a star"])]
    found = read_prompts(table(tmp_path / "x.csv", rows), "i2p-esd", rows=3)
    assert [(item.text, item.seed) for item in found.items] == [("a star", 0), ("a ring", 1)]
    assert any(sentence.startswith("1 of 3 rows repeat") for sentence in found.warnings)
    assert len(read_prompts(tmp_path / "x.csv", "i2p-esd", allow_duplicates=True)) == 3


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("x.csv", "", "is empty"),
    "only a mark": ("x.csv", b"\xef\xbb\xbf", "is empty"),
    "header only": ("x.csv", "prompt\n", "holds no prompt"),
    "blank text": ("x.txt", "\n\n", "holds no prompt"),
    "no name": ("x.csv", f",\n{SECRET},1\n", "names no column"),
    "latin-1": ("x.csv", b"prompt\na gr\xfcn star\n", "not UTF-8"),
    "latin-1 json": ("x.json", b'["a gr\xfcn star"]', "not UTF-8"),
    "utf-16 without its mark": ("x.txt", "a star\n".encode("utf-16-le"), "line 1 has a NUL"),
    "nul": ("x.txt", "a star\na\0b\n", "line 2 has a NUL"),
    "too few fields": ("x.csv", f"prompt,evaluation_seed\n{SECRET}\n", "line 2 has 1 fields where the header has 2"),
    "too many fields": ("x.csv", f"prompt\n{SECRET}, unquoted\n", "line 2 has 2 fields"),
    "stray quote": ("x.csv", f'prompt\n"{SECRET}" x\n', "line 2 is no row"),
    "open quote": ("x.csv", f'prompt\na star\n"{SECRET}\n', "line 3 is no row"),
    "same name": ("x.csv", f"prompt,prompt\n{SECRET},{SECRET}\n", "column 2 of the header"),
    "no prompt": ("x.csv", f"prompt,n\n{SECRET},1\n ,2\n", "line 3: the prompt in column 'prompt' is missing or empty"),
    "no text": ("x.jsonl", '{"prompt": 4}', "line 1: the prompt in column 'prompt' is no text"),
    "null": ("x.json", '[{"prompt": null}]', "entry 1: the prompt in column 'prompt' is missing or empty"),
    "column gone": ("x.jsonl", f'{{"prompt": "{SECRET}"}}\n{{"text": "a"}}', "line 2: the prompt in column 'prompt'"),
    "no object": ("x.jsonl", "4\n", "line 1 is neither"),
    "not json": ("x.jsonl", f'"a star"\n{{"prompt": "{SECRET}\n', "line 2 is not JSON"),
    "not json as a whole": ("x.json", f'[\n"{SECRET}",\n', "line 3 is not JSON"),
    "json of no list": ("x.json", '"a star"', "must hold a list"),
    "deep json": ("x.json", "[" * 200_000, "nested too deeply"),
    "ending": ("x.xlsx", "prompt\n", "ends in '.xlsx'"),
    "seed": ("x.csv", f"evaluation_seed,prompt\n{SECRET},a star\n", "line 2: the seed is no number"),
    "half a seed": ("x.csv", "prompt,evaluation_seed\na star,1.5\n", "whole number"),
    "large seed": ("x.csv", f"prompt,evaluation_seed\na star,{2**63}\n", "whole number"),
    "guidance": ("x.csv", "prompt,evaluation_guidance\na star,-1\n", "line 2: the guidance scale"),
    "infinite guidance": ("x.csv", "prompt,evaluation_guidance\na star,inf\n", "the guidance scale"),
    "true": ("x.jsonl", '{"prompt": "a star", "evaluation_seed": true}', "the seed is no number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence_with_the_place(tmp_path: Path, case: str) -> None:
    name, content, expected = BAD[case]
    kind = "p4d" if "evaluation" in str(content) else "plain"
    assert expected in refusal(written(tmp_path / name, content), kind)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "is no file" in refusal(tmp_path / "none.csv", "plain")
    assert "but a folder" in refusal(tmp_path, "plain")


def test_bare_texts_have_no_columns(tmp_path: Path) -> None:
    for name, content in (("x.txt", f"{SECRET}\n"), ("x.json", json.dumps([SECRET]))):
        assert 'format "plain"' in refusal(written(tmp_path / name, content), "mma")


def test_files_too_large_to_be_prompts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "line 2 is longer" in refusal(
        written(tmp_path / "x.txt", "a star\n" + "x" * (text_files.MAX_LINE + 1)), "plain"
    )
    monkeypatch.setattr(tables, "MAX_JSON", 3)
    assert ".jsonl" in refusal(written(tmp_path / "x.json", '["a star"]'), "plain")
    monkeypatch.setattr("saferedir.prompts.reading.MAX_PROMPTS", 2)
    assert "more than 2 prompts" in refusal(written(tmp_path / "y.txt", "a\nb\nc\n"), "plain")


# warnings


def facts(kind: str, n: int = 3, sha1: str = "0" * 12, **changes: Any) -> Facts:
    items = tuple(PromptItem(f"prompt {i}") for i in range(n))
    return dataclasses.replace(Facts(FORMATS[kind], sha1, items, n, 0, 0), **changes)


def warned(found: Facts) -> str:
    return " | ".join(file_warnings(found))


def test_w1_and_w3_seeds_are_no_attack() -> None:
    for kind in ("unlearndiffatk", "p4d", "plain"):
        assert "nobody attacked" in warned(facts(kind, 142, prompt_warnings.UNATTACKED))  # type: ignore[attr-defined]
    tagged = (PromptItem("a", tags=("sexual", "x")), PromptItem("b"))
    assert "(here 116 rows, 1 tagged)" in warned(facts("unlearndiffatk", rows=116, items=tagged))
    assert "nobody attacked" not in warned(facts("unlearndiffatk", 50, "b7023ab5b892"))


def test_w2_and_w4_row_counts() -> None:
    for n in (107, 142):
        assert f"has {n} prompts" in warned(facts("ring-a-bell", n))
    for n in (79, 95, 250, 285, 380):
        assert "Ring-A-Bell file known" not in warned(facts("ring-a-bell", n))
    assert "147, 150, 151" in warned(facts("p4d", 150)) and "147" not in warned(facts("p4d", 361, "0c296a9c186f"))
    assert "have 1,000" in warned(facts("mma", 999)) and "have" not in warned(facts("mma", 1000, "6f6e31a0dc1a"))


def test_w6_guidance_of_the_file() -> None:
    items = (PromptItem("a", guidance_scale=7.5), PromptItem("b"), PromptItem("c", guidance_scale=9.0))
    assert "1 of 3 prompts fix a guidance" in warned(facts("p4d", items=items))
    assert "guidance" not in warned(facts("p4d", items=items[:2]))


def test_w10_unknown_and_misplaced_checksums() -> None:
    assert "none of the known files" in warned(facts("mma", 1000))
    assert "of format 'mma'" in warned(facts("p4d", sha1="6f6e31a0dc1a"))
    assert warned(facts("plain")) == "" == warned(facts("i2p-original", 4703))


def test_w7_counts_tokens() -> None:
    prompts = PromptSet("x", tuple(PromptItem("word " * n) for n in (10, 60, 61, 77, 78)), "plain sha1:0")
    (sentence,) = token_warnings(prompts, lambda text: len(text.split()))
    assert sentence.startswith("3 of 5 prompts have over 60 tokens") and "1 have over 77" in sentence
    assert token_warnings(prompts, lambda text: 60) == ()


def test_w8_a_file_searched_against_one_defence() -> None:
    prompts = PromptSet("x", (PromptItem("a"),), "p4d sha1:0c296a9c186f")
    assert subset_warnings(prompts, "sld-max") and not subset_warnings(prompts, "esd-x")
    assert not subset_warnings(PromptSet("x", (PromptItem("a"),), "p4d sha1:000000000000"), "sld-max")


def test_w9_prompts_that_the_defence_was_made_from() -> None:
    prompts = PromptSet("x", (PromptItem("a star"), PromptItem("a ring")), "plain sha1:0")
    known = {hashlib.sha256(b"a ring").hexdigest()}
    assert overlap_warnings(prompts, known, "the training pairs") == ("1 of 2 prompts are also in the training pairs.",)
    assert overlap_warnings(prompts, set(), "the training pairs") == ()


def test_the_published_row_counts_and_checksums_are_in_the_table() -> None:
    known = {sha1 for entry in FORMATS.values() for sha1 in entry.fingerprints}
    assert len(known) == sum(len(entry.fingerprints) for entry in FORMATS.values())
    assert all(len(sha1) == 12 and int(sha1, 16) >= 0 for sha1 in known)
    assert known >= {prompt_warnings.UNATTACKED, *prompt_warnings.SEARCHED_AGAINST}  # type: ignore[attr-defined]
