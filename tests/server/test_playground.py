"""The page in a real browser, at desktop and phone width; what it may show, and which of Gradio's addresses are closed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.server.served import Served, served, settings_of

from saferedir import Decision
from saferedir.server.config import Settings
from saferedir.server.playground.bench_report import latest_report
from saferedir.server.playground.fragments import legend_html
from saferedir.server.playground.timeline import colours_of, timeline
from saferedir.server.reports.store import ReportStore

if find_spec("gradio") is None:  # importing it takes seconds, which only who runs these tests should pay
    pytest.skip("the extra `playground` is not installed", allow_module_level=True)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

#: the field that a reviewer edits has the report's prompt, which comes once the report is chosen
FILLED = "document.querySelector('#safe textarea, #safe input').value"


def models(**more: Any) -> list[dict[str, Any]]:
    return [{"name": "scripted", "guards": ["plain/star"], "sizes": ["16x16"], **more}]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("playground")
    with served(folder, models=models(unguarded=True), playground={"enabled": True, "bench": str(folder)}) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("there is no Chromium on this machine; `make browser` installs it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Any, url: str, width: int, height: int) -> tuple[Any, list[str]]:
    """A page at that size, and what goes wrong on it from now on."""
    page, faults = browser.new_page(viewport={"width": width, "height": height}), []
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("response", lambda answer: answer.status >= 400 and faults.append(f"{answer.status} {answer.url}"))
    page.on(
        "request", lambda sent: sent.url.startswith(("http://127.0.0.1", "data:", "blob:")) or faults.append(sent.url)
    )
    page.goto(f"{url}/")
    page.locator("#prompt textarea, #prompt input").first.wait_for(timeout=60_000)
    return page, faults


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_prompt_shows_both_images_and_the_token_strip(service: Served, browser: Any, width: int, height: int) -> None:
    page, faults = opened(browser, service.url, width, height)
    page.locator("#prompt textarea, #prompt input").first.fill("a red <b>star</b>")
    page.keyboard.press("Enter")
    page.locator("#images img").nth(1).wait_for(timeout=30_000)
    assert page.locator("#images figcaption").all_inner_texts() == ["Without guards", "With guards (verify)"]
    assert page.locator("#tokens li").all_inner_texts() == ["red\n0.00", "star\n0.50"]
    assert "Redirected" in page.locator("#status").inner_text() and page.locator("#images b").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [image.bounding_box() for image in page.locator("#images img").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"], "side by side"
    before = len(ReportStore(service.service.audit.store).reports())
    page.get_by_text("Something is wrong with this image").click()
    page.get_by_label("Note").fill("a <i>star</i>")
    page.locator("#send-report").click()
    page.get_by_text("waits for a reviewer").wait_for(timeout=30_000)
    page.get_by_role("tab", name="Review").click()
    page.locator("#queue td").first.wait_for(timeout=30_000)
    assert page.locator("#queue tbody tr").count() == 1 and "a <i>star</i>" in page.locator("#queue").inner_text()
    page.wait_for_function(FILLED)
    page.locator("#safe textarea, #safe input").first.fill("a red circle")
    page.locator("#accept").click()
    page.get_by_text("is accepted").wait_for(timeout=30_000)
    page.get_by_text("Nothing waits for a review").wait_for(timeout=30_000)
    (row,) = ReportStore(service.service.audit.store).reports(status="accepted")[before:]
    assert (row.unsafe, row.safe, row.problem) == ("a red <b>star</b>", "a red circle", "missed")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("tab", name="Gallery").click()
    page.locator("#gallery img").first.wait_for()
    page.close()
    assert faults == []
    kinds = [(record["kind"], record["action"]) for record in service.records()[-2:]]
    assert kinds == [("generate", "delivered"), ("bare", "unguarded")]
    assert service.records()[-1]["guards"] == {}


@pytest.mark.slow
def test_a_refusal_shows_no_image_and_says_why(service: Served, browser: Any) -> None:
    page, faults = opened(browser, service.url, 1280, 900)
    page.get_by_label("Prompt").first.fill("a forbidden star")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the button has the focus
    page.locator("#images .sr-empty").wait_for(timeout=30_000)
    assert "Refused" in page.locator("#status").inner_text() and page.locator("#images img").count() == 1
    page.close()
    assert faults == []


def trained_at_once(plan: Any, store: ReportStore, progress: Any) -> dict[str, Any]:
    """In the place of a training, which test_reports.py runs from the command line."""
    with progress.task("training", 2) as advance:
        advance(2)
    cells = {
        f"{prompts}: concept": {"rate": 0.5, "hits": 1, "n": 2, "low": 0.1, "high": 0.9}
        for prompts in ("seen", "benign")
    }
    return store.add_version(
        {
            "concept": plan.concept, "model": plan.model.name, "guard": str(plan.out), "replaces": plan.guard,
            "reports": [report.id for report in plan.reports], "pairs": len(plan.pairs), "before": cells, "after": cells,
        }
    )  # fmt: skip


@pytest.mark.slow
def test_a_report_becomes_a_policy_version_on_the_page(
    tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report, accept, *Train and measure*, and the version with its cells before and after, at phone width."""
    monkeypatch.setattr("saferedir.server.reports.retrain.retrain", trained_at_once)
    model = {"name": "pictoworld", "guards": ["pictoworld/star"], "sizes": ["16x16"], "steps": 2}
    reports = {"folder": str(tmp_path / "guards")}
    with served(tmp_path, models=[model], reports=reports, playground={"enabled": True}) as running:
        page, faults = opened(browser, running.url, 390, 844)
        page.locator("#prompt textarea, #prompt input").first.fill("a very red star")
        page.keyboard.press("Enter")
        page.locator("#images img").first.wait_for(timeout=60_000)
        page.get_by_text("Something is wrong with this image").click()
        page.locator("#send-report").click()
        page.get_by_text("waits for a reviewer").wait_for(timeout=60_000)
        page.get_by_role("tab", name="Review").click()
        page.locator("#queue td").first.wait_for(timeout=60_000)
        page.wait_for_function(FILLED)
        page.locator("#safe textarea, #safe input").first.fill("a very red circle")
        page.locator("#accept").click()
        page.get_by_text("is accepted").wait_for(timeout=60_000)
        page.locator("#retrain").click()
        page.get_by_text("Done.").wait_for(timeout=60_000)
        page.locator("#versions table").wait_for(timeout=60_000)
        assert page.locator("#versions h4").inner_text().startswith("star: version ")
        rows = [row.split("\t") for row in page.locator("#versions tbody tr").all_inner_texts()]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.close()
        assert faults == []
        (version,) = ReportStore(running.service.audit.store).versions()
        assert rows == [[name, *["50 % (10–90), n = 2"] * 2] for name in version["before"]]
        assert version["replaces"] == "pictoworld/star" and len(version["reports"]) == 1
        assert [record["action"] for record in running.records()] == ["delivered", "unguarded", "policy_version"]


