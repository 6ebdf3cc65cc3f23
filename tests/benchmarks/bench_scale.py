"""How the dashboard answers over 10,000 stored runs with 1,000,000 metric values, and the memory that it needs then.

Measures in Chromium, from the click or the typed address until the page's script has ended and its table (Runs) or all
of its charts (Compare) are drawn. Cold is the first visit after the server's start, in a browser without a cache; warm
is a later one: a reload of the tab, and a change of page inside it. What an empty Streamlit page takes on the same
machine is measured too, since no page can be faster. All this under Playwright, which follows each request that a page
makes; ``bench_visits`` measures the first visits and reloads of a browser that runs by itself. Memory is that of the
Streamlit process (RSS) while five people walk over the pages. Does not measure anything that runs in workers. Run it
with ``make bench-dashboard`` on an otherwise idle machine; it needs Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from playwright.sync_api import sync_playwright

from db import runs
from engine.measure.environment import environment
from tests.benchmarks import seeding
from tests.benchmarks.lab import Dashboard, Lab, lab, serving
from tests.benchmarks.table import HEADER, machine_line, row, save
from tests.chromium import FLAGS, chromium_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PEOPLE = 5
COMPARED = 50
RUNS_TARGET_S, COMPARE_TARGET_S, FILTER_TARGET_S, MEMORY_TARGET_MB = 1.0, 1.5, 0.5, 600.0
# How often each person sees every page.
WALKS = 2
FILTERS = {
    "filter on columns": "state = succeeded and kind = train",
    "filter with or and parentheses": "kind = inference and (adapter = DoRA or adapter = LoRA)",
    "filter on a spec field and a metric": "train.context_length >= 2048 and step_time_s < 8s",
    "filter on the environment and tags": "environment.packages.peft = 0.20.0 and not tag in (nightly, paper)",
    "filter on a metric of a variant": "decode_tokens_per_s@merged > 12 and inference.batch_size > 1",
}
TABLE = 'canvas[data-testid="data-grid-canvas"]'
CHARTS = ".js-plotly-plot .main-svg"
# The line that says how many runs pass.
COUNT = """() => [...document.querySelectorAll('[data-testid="stCaptionContainer"]')]
  .map(node => node.innerText).find(text => /^[\\d,]+ runs?$/.test(text))"""
# True once the script of the page at this path has ended and everything of its kind is drawn.
READY = """([path, marker]) => {
  const app = document.querySelector('[data-testid="stApp"][data-test-script-state="notRunning"]');
  const waiting = document.querySelector('[data-testid="stSkeleton"], [data-testid="stSpinner"]');
  const charts = [...document.querySelectorAll('[data-testid="stPlotlyChart"]')];
  return location.pathname === path && app && !waiting && document.querySelector(marker)
    && charts.every(chart => chart.querySelector('.main-svg'));
}"""


def timed(page: Page, path: str, marker: str, act: Callable[[], object]) -> float:
    """Seconds from the start of ``act`` until the page at ``path`` is complete."""
    started_s = time.monotonic()
    act()
    page.wait_for_function(READY, arg=[path, marker], timeout=60_000)
    return time.monotonic() - started_s


def opened(page: Page, address: str, path: str, marker: str) -> float:
    """Seconds until the tab shows the page at an address that was typed."""
    return timed(page, path.partition("?")[0], marker, lambda: page.goto(address + path, wait_until="commit"))


@contextlib.contextmanager
def tab(browser: Browser) -> Iterator[Page]:
    """A tab of a browser that has cached nothing."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context.new_page()
    context.close()


def empty_page(browser: Browser, rounds: int) -> dict[str, list[float]]:
    """What Streamlit itself takes: a script of one line."""
    cold_s, warm_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "empty.py")
        script.write_text("import streamlit as st\nst.title('Empty')\n")
        for _ in range(rounds):
            with serving(Path(folder), ["streamlit", "run", str(script)]) as board, tab(browser) as page:
                cold_s.append(opened(page, board.address, "/", "h1"))
                warm_s.append(opened(page, board.address, "/", "h1"))
    return {"empty Streamlit page, first visit": cold_s, "empty Streamlit page, reload": warm_s}


