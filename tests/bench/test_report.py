"""The page and the Markdown file of a report: self-contained, safe, honest, and in agreement with the cells."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from tests.bench.report_world import (
    CONCEPTS,
    GUARDS,
    PHRASINGS,
    Published,
    cell,
    costs,
    png,
    rate,
    report_data,
    shown,
    write,
)

from saferedir.bench.report import ReportData, page, write_report
from saferedir.bench.report import markdown as markdown_file
from saferedir.bench.report.plots import svg
from saferedir.bench.report.plots.kept import FIGURES
from saferedir.bench.report.sections import cost_rows

HOSTILE = '<script>alert("$x_{")</script>'


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the texts of all table cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
            self.open += 1

    def handle_endtag(self, tag: str) -> None:
        self.open -= tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("report"), images=True)


def small(**changes: Any) -> ReportData:
    """A report of one guard on one phrasing."""
    cells = (
        cell("none", "star", "forget", "test-seen", {"concept": rate(100, 100)}),
        cell("one", "star", "forget", "test-seen", {"concept": rate(3, 100)}),
        cell("one", "star", "retain", "retain", {"retention": rate(99, 100)}),
    )
    return report_data(**{"cells": cells, "published": (), **changes})


def in_words(value: dict[str, Any]) -> str:
    """A rate as Markdown has it."""
    return f"{100 * value['rate']:.1f} % ({100 * value['low']:.1f} to {100 * value['high']:.1f}, n = {value['n']})"


def test_the_page_is_one_file_that_loads_nothing(html: str) -> None:
    assert not re.search(r"https?:", html)
    assert not re.search(r"@import|@font-face|url\((?!#)", html)
    for tag, attributes in Elements(html).found:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert str(attributes.get("href", "#")).startswith("#"), attributes
        assert not {name for name in attributes if name.startswith("on") or name in ("srcset", "action", "poster")}


def test_the_policy_of_the_page_admits_its_own_script_and_no_other(html: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_ids_are_unique_and_every_link_within_the_page_has_its_goal(html: str) -> None:
    elements = Elements(html).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    doubled = {one for one in ids if ids.count(one) > 1}
    assert not {
        one for one in doubled if not re.fullmatch(r"[mp][0-9a-f]{10}", str(one))
    }  # matplotlib's: same id, same shape
    goals = {
        str(attributes["href"])[1:] for tag, attributes in elements if tag in ("a", "use") and "href" in attributes
    }
    assert goals <= set(ids)


def test_every_figure_has_a_title_and_a_description(html: str) -> None:
    figures = [
        attributes for tag, attributes in Elements(html).found if tag == "svg" and attributes.get("role") == "img"
    ]
    assert len(figures) == 2 * (2 * len(CONCEPTS) + 1)  # scatter and bars a concept, and cost, wide and narrow
    for attributes in figures:
        for name in ("aria-labelledby", "aria-describedby"):
            assert re.search(f'id="{attributes[name]}">[^<]+<', html)


@pytest.mark.parametrize(
    "place", ["guard", "concept", "model", "prompts", "warning", "title", "missing", "published", "prompt"]
)
def test_hostile_names_are_text(tmp_path: Path, place: str) -> None:
    name = HOSTILE if place in ("guard", "concept", "model", "prompts") else "x"
    made = cell(
        name if place == "guard" else "one",
        name if place == "concept" else "star",
        "forget",
        name if place == "prompts" else "test-seen",
        {"concept": rate(3, 100)},
        warnings=(HOSTILE,) if place == "warning" else (),
    )
    from saferedir.bench.report import Sample

    data = report_data(
        cells=(made,),
        title=HOSTILE if place == "title" else "t",
        missing=(HOSTILE,) if place == "missing" else (),
        published=(Published(system=HOSTILE, note=HOSTILE),) if place == "published" else (),
        samples=(Sample("pictoworld", "star", "test-seen", 0, HOSTILE, {"none": png(shape="star"), HOSTILE: b"x"}),),
    )
    html, markdown = (path.read_text(encoding="utf-8") for path in write_report(data, tmp_path))
    assert [tag for tag, _ in Elements(html).found].count("script") == 1
    assert html.count("<script") == 1
    assert "<script" not in markdown


@pytest.mark.parametrize(
    "hostile",
    [
        "# big",
        "- item",
        "+ item",
        "-",
        "---",
        "1. first",
        "12) twelfth",
        "~~gone~~",
        "$x^2$ and $$y$$",
        "===",
        ":-:",
        "* item",
    ],
)
def test_markdown_shows_a_hostile_text_as_it_is(hostile: str) -> None:
    """Alone on its line below another, as the name of a guard and of a prompt set, and in the description."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    inline = parser.parse(f"before\n{markdown_file.escape(hostile)}\n")
    assert [token.type for token in inline] == ["paragraph_open", "inline", "paragraph_close"]
    assert [(part.type, part.content) for part in inline[1].children or ()] == [
        ("text", "before"), ("softbreak", ""), ("text", hostile)
    ]  # fmt: skip
    assert not re.search(r"(?<!\\)\$", markdown_file.escape(hostile))
    made = tuple(cell(guard, "star", "forget", hostile, {"concept": rate(3, 10)}, 10) for guard in ("none", hostile))
    contents = shown(cells=made, costs=(), description=hostile, missing=(hostile,))
    tokens = parser.parse(markdown_file.render(contents))
    assert {token.tag for token in tokens if token.type == "heading_open"} == {"h1", "h2", "h3"}
    assert not any(token.type in ("hr", "ordered_list_open") for token in tokens)
    texts = [part for token in tokens for part in token.children or ()]
    assert not any(part.type == "s_open" for part in texts)
    assert sum(hostile in part.content for part in texts) >= 4
    assert any(hostile in text for text in Elements(page.render(contents)).cells)


