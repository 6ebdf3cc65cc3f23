"""How long visits take in a browser that nothing looks over the shoulder of: the pages of ``bench_scale``.

Playwright, with which ``bench_scale`` measures, follows each of a page's 130 requests, and its part of the time on two
cores is large. Here Chromium runs by itself; it is only told to open an address, and a script in the page notes when
the page is complete, by the same rule. Cold is the first visit after the server's start, in a new profile of a browser
that has just been started: nothing cached, nothing compiled. Warm are the reloads after it; from the second on
Chromium has the scripts compiled. Last, the server is started anew and that browser comes back: the server is cold,
and the browser has what it keeps of the last time, as for everybody who was here before. What an empty Streamlit page
takes is measured in the same way. Run it with ``make bench-dashboard`` on an otherwise idle machine; it needs Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.sync.client import ClientConnection, connect

from engine.measure.environment import environment
from tests.benchmarks import seeding
from tests.benchmarks.bench_scale import CHARTS, COMPARE_TARGET_S, READY, RUNS_TARGET_S, TABLE, compared
from tests.benchmarks.lab import Dashboard, lab, serving
from tests.benchmarks.table import HEADER, machine_line, row, save
from tests.chromium import FLAGS, chromium_path

VISITS = ("first visit", "reload", "second reload", "first visit to a new server")
RELOADS = 2
#: Starts a dashboard on a port, or on a free one.
Serve = Callable[[int | None], AbstractContextManager[Dashboard]]
# Chromium's own start is no part of a visit.
SETTLING_S = 1.0
TIMEOUT_S = 60.0
# Looks every few milliseconds from the start of the document, and keeps the moment in milliseconds of its clock.
NOTING = """(() => {
  const look = () => {
    let isReady = false;
    try { isReady = (%s)(%s); } catch { /* there is no body yet */ }
    if (isReady) window.completeAfterMs = performance.now(); else setTimeout(look, 5);
  };
  look();
})()"""


class Tab:
    """The only tab of a Chromium of its own, over its debugging socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                return dict(message["result"])

    def visit(self, method: str, **parameters: object) -> float:
        """Seconds from the start of a navigation until the page is complete."""
        self._value("delete window.completeAfterMs")
        self.call(method, **parameters)
        deadline_s = time.monotonic() + TIMEOUT_S
        while (found := self._value("window.completeAfterMs")) is None:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the page was not complete within {TIMEOUT_S:.0f} s")
            # Seldom, as each look costs the page some time.
            time.sleep(0.25)
        return float(found) / 1000

    def _value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression)["result"].get("value")


@contextlib.contextmanager
def alone(chromium: str) -> Iterator[Tab]:
    """A tab of a Chromium that has just been started with an empty profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [*FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1440,900"]
        silence = subprocess.DEVNULL
        process = subprocess.Popen([chromium, *flags, "about:blank"], stdout=silence, stderr=silence)
        try:
            told = Path(profile, "DevToolsActivePort")
            while not (told.is_file() and told.read_text()):
                time.sleep(0.1)
            time.sleep(SETTLING_S)
            port = told.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                [address] = (item["webSocketDebuggerUrl"] for item in json.load(answer) if item["type"] == "page")
            with connect(address, max_size=None) as socket:
                yield Tab(socket)
        finally:
            process.terminate()
            process.wait()


def visits(chromium: str, serve: Serve, path: str, marker: str) -> list[float]:
    """Seconds of each of ``VISITS``."""
    with alone(chromium) as tab:
        tab.call("Page.enable")
        noting = NOTING % (READY, json.dumps([path.partition("?")[0], marker]))
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=noting)
        with serve(None) as board:
            address = board.address + path
            found = [tab.visit("Page.navigate", url=address)]
            for _ in range(RELOADS):
                time.sleep(SETTLING_S)
                found.append(tab.visit("Page.reload"))
            tab.call("Page.navigate", url="about:blank")
        # On the same port, or it would be another site with nothing kept.
        with serve(urlsplit(board.address).port):
            time.sleep(SETTLING_S)
            found.append(tab.visit("Page.navigate", url=address))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeded", type=Path, help="folder in which the filled database is kept for the next time")
    options = parser.parse_args()
    chromium = chromium_path()
    if chromium is None:
        raise SystemExit("bench_visits needs Chromium; `make chromium` installs it")
    machine = environment()
    print(machine_line(machine))
    print(HEADER)
    seconds: dict[str, list[list[float]]] = {}

    def show(name: str, found: list[list[float]], target_s: float | None = None) -> None:
        seconds[name] = found
        for visit, values in zip(VISITS, zip(*found, strict=True), strict=True):
            print(row(f"{name}, {visit}", list(values), target_s), flush=True)

    with contextlib.ExitStack() as stack:
        folder = options.seeded or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = stack.enter_context(lab(seeding.seed(folder)))
        script = here.home / "empty.py"
        script.write_text("import streamlit as st\nst.title('Empty')\n")
        nothing = partial(serving, here.home, ["streamlit", "run", str(script)])
        show("empty Streamlit page", [visits(chromium, nothing, "/", "h1") for _ in range(options.rounds)])
        pages = {"Runs": ("/runs", TABLE, RUNS_TARGET_S)}
        pages |= {name: (address, CHARTS, COMPARE_TARGET_S) for name, address in compared(here).items()}
        for name, (path, marker, target_s) in pages.items():
            found = [visits(chromium, here.dashboard, path, marker) for _ in range(options.rounds)]
            show(name, found, target_s)
    print(f"saved {save('visits', machine, {'runs': seeding.RUNS, 'seconds': seconds})}")


if __name__ == "__main__":
    main()
