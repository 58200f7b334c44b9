"""A headless Chromium, driven over a pipe with its DevTools protocol (chromedevtools.github.io/devtools-protocol)."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from waiting import CEILING

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    # No host name resolves.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Chromium speaks the protocol on file descriptors 3 and 4.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_DRAWN = """
new Promise(done => {
  const look = () => Bokeh.documents.length && Bokeh.documents.every(document => document.is_idle)
    ? requestAnimationFrame(() => requestAnimationFrame(done)) : setTimeout(look, 50)
  look()
})
"""


def find_chromium() -> str | None:
    """The command of an installed browser, or ``None``."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium(command: str, folder: Path) -> Iterator["Page"]:
    """A page in a new browser with its profile in ``folder``."""
    here_out, there_in = _pipe()
    there_out, here_in = _pipe()
    # Chromium refuses its sandbox as root, as in containers.
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    flags = [*_FLAGS, *sandbox, f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(there_out), str(there_in), command, *flags],
        pass_fds=(there_out, there_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(there_out)
    os.close(there_in)
    try:
        page = Page(here_in, here_out)
        yield page
        page.send("Browser.close")
        process.wait(CEILING)
    finally:
        process.kill()
        process.wait()
        os.close(here_in)
        os.close(here_out)


def _pipe() -> tuple[int, int]:
    """The ends (read, write) of a pipe, above the descriptors that the browser uses."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Page:
    """One tab; ``events`` holds all events that the browser has sent."""

    def __init__(self, target: int, source: int):
        self._target, self._source, self._rest, self._count = target, source, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        tab = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method and wait for its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session and not method.startswith("Browser."):
            message["sessionId"] = self._session
        os.write(self._target, json.dumps(message).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, path: Path, width: int, dark: bool) -> None:
        """Open a report at a given width and wait until its charts are drawn."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.theme(dark)
        self.send("Page.navigate", url=path.as_uri())
        self.evaluate("new Promise(done => document.readyState == 'complete' ? done() : (onload = done))")
        self.drawn()

    def theme(self, dark: bool) -> None:
        """Emulate ``prefers-color-scheme``."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def drawn(self) -> None:
        """Wait until bokeh is idle."""
        self.evaluate(_DRAWN)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def hover(self, x: float, y: float) -> None:
        """Move the mouse to a position."""
        for shift in (2, 0):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + shift, y=y)

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        self.evaluate(
            f"new Promise(done => {{ const look = () => ({expression}) ? done() : setTimeout(look, 50); look() }})"
        )

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def requests(self) -> set[str]:
        """Requested addresses, except files and data URLs."""
        loaded = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        sockets = [e["params"]["url"] for e in self.events if e["method"] == "Network.webSocketCreated"]
        return {url for url in (*loaded, *sockets) if not url.startswith(("file:", "data:"))}

    def problems(self) -> list[Any]:
        """Errors, warnings and violations of the content security policy."""
        thrown = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        called = [e["params"] for e in self.events if e["method"] == "Runtime.consoleAPICalled"]
        return [
            *thrown,
            *(entry for entry in logged if entry["level"] in ("warning", "error")),
            *(call for call in called if call["type"] in ("warning", "error", "assert")),
        ]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + CEILING
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._source], [], [], max(end - time.monotonic(), 0))
            part = os.read(self._source, 1 << 20) if ready else b""
            assert part, "the browser does not respond"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