def test_signed_numbers_are_not_escaped_in_markdown() -> None:
    assert [markdown_file.escape(text) for text in ("-0.12 (n = 3)", "+.5", "3.5 %", "2026")] == [
        "-0.12 (n = 3)", "+.5", "3.5 %", "2026"
    ]  # fmt: skip


def test_names_with_pipes_and_newlines_stay_in_their_markdown_cell() -> None:
    assert markdown_file.escape("x|y\nz `1`") == "x\\|y z \\`1\\`"
    made = cell("x|y\nz", "star", "forget", "`1`", {"concept": rate(3, 100)})
    text = markdown_file.render(shown(cells=(made,), costs=()))
    assert "\n| x\\|y z | " in text and "| guard | \\`1\\` (" in text


def test_markdown_tables_parse_and_hold_the_cells_numbers() -> None:
    text = markdown_file.render(shown())
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert blocks
    for head, rule, *rows in blocks:
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in (head, rule, *rows)}
        assert len(widths) == 1, head
    star = next(block for block in blocks if block[0].startswith("| guard | test-seen ("))
    by_guard = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in star[2:]}
    for record in report_data().cells:
        if record.name.concept == "star" and record.name.role == "forget" and record.name.guard != "duo":
            place = list(PHRASINGS).index(record.name.prompts)
            name = record.name.guard.replace("none", "no guard")
            value, live = record.measured["concept"], record.measured.get("asr_live", record.measured["concept"])
            told = by_guard[name][place].removesuffix(" |")
            assert told == in_words(value) + (f"; asr\\_live {in_words(live)}" if live["n"] != value["n"] else "")


def test_every_number_of_the_page_has_its_interval_and_n(html: str) -> None:
    body = re.sub(r"<summary>Each guard against.*?</details>", "", html[: html.index('id="cost"')], flags=re.DOTALL)
    shown = [text for text in Elements(body).cells if re.search(r"\d(\.\d+)?\xa0%|^\s*0\.\d+", text)]
    assert len(shown) > len(CONCEPTS) * len(GUARDS) * 6
    for text in shown:
        assert re.search(r"[\d.]+(–| to )[\d.]+\s*n\xa0\d+", " ".join(text.split(" "))), text


