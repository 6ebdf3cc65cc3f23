"""Ten people browse while runs are measured: how long their pages take, and what that does to the measurements.

In turns: nobody looks; ten people whose browsers are elsewhere (sessions over WebSockets); the same with one of the ten
in a Chromium on this very machine, to see what a person waits for; and all ten in tabs of a Chromium here, which draws
for all of them with the cores that measure. Each person has a tab open when it begins and goes to another page every
few seconds. That first page is told apart: all are opened at once, and it loads Streamlit's own scripts. Page times are
those from the click until the page is complete in Chromium, and the server's part of it for the sessions. Runs count as
disturbed by how far the median of their median attaches is from that of the runs that nobody looked at; a run is marked
when its page says so (background CPU above 10 %). Single runs off by more than 3 % are counted too, those that nobody
looked at as well, so that one can see what the machine does alone. Run it with ``make bench-load`` on an otherwise idle
machine; it needs Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from playwright.async_api import async_playwright

from engine.cases.evidence import DISTURBED_SHARE
from engine.measure.environment import environment
from tests.benchmarks import seeding
from tests.benchmarks.bench_dashboard import SPEC
from tests.benchmarks.bench_scale import READY
from tests.benchmarks.lab import Lab, lab
from tests.benchmarks.table import HEADER, machine_line, row, save
from tests.benchmarks.visitors import Visitor
from tests.chromium import FLAGS, chromium_path

if TYPE_CHECKING:
    from playwright.async_api import Browser

PEOPLE = 10
PAGE_TARGET_S, DISTURBED = 1.5, 0.03
#: Seconds that a person stays on a page.
STAYS_S = (5.0, 15.0)
#: Pages of the navigation, by the name of their link, and the path they have.
PAGES = {
    "Overview": "/",
    "Cases": "/cases",
    "Launch": "/launch",
    "Queue": "/queue",
    "Runs": "/runs",
    "System": "/system",
}
FIRST_PAGE_LIMIT_S = 120.0
#: How many of the people have their browser on this machine, by situation; None where nobody looks.
SITUATIONS: dict[str, int | None] = {"nobody": None, "elsewhere": 0, "one here": 1, "all here": PEOPLE}


class Start:
    """Nobody goes on before all have their first page: opening a tab costs more than any page after it."""

    def __init__(self) -> None:
        self._all_here = threading.Barrier(PEOPLE + 1)
        self.ended = threading.Event()

    def wait(self) -> None:
        """Say that one is here, and wait for the others.

        Raises:
            threading.BrokenBarrierError: when one of them will never come.
        """
        self._all_here.wait(FIRST_PAGE_LIMIT_S)

    def give_up(self) -> None:
        self._all_here.abort()


@dataclass
class Seen:
    """What the people of one situation waited for, in seconds: a new tab's first page, and every later page."""

    first_s: list[float] = field(default_factory=list)
    pages_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PAGES})

    @property
    def all_pages_s(self) -> list[float]:
        return [seconds for values in self.pages_s.values() for seconds in values]


def as_session(address: str, seed: int, seen: Seen, start: Start) -> None:
    """One person without a browser, until told to stop."""
    draw = random.Random(seed)
    with Visitor(address) as visitor:
        seen.first_s.append(visitor.open("/"))
        start.wait()
        while not start.ended.is_set():
            visitor.look(draw.uniform(*STAYS_S))
            name = draw.choice(list(PAGES))
            seen.pages_s[name].append(visitor.open(PAGES[name]))


async def in_tab(browser: Browser, address: str, seed: int, seen: Seen, start: Start) -> None:
    """One person in a tab of their own, which has cached nothing, until told to stop."""
    draw = random.Random(seed)
    context = await browser.new_context(viewport={"width": 1440, "height": 900})
    page = await context.new_page()
    started_s = time.monotonic()
    await page.goto(address, wait_until="commit")
    await page.wait_for_function(READY, arg=["/", "h1"], timeout=FIRST_PAGE_LIMIT_S * 1000)
    seen.first_s.append(time.monotonic() - started_s)
    await asyncio.to_thread(start.wait)
    at = "Overview"
    while not start.ended.is_set():
        await asyncio.sleep(draw.uniform(*STAYS_S))
        # Nobody goes to the page that they are on: nothing would change.
        at = draw.choice([name for name in PAGES if name != at])
        started_s = time.monotonic()
        await page.get_by_role("link", name=at, exact=True).click()
        await page.wait_for_function(READY, arg=[PAGES[at], "h1"], timeout=60_000)
        seen.pages_s[at].append(time.monotonic() - started_s)
    await context.close()


async def in_tabs(address: str, tabs: int, seen: Seen, start: Start) -> None:
    """So many people in tabs of one Chromium, until told to stop."""
    # A thread for each who waits: the loop's own pool has fewer on a small machine.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(PEOPLE))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        await asyncio.gather(*(in_tab(browser, address, seed, seen, start) for seed in range(tabs)))
        await browser.close()


