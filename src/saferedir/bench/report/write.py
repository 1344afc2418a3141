"""Writes the two files of a report, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

from saferedir.bench.report.content.data import ReportData
from saferedir.bench.report.markdown import render as render_markdown
from saferedir.bench.report.page import render as render_page
from saferedir.bench.report.plots.kept import FIGURES, KeptFigures
from saferedir.bench.report.sections import contents
from saferedir.utils.files import write_text

PAGE, MARKDOWN = "report.html", "report.md"


def write_report(data: ReportData, out: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into the folder `out`, which is made where it does not exist,
    and `figures.json`, which keeps the figures for the next time.

    Both are rendered before either is written, and each replaces an older one in one step.
    Raises `BenchError` where two protocols would share a column, `MissingExtraError` without the extra "bench".
    """
    shown = contents(data)
    figures = KeptFigures(out / FIGURES)
    texts = {PAGE: render_page(shown, figures), MARKDOWN: render_markdown(shown)}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(out / name, text)
    figures.save()
    return out / PAGE, out / MARKDOWN