def test_uncalibrated_judges_are_called_so_and_calibrated_ones_show_their_numbers(html: str, tmp_path: Path) -> None:
    assert re.search(r"Judge <b>template</b>: uncalibrated\.", html)
    assert "precision 99.6" in html and "false positives 0.1" in html
    assert "precision 99.6" not in write(tmp_path, cells=small().cells, calibrations={}, published=())


def test_the_removable_hook_is_named_in_page_and_markdown(tmp_path: Path) -> None:
    for path in write_report(small(), tmp_path):
        assert "T4" in path.read_text(encoding="utf-8")


def test_published_and_measured_numbers_share_no_table(html: str) -> None:
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    published = [one for one in tables if "SLD-Max" in one or ">ESD<" in one]
    assert len(published) == 2
    assert not [one for one in published if "saferedir" in one]


def test_empty_inputs_give_one_clear_sentence(tmp_path: Path) -> None:
    html, markdown = (path.read_text(encoding="utf-8") for path in write_report(ReportData("Empty", "", ()), tmp_path))
    assert html.count("There are no results here yet") == markdown.count("There are no results here yet") == 1
    assert "<table" not in html


def test_a_bench_that_failed_everywhere_says_why(tmp_path: Path) -> None:
    broken = cell("one", "star", "forget", "test-seen", {}, error="the guard needs 9 GiB of memory, there are 8.")
    for path in write_report(report_data(cells=(broken,), published=(), costs=()), tmp_path):
        text = path.read_text(encoding="utf-8")
        assert "No guard has numbers for star yet." in text
        assert "the guard needs 9 GiB of memory" in text


def test_a_report_replaces_an_older_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "folder"
    write_report(small(title="first"), out)
    write_report(small(title="second"), out)
    assert sorted(path.name for path in out.iterdir()) == ["figures.json", "report.html", "report.md"]
    assert "second" in (out / "report.html").read_text(encoding="utf-8")


def test_figures_of_an_earlier_report_are_kept_and_only_new_ones_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report_data()
    page, _ = write_report(whole, tmp_path)
    first = page.read_text(encoding="utf-8")
    assert first.count("<svg") >= 4 and "0x" not in repr(whole)
    made: list[str] = []
    plain = svg.to_svg

    def counted(figure: Any, name: str, *more: str) -> str:
        made.append(name)
        return plain(figure, name, *more)

    monkeypatch.setattr(svg, "to_svg", counted)
    write_report(whole, tmp_path)
    assert page.read_text(encoding="utf-8") == first and not made
    (tmp_path / FIGURES).write_text("{damaged", encoding="utf-8")
    write_report(whole, tmp_path)
    assert page.read_text(encoding="utf-8") == first and len(made) == len(set(made)) >= 4
    made.clear()
    write_report(dataclasses.replace(whole, costs=()), tmp_path)  # the rankings have costs, the bars have none
    assert 0 < len(made) and not any(name.startswith("rates") for name in made)


def test_nothing_is_written_when_the_report_cannot_be_made(tmp_path: Path) -> None:
    from saferedir.errors import BenchError

    twice = (small().cells[0], small().cells[0])
    with pytest.raises(BenchError, match="2 records"):
        write_report(report_data(cells=twice), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_data_give_the_same_files(tmp_path: Path) -> None:
    first, second = (write_report(small(), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_private_prompts_are_not_on_the_page(tmp_path: Path) -> None:
    from saferedir.bench.report import Sample

    sample = Sample("pictoworld", "star", "test-seen", 4, None, {"none": png(shape="star"), "one": png(shape="circle")})
    html = write(tmp_path, cells=small().cells, samples=(sample,), published=())
    assert "prompt 5" in html and html.count("data:image/png;base64,") == 2
    assert 'class="pixels"' in html


def test_costs_stand_in_the_page_as_measured(tmp_path: Path) -> None:
    rows = cost_rows(costs())
    assert list(rows) == [("pictoworld", "2 CPU cores")]
    assert rows["pictoworld", "2 CPU cores"][0].guard == "none"
    assert "2.01\u00a0× (1.99 to 2.04)" in write(tmp_path, cells=small().cells, published=())
