"""The page in a real browser: no message on its console, nothing loaded, no sideways scroll. Skipped without Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.report_screenshot import VIEWS, find_browser, look
from tests.bench.report_world import cells, without_kept, write

CHROMIUM = find_browser()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

SORTED = """(() => {
  const table = document.querySelector("table.ranking");
  table.tHead.rows[0].cells[2].querySelector("button").click();
  return [...table.tBodies[0].rows].map((row) => row.cells[2].dataset.value);
})()"""
UNFOLDED = (
    "document.querySelectorAll('details').forEach((one) => { one.open = true; }), document.documentElement.scrollWidth"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write(folder, images=True)
    return folder / "report.html"


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_has_no_fault(report: Path, view: str, dark: bool) -> None:
    assert CHROMIUM is not None
    seen = look(report, CHROMIUM, view, dark=dark, whole=False, ask={"unfolded": UNFOLDED})
    assert seen.faults == []
    assert seen.values["unfolded"] == VIEWS[view][0]
    assert seen.image.startswith(b"\x89PNG")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("gone", [(), ("drift", "drift:inception"), ("drift", "drift:inception", "identical")])
def test_the_page_without_a_share_kept_has_no_fault(tmp_path: Path, view: str, gone: tuple[str, ...]) -> None:
    assert CHROMIUM is not None
    write(tmp_path, cells=without_kept(cells(), gone), calibrations={}, published=())
    seen = look(tmp_path / "report.html", CHROMIUM, view, whole=False, ask={"unfolded": UNFOLDED})
    assert seen.faults == [] and seen.values["unfolded"] == VIEWS[view][0]


def test_columns_sort_and_the_bare_model_stays_on_top(report: Path) -> None:
    assert CHROMIUM is not None
    kept = look(report, CHROMIUM, whole=False, ask={"kept": SORTED}).values["kept"]
    rest = [float(value) for value in kept[1:]]
    assert rest == sorted(rest) and float(kept[0]) == 1.0


def test_faults_are_seen(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = tmp_path / "page.html"
    page.write_text(
        '<body style="width: 3000px"><img src="missing.png"><script>console.error("no"); throw Error("x")</script>',
        encoding="utf-8",
    )
    faults = " ".join(look(page, CHROMIUM, whole=False).faults)
    for part in ("console: ['no']", "exception", "missing.png", "pixels wide"):
        assert part in faults
