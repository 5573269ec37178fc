"""A real Chromium, driven by its own WebDriver over HTTP: no package needed.

W3C WebDriver, https://www.w3.org/TR/webdriver2/, and two extensions of chromedriver: the console's
log, and DevTools commands (a phone's width, a preference for dark).
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip
WAIT_S = 30.0


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.address + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["value"]

    def devtools(self, command: str, **params: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def open(self, page: Path) -> None:
        self.call("POST", "/url", {"url": page.as_uri()})

    def show(self, width: int, height: int, *, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 640,
        )  # fmt: skip

    def wait(self, script: str) -> None:
        """Until the script returns something true."""
        end = time.monotonic() + WAIT_S
        while not self.run(script):
            assert time.monotonic() < end, f"still not true after {WAIT_S} s: {script}"
            time.sleep(0.05)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        made = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        path.write_bytes(base64.b64decode(made["data"]))

    def console(self) -> list[str]:
        """What was logged since this was last asked: errors of scripts, policy and network."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a new, empty profile. The test is skipped where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs the programs chromium and chromedriver (Debian: chromium-driver)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    browser = Browser(f"http://127.0.0.1:{port}")
    try:
        _until_ready(browser)
        options = {"binary": program, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }  # fmt: skip
        made = browser.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        browser.address += f"/session/{made['sessionId']}"
        yield browser
        browser.call("DELETE", "")
    finally:
        server.terminate()
        server.wait(timeout=10)


def _until_ready(browser: Browser) -> None:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            if browser.call("GET", "/status")["ready"]:
                return
        except OSError:  # nobody listens yet
            assert time.monotonic() < end, "chromedriver does not answer"
        time.sleep(0.05)
