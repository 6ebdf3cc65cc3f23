"""A real dashboard on a home folder of its own, and a real Chromium that looks at it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from app.supervision import is_locked
from engine.executors.processes import end_processes
from tests.chromium import FLAGS, chromium_path

ROOT = Path(__file__).resolve().parents[2]

# Other tests run beside these; whoever waits for what comes at once is not held up by a long limit.
expect.set_options(timeout=45_000)


class Dashboard:
    """A Streamlit server, with options of its own, that can be killed and started again on the same address."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self._options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [sys.executable, "-m", "app", f"--server.port={self._port}"]
        with (self.home / "dashboard.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--server.headless=true", *self._options],
                cwd=ROOT,
                env={**os.environ, "PEFT_LAB_HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + 90
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=2):
                return
            time.sleep(0.1)
        pytest.fail((self.home / "dashboard.log").read_text())

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "the server is not started"
        return self._process.pid

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def dashboard(home: Path) -> Iterator[Dashboard]:
    """A running dashboard; it and the supervisor that it started are gone afterwards."""
    running = Dashboard(home)
    running.start()
    yield running
    running.kill()
    _end_supervisor(home)


@pytest.fixture
def quiet_dashboard(home: Path) -> Iterator[Dashboard]:
    """A running dashboard for what measures nothing: the supervisor's lock is held here, so that none is started."""
    with (home / "supervisor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = Dashboard(home)
        running.start()
        yield running
        running.kill()


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """One browser for all tests."""
    path = chromium_path()
    if path is None:
        pytest.fail("no Chromium was found: install one, or run make test, which does")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: object) -> Iterator[Page]:
    """A fresh tab without cookies; fails the test if anything was asked from another host or broke in the page."""
    context = chromium.new_context(accept_downloads=True, viewport={"width": 1440, "height": 900})  # type: ignore[attr-defined]
    tab: Page = context.new_page()
    tab.set_default_timeout(45_000)
    foreign: list[str] = []
    errors: list[str] = []
    tab.on(
        "request",
        lambda request: (
            foreign.append(request.url)
            if not request.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
            else None
        ),
    )
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    context.close()
    assert foreign == [], "the dashboard asks nothing from another host"
    assert errors == []


def _end_supervisor(home: Path) -> None:
    """End the supervisor, and the workers that would go on without it and keep the CPU for themselves."""
    lock = home / "supervisor.lock"
    if lock.exists() and is_locked(lock):
        os.kill(int(lock.read_text()), signal.SIGTERM)
        deadline_s = time.monotonic() + 15
        while is_locked(lock) and time.monotonic() < deadline_s:
            time.sleep(0.1)
    for path in home.glob("runs/*/worker.json"):
        worker = json.loads(path.read_text())
        end_processes(worker["pid"], worker["process_start_s"])
