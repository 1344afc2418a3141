"""Uses the playground of `saferedir serve` in headless Chromium, at desktop and phone width, and takes images of it.

Run: python benchmarks/playground_screenshots.py --out docs
Needs Chromium (`make browser`), Playwright and the extra `playground`. At each width: a prompt, both images, the report of one,
its review. Exit code 1, and no image replaced, where the console has an error, something does not load, or the page is wider
than its window.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: name -> width, height in CSS pixels, pixels of the image a CSS pixel
VIEWS = {"desktop": (1280, 900, 1), "phone": (390, 844, 2)}
PROMPT = "a red star over the sky"
WAIT = 1_200_000  # milliseconds; a busy machine takes its time


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """The address of the service as `saferedir serve --playground` starts it, with its audit in a folder."""
    words = [sys.executable, "-c", "from saferedir.cli import app; app()", "serve", "--playground", "--port", "0"]
    words += ["--audit", f"sqlite:///{folder / 'audit.sqlite'}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = next((re.findall(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout), [])
            if not address:
                raise SystemExit("the service did not start")
            yield address[0]
        finally:
            process.terminate()


def view(browser: Any, address: str, name: str, out: Path) -> list[str]:
    """What went wrong at one width; images of the tabs Try and Review."""
    width, height, scale = VIEWS[name]
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
    page.set_default_timeout(WAIT)
    faults: list[str] = []
    page.on("console", lambda message: faults.extend([message.text] if message.type == "error" else []))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("response", lambda answer: faults.extend([f"{answer.status} {answer.url}"] if answer.status >= 400 else []))

    def shot(tab: str) -> None:
        page.wait_for_timeout(800)  # the plot draws itself after its data have come
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            faults.append(f"{tab}: the page is {wide} pixels wide in a window of {width}")
        page.screenshot(path=out / f"playground{tab}-{name}.png", full_page=True)

    page.goto(f"{address}/", timeout=WAIT)
    prompt = page.locator("#prompt textarea, #prompt input").first
    prompt.wait_for()
    prompt.fill(PROMPT)
    page.keyboard.press("Enter")
    page.locator("#images img").nth(1).wait_for()
    page.locator("#timeline svg, #timeline canvas").first.wait_for()
    shot("")
    page.get_by_text("Something is wrong with this image").click()
    page.get_by_label("Note").fill("I asked for a star")
    page.locator("#send-report").click()
    page.get_by_text("waits for a reviewer").wait_for()
    page.get_by_role("tab", name="Review").click()
    page.locator("#queue td").first.wait_for()
    page.wait_for_function(
        "document.querySelector('#safe textarea, #safe input').value"
    )  # the report's prompt has come
    page.locator("#safe textarea, #safe input").first.fill("a red circle over the sky")
    shot("-review")
    page.locator("#accept").click()
    page.get_by_text("is accepted").wait_for()
    page.close()
    return [f"{name}: {fault}" for fault in faults]


def main() -> int:
    """Both widths; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    out = parser.parse_args().out
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit("there is no Chromium; `make browser` installs it")
    with tempfile.TemporaryDirectory() as name, service(Path(name)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        faults = [fault for each in VIEWS for fault in view(browser, address, each, Path(name))]
        browser.close()
        print("\n".join(faults) or f"nothing is wrong at {', '.join(VIEWS)} width")
        if not faults:
            for image in sorted(Path(name).glob("playground*.png")):
                shutil.copyfile(image, out / image.name)
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
