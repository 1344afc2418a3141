"""Opens a bench's page in headless Chromium at desktop and phone width, takes images of it, and says what is wrong with it.

Run: python benchmarks/report_screenshot.py bench/report.html --out docs
Speaks Chromium's devtools protocol over a pipe, so it needs a Chromium and nothing else. What is wrong: messages on the console,
anything the page tried to load, a page wider than its window. Exit code 1 if there is any of it.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: view -> width and height in CSS pixels, pixels per CSS pixel, mobile
VIEWS = {"desktop": (1280, 900, 1, False), "phone": (390, 844, 2, True)}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()
# devtools' pipe is file 3 (in) and 4 (out) of the browser
_LAUNCH = (
    "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


# images below the window load when scrolled to; an image of the whole page wants them now
_LOAD = """Promise.all([...document.images].map((one) => {
  one.loading = "eager";
  return one.decode().catch(() => 0);
})).then(() => 0)"""


@dataclass
class Seen:
    """What a view of the page showed.

    Attributes:
        image: PNG of the whole page, or of its window.
        faults: console messages, exceptions, loads, and overflow, one sentence each.
        values: what was asked of the page by JavaScript.
    """

    image: bytes
    faults: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


class Browser:
    """A devtools session over a pipe: `ask` sends a command and waits for its answer; events are kept on the way."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self.reader, self.writer, self.count, self.session = reader, writer, 0, ""
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to one command."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait(self, method: str) -> None:
        """Read until an event of that name has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        out = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser closed its pipe.")
            out += byte
        found: dict[str, Any] = json.loads(out)
        return found


def find_browser() -> str | None:
    """Path of a Chromium, None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def browser(path: str) -> Iterator[Browser]:
    """A fresh headless browser with a profile of its own, ended and cleaned up afterwards."""
    inward, outward = os.pipe(), os.pipe()
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (inward[0], outward[1])]
    for end in (inward[0], outward[1]):
        os.close(end)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", _LAUNCH, *map(str, theirs), path, *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, pass_fds=theirs, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for end in theirs:
            os.close(end)
        with os.fdopen(inward[1], "wb") as writer, os.fdopen(outward[0], "rb") as reader:
            session = Browser(reader, writer)
            try:
                yield session
                session.session = ""
                session.ask("Browser.close")
            finally:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def look(
    page: Path,
    path: str,
    view: str = "desktop",
    dark: bool = False,
    script: bool = True,
    whole: bool = True,
    ask: Mapping[str, str] | None = None,
) -> Seen:
    """Open `page` once. `ask`: name -> JavaScript expression to evaluate; `script=False` switches the page's own scripts off."""
    width, height, scale, mobile = VIEWS[view]
    with browser(path) as session:
        target = session.ask("Target.createTarget", url="about:blank")["targetId"]
        session.session = session.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            session.ask(f"{domain}.enable")
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        session.ask("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        session.ask("Emulation.setEmulatedMedia", features=[scheme])
        session.ask("Emulation.setScriptExecutionDisabled", value=not script)
        session.ask("Page.navigate", url=page.absolute().as_uri())
        session.wait("Page.loadEventFired")
        _value(session, _LOAD)
        wide = _value(session, "document.documentElement.scrollWidth")
        values = {name: _value(session, code) for name, code in (ask or {}).items()}
        shot = session.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        faults = [sentence for event in session.events for sentence in _fault(event, page.absolute().as_uri())]
        if wide > width:
            faults.append(f"the page is {wide} pixels wide in a window of {width}.")
        return Seen(base64.b64decode(shot["data"]), faults, values)


def _value(session: Browser, code: str) -> Any:
    found = session.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
    if "exceptionDetails" in found:
        raise RuntimeError(f"{code}: {found['exceptionDetails']}")
    return found["result"].get("value")


def _fault(event: Mapping[str, Any], own: str) -> list[str]:
    """What an event says is wrong: [] for nothing."""
    params: dict[str, Any] = event.get("params", {})
    kind = event.get("method")
    if kind == "Runtime.consoleAPICalled":
        return [f"console: {[one.get('value') for one in params['args']]}"]
    if kind == "Runtime.exceptionThrown":
        return [f"exception: {params['exceptionDetails'].get('text')}"]
    if kind == "Log.entryAdded":
        return [f"log: {params['entry']['text']}"]
    if kind == "Network.requestWillBeSent":
        url = str(params["request"]["url"])
        return [] if url.startswith(("data:", own)) else [f"the page loads {url[:200]}"]
    return []


def main() -> int:
    """Image and faults of every view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--window", action="store_true", help="only what the window shows, not the whole page")
    options = parser.parse_args()
    path = find_browser()
    if path is None:
        print("no Chromium found; skipped.")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for view in VIEWS:
        seen = look(options.page, path, view, dark=options.dark, whole=not options.window)
        image = options.out / f"{options.page.stem}-{view}{'-dark' if options.dark else ''}.png"
        image.write_bytes(seen.image)
        wrong += len(seen.faults)
        print(f"{view}: {image}, {len(seen.faults)} faults", *seen.faults, sep="\n  ")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