@contextlib.contextmanager
def people(address: str, tabs: int, seen: Seen) -> Iterator[None]:
    """Ten people while the block runs, so many of them in Chromium here: ``seen`` is theirs, or everybody's if none."""
    start = Start()
    of_sessions = Seen() if tabs else seen
    with ThreadPoolExecutor(PEOPLE + 1) as pool:
        found = [pool.submit(as_session, address, seed, of_sessions, start) for seed in range(tabs, PEOPLE)]
        if tabs:
            found.append(pool.submit(asyncio.run, in_tabs(address, tabs, seen, start)))
        for one in found:
            one.add_done_callback(lambda done: start.give_up() if done.exception() else None)
        with browsing(start):
            yield
    for one in found:
        one.result()


@contextlib.contextmanager
def browsing(start: Start) -> Iterator[None]:
    """From when all are there until the block ends; then they are told to stop."""
    try:
        start.wait()
        yield
    finally:
        start.ended.set()
        start.give_up()


@dataclass
class Measured:
    """One run: its median attach in seconds, and which share of the CPU others used meanwhile."""

    median_s: float
    background_share: float

    def is_marked(self) -> bool:
        return self.background_share > DISTURBED_SHARE

    def is_off(self, alone_s: float) -> bool:
        return abs(self.median_s / alone_s - 1) > DISTURBED


def measured(here: Lab) -> Measured:
    """Measure one run and wait for it."""
    run = here.wait(here.submit(SPEC))[0]
    median_s = statistics.median(metric.value for metric in run.metrics if metric.name == "init_time_s")
    return Measured(median_s, run.background_cpu_share or 0.0)


def measured_for(here: Lab, seconds: float) -> list[Measured]:
    """Runs, one after the other, for so long."""
    until_s = time.monotonic() + seconds
    found = []
    while time.monotonic() < until_s:
        found.append(measured(here))
    return found


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=45, help="how long each situation lasts in each round")
    parser.add_argument("--seeded", type=Path, help="folder in which the filled database is kept for the next time")
    options = parser.parse_args()
    if chromium_path() is None:
        raise SystemExit("bench_load needs Chromium; `make chromium` installs it")
    machine = environment()
    seen = {name: Seen() for name, tabs in SITUATIONS.items() if tabs is not None}
    found: dict[str, list[Measured]] = {name: [] for name in SITUATIONS}
    with contextlib.ExitStack() as stack:
        folder = options.seeded or Path(stack.enter_context(TemporaryDirectory()))
        here = stack.enter_context(lab(seeding.seed(folder)))
        for _ in range(options.rounds):
            for name, tabs in SITUATIONS.items():
                with contextlib.ExitStack() as situation:
                    # A server of its own for each, so that none has what the others left in its memory.
                    if tabs is not None:
                        board = situation.enter_context(here.dashboard())
                        situation.enter_context(people(board.address, tabs, seen[name]))
                    found[name] += measured_for(here, options.seconds)
    print(machine_line(machine))
    print(HEADER)
    report_pages(seen)
    alone_s = report_runs(found)
    figures = {
        "alone_median_s": alone_s,
        "runs": {name: [[run.median_s, run.background_share] for run in runs] for name, runs in found.items()},
        "first_pages_s": {name: one.first_s for name, one in seen.items()},
        "pages_s": {name: one.pages_s for name, one in seen.items()},
    }
    print(f"saved {save('load', machine, figures)}")


def report_pages(seen: dict[str, Seen]) -> None:
    """Print what people waited for."""
    for name, one in seen.items():
        print(row(f"{name}: first page of a new tab", one.first_s))
        for page, values in one.pages_s.items():
            if values:
                print(row(f"{name}: {page}", values))
        pages = one.all_pages_s
        verdict = "reached" if p95(pages) <= PAGE_TARGET_S else "MISSED"
        print(f"{name}: p95 of {len(pages)} pages {p95(pages):.2f} s  <= {PAGE_TARGET_S:g}: {verdict}")


def report_runs(found: dict[str, list[Measured]]) -> float:
    """Print what happened to the measured runs; returns the median attach while nobody looked, in seconds."""
    alone_s = statistics.median(run.median_s for run in found["nobody"])
    for name, runs in found.items():
        print(row(f"{name}: attach against nobody's median", [run.median_s / alone_s for run in runs]))
        unmarked = [run for run in runs if not run.is_marked()]
        off = [run for run in unmarked if run.is_off(alone_s)]
        if unmarked:
            change = statistics.median(run.median_s for run in unmarked) / alone_s - 1
            verdict = "reached" if abs(change) <= DISTURBED else "MISSED"
            print(f"{name}: disturbed by {change:+.1%}  within {DISTURBED:.0%}: {verdict}")
        print(
            f"{name}: {len(runs)} runs, {len(runs) - len(unmarked)} marked as disturbed, {len(off)} of the others off "
            f"by more than {DISTURBED:.0%}"
        )
    return alone_s


if __name__ == "__main__":
    main()
