"""Headless Chromium, driven through its pipe: what a page logs, asks the network for, draws and prints."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--hide-scrollbars", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--disable-extensions", "--disable-dev-shm-usage",
)  # fmt: skip
SECONDS = 90.0


class Browser:
    """One tab of a browser.

    Attributes:
        problems: errors on the console, uncaught exceptions and failed loads, as text.
        addresses: every address that the page asked for.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._buffer, self._number, self._session = reading, writing, b"", 0, ""
        self.problems: list[str] = []
        self.addresses: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to one command; events that come before are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while True:
            answer = self._message(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._keep(answer)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, file: Path, width: int = 1280, dark: bool = False) -> None:
        """Open a file in a window of this width."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + SECONDS
        while not self.value(condition):
            assert time.monotonic() < end, (condition, self.problems)
            time.sleep(0.2)

    def picture(self, file: Path, whole: bool = True) -> bytes:
        """Write a PNG of the page, or of the window, and return it."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(content := base64.b64decode(found["data"]))
        return content

    def pdf(self, file: Path) -> bytes:
        """Print the page on A4 and return the PDF."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        file.write_bytes(content := base64.b64decode(found["data"]))
        return content

    def _message(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            self._buffer += os.read(self._reading, 1 << 20)
        text, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(text))

    def _keep(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.addresses.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(json.dumps(params["args"])[:500])
        elif method == "Network.loadingFailed":
            self.problems.append(f"failed to load: {params.get('errorText')}")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Yield a browser with an empty profile; it ends with the block."""
    assert CHROMIUM
    their_reading, our_writing = os.pipe()
    our_reading, their_writing = os.pipe()
    # The browser reads from file descriptor 3 and writes to 4.
    script = f'exec "$@" 3<&{their_reading} 4>&{their_writing}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(their_reading, their_writing),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_reading)
    os.close(their_writing)
    try:
        yield Browser(our_reading, our_writing)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(our_reading)
        os.close(our_writing)