def visits(here: Lab, browser: Browser, path: str, marker: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to complete of the first visit after the server's start, and of a reload after it."""
    cold_s, reload_s = [], []
    for _ in range(rounds):
        with here.dashboard() as board, tab(browser) as page:
            cold_s.append(opened(page, board.address, path, marker))
            reload_s.append(opened(page, board.address, path, marker))
    return cold_s, reload_s


def changes_of_page(page: Page, address: str, path: str, marker: str, rounds: int) -> list[float]:
    """Seconds to come back to a page inside its tab, from the Queue page."""
    opened(page, address, path, marker)
    found = []
    for _ in range(rounds):
        timed(page, "/queue", "h1", page.get_by_role("link", name="Queue", exact=True).click)
        found.append(timed(page, path.partition("?")[0], marker, page.go_back))
    return found


def filters(page: Page, address: str, rounds: int) -> dict[str, list[float]]:
    """Seconds from Enter in the filter box until the count and the table show what passes."""
    opened(page, address, "/runs", TABLE)
    box = page.get_by_role("textbox", name="Filter", exact=True)
    found: dict[str, list[float]] = {name: [] for name in FILTERS}
    for _ in range(rounds):
        for name, values in found.items():
            before = page.evaluate(COUNT)
            box.fill(FILTERS[name])
            started_s = time.monotonic()
            box.press("Enter")
            page.wait_for_function(f"before => ({COUNT})() !== before", arg=before)
            page.wait_for_function(READY, arg=["/runs", TABLE])
            values.append(time.monotonic() - started_s)
    return found


def memory_mb(board: Dashboard, browser: Browser, paths: list[str]) -> tuple[float, list[float]]:
    """The Streamlit process's memory in MB (10^6 bytes): after its first page, and while five people walk about.

    Each person visits other pages than the others do at the same time.
    """
    process = psutil.Process(board.pid)
    with contextlib.ExitStack() as stack:
        pages = [stack.enter_context(tab(browser)) for _ in range(PEOPLE)]
        opened(pages[0], board.address, "/", "h1")
        alone = process.memory_info().rss / 1e6
        with sampled(process) as samples:
            for step in range(WALKS * len(paths)):
                for person, page in enumerate(pages):
                    page.goto(board.address + paths[(step + person) % len(paths)], wait_until="commit")
                for person, page in enumerate(pages):
                    path = paths[(step + person) % len(paths)].partition("?")[0]
                    page.wait_for_function(READY, arg=[path, "h1"], timeout=60_000)
    return alone, samples


@contextlib.contextmanager
def sampled(process: psutil.Process, every_s: float = 0.1) -> Iterator[list[float]]:
    """The process's memory in MB, read all the time while the block runs."""
    samples: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            samples.append(process.memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()


def compared(here: Lab) -> dict[str, str]:
    """Addresses of Compare with 50 runs: of one kind, and of all."""
    with here.database.reading() as session:
        trains = runs.list_runs(session, states=["succeeded"], kinds=["train"], limit=COMPARED)
        mixed = runs.list_runs(session, states=["succeeded"], limit=COMPARED)
    return {
        f"Compare of {COMPARED} train runs": "/compare?ids=" + ",".join(str(run.id) for run in trains),
        f"Compare of {COMPARED} runs of all kinds": "/compare?ids=" + ",".join(str(run.id) for run in mixed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeded", type=Path, help="folder in which the filled database is kept for the next time")
    options = parser.parse_args()
    path = chromium_path()
    if path is None:
        raise SystemExit("bench_scale needs Chromium; `make chromium` installs it")
    machine = environment()
    print(machine_line(machine))
    print(HEADER)
    seconds: dict[str, list[float]] = {}

    def show(name: str, values: list[float], target: float | None = None) -> None:
        seconds[name] = values
        print(row(name, values, target), flush=True)

    with contextlib.ExitStack() as stack:
        folder = options.seeded or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = stack.enter_context(lab(seeding.seed(folder)))
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=path, args=FLAGS)
        addresses = compared(here)
        for name, values in empty_page(browser, options.rounds).items():
            show(name, values)
        pages = {"Runs": ("/runs", TABLE, RUNS_TARGET_S)}
        pages |= {name: (address, CHARTS, COMPARE_TARGET_S) for name, address in addresses.items()}
        for name, (address, marker, target_s) in pages.items():
            cold_s, reload_s = visits(here, browser, address, marker, options.rounds)
            show(f"{name}, first visit", cold_s, target_s)
            show(f"{name}, reload", reload_s, target_s)
        with here.dashboard() as board, tab(browser) as page:
            for name, (address, marker, target_s) in pages.items():
                values = changes_of_page(page, board.address, address, marker, options.rounds)
                show(f"{name}, from another page", values, target_s)
            for name, values in filters(page, board.address, options.rounds).items():
                show(name, values, FILTER_TARGET_S)
        with here.dashboard() as board:
            walk = ["/", "/runs", "/cases", "/queue", "/launch", *addresses.values(), "/run?id=1"]
            alone_mb, samples_mb = memory_mb(board, browser, walk)
        browser.close()
    print(row("MB of the Streamlit process, one person", [alone_mb]))
    print(row(f"MB of the Streamlit process, most, {PEOPLE} people", [max(samples_mb)], MEMORY_TARGET_MB))
    figures = {
        "runs": seeding.RUNS,
        "metric_values": seeding.VALUES,
        "seconds": seconds,
        "one_person_mb": alone_mb,
        "five_people_mb": samples_mb,
    }
    print(f"saved {save('scale', machine, figures)}")


if __name__ == "__main__":
    main()
