"""A real browser without a window, driven through a pipe: pages are opened, measured and photographed.

In:  an HTML file, a width, a theme. Out: what scripts say of it, what the console said, a picture.
Invariants: needs Chromium or Chrome on PATH, or the program that STREAMPACK_TEST_BROWSER names; else the test is
skipped.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One tab of a browser, and what its console said."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self._number, self._session = 0, ""
        self.console: list[str] = []
        """Errors, warnings and requests that failed."""
        self.requests: list[str] = []
        """URLs that were asked for."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def close(self) -> None:
        self._out.close()
        self._in.close()

    def open(self, page: Path, *, width: int, dark: bool = False, height: int = 800) -> None:
        """Load a page anew, as wide as a screen."""
        scheme = "dark" if dark else "light"
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._ask("Page.navigate", url=page.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, file: Path) -> None:
        """All of the page as PNG."""
        found = self._ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        file.write_bytes(base64.b64decode(found["data"]))

    def _ask(self, method: str, **arguments: object) -> Any:
        self._number += 1
        question = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            question["sessionId"] = self._session
        self._out.write(json.dumps(question).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        event: dict[str, Any] = json.loads(text)
        method, told = event.get("method"), event.get("params", {})
        if method in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"}:
            self.console.append(json.dumps(told))
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        return event


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser for a block; without one, the test is skipped."""
    program = os.environ.get("STREAMPACK_TEST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: neither {', '.join(NAMES)} on PATH, nor STREAMPACK_TEST_BROWSER")
    to_browser, from_browser = os.pipe(), os.pipe()
    with TemporaryDirectory(prefix="streampack-browser-", ignore_cleanup_errors=True) as profile:
        # A browser reads from descriptor 3 and writes to 4.
        command = f'exec 3<&{to_browser[0]} 4>&{from_browser[1]}; exec "$0" "$@"'
        process = subprocess.Popen(
            ["bash", "-c", command, program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            found = Browser(to_browser[1], from_browser[0])
            try:
                yield found
            finally:
                found.close()
        finally:
            process.kill()
            process.wait()