def test_what_the_page_does_not_need_is_closed(service: Served) -> None:
    for path in (
        "upload",
        "file=/etc/passwd",
        "proxy=http://127.0.0.1/",
        "component_server",
        "run/predict",
        "info",
        "call/x",
    ):
        for prefix in ("/gradio_api/", "/"):
            assert service.post(f"{prefix}{path}").status_code == 404, path


def test_unguarded_images_only_where_they_are_allowed(tmp_path: Path) -> None:
    default = Settings.model_validate({"models": [{"name": "pictoworld", "guards": ["pictoworld/star"]}]})
    assert default.allows_unguarded(default.models[0]) and not default.playground.enabled
    public = {"host": "0.0.0.0", "keys": [{"name": "a", "sha256": "0" * 64}]}
    elsewhere = default.changed(**public)
    assert not elsewhere.allows_unguarded(elsewhere.models[0])
    for more, expected in (({}, False), ({"unguarded": True}, True), ({"unguarded": False}, False)):
        settings = settings_of(tmp_path, models=models(**more))
        assert settings.allows_unguarded(settings.models[0]) is expected


def test_the_timeline_is_above_zero_where_a_guard_acts() -> None:
    decision = Decision(
        guard="g",
        concept="star",
        image=0,
        prompt_scores=(4.0, 4.0),
        image_scores=(1.0, 3.0),
        thresholds={"prompt": 3.0, "image": 2.0},
    )
    assert timeline([decision]) == [
        (0, 1.0, "star, prompt"),
        (1, 1.0, "star, prompt"),
        (0, -1.0, "star, image"),
        (1, 1.0, "star, image"),
    ]
    assert timeline([decision], "another") == []
    assert list(colours_of(timeline([decision]))) == ["star, prompt", "star, image"]
    many = colours_of([(0, 0.0, str(number)) for number in range(30)])
    assert len(many) == 30 and len({*list(many.values())[:10]}) == 10
    assert "&lt;b&gt;" in legend_html({"<b>": "#000000"}) and not legend_html({}).strip()


def test_the_newest_report_is_the_one(tmp_path: Path) -> None:
    assert latest_report(tmp_path) is None
    for name, age in (("old", 10), ("new", 20)):
        page = tmp_path / name / "report.html"
        page.parent.mkdir()
        page.touch()
        os.utime(page, (age, age))
    assert latest_report(tmp_path) == tmp_path / "new" / "report.html"


def test_pages_of_other_sites_may_not_use_the_page() -> None:
    from starlette.datastructures import Headers

    from saferedir.server.playground.mounting import _is_own_page

    assert _is_own_page(Headers({"host": "images.example"}))
    assert _is_own_page(Headers({"host": "Images.example:8443", "origin": "https://images.example:8443"}))
    assert not _is_own_page(Headers({"host": "images.example", "origin": "https://evil.example"}))
    assert not _is_own_page(Headers({"host": "images.example", "origin": "null"}))
