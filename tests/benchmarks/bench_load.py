"""Ten people browse while runs are measured: how long their pages take, and what that does to the measurements.

Three times, in turns: nobody looks, ten people whose browsers are elsewhere (sessions over WebSockets), and ten people
in ten tabs of a Chromium on this very machine, which draws for all of them with the cores that measure. Each person has
a tab open when it begins and goes to another page every few seconds. That first page is told apart: all ten are opened
at once, and it loads Streamlit's own scripts. Page times are those from the click until the page is complete in
Chromium, and the server's part of it for the sessions. A measured run counts as disturbed when its median attach is
more than 3 % from the median of the runs that nobody looked at; it is marked when its page says so (background CPU
above 10 %). Runs measured while nobody looked are judged in the same way, so that one can see what the machine does
alone. Run it with ``make bench-load`` on an otherwise idle machine; it needs Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
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
SITUATIONS = ("nobody", "sessions", "browsers")


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


@contextlib.contextmanager
def sessions(address: str, seen: Seen) -> Iterator[None]:
    """Ten people without browsers while the block runs."""
    start = Start()
    with ThreadPoolExecutor(PEOPLE) as people:
        found = [people.submit(as_session, address, seed, seen, start) for seed in range(PEOPLE)]
        with browsing(start):
            yield
    for one in found:
        one.result()


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


@contextlib.contextmanager
def browsers(address: str, seen: Seen) -> Iterator[None]:
    """Ten people with Chromium on this machine while the block runs."""
    start = Start()

    async def browse() -> None:
        # A thread for each who waits: the loop's own pool has fewer on a small machine.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(PEOPLE))
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
            await asyncio.gather(*(in_tab(browser, address, seed, seen, start) for seed in range(PEOPLE)))
            await browser.close()

    with ThreadPoolExecutor(1) as people:
        found = people.submit(asyncio.run, browse())
        found.add_done_callback(lambda done: start.give_up() if done.exception() else None)
        with browsing(start):
            yield
    found.result()


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

    def is_disturbed(self, alone_s: float) -> bool:
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
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60, help="how long each situation lasts in each round")
    parser.add_argument("--seeded", type=Path, help="folder in which the filled database is kept for the next time")
    options = parser.parse_args()
    if chromium_path() is None:
        raise SystemExit("bench_load needs Chromium; `make chromium` installs it")
    machine = environment()
    people: dict[str, Callable[[str, Seen], contextlib.AbstractContextManager[None]]] = {
        "sessions": sessions,
        "browsers": browsers,
    }
    seen = {name: Seen() for name in people}
    found: dict[str, list[Measured]] = {name: [] for name in SITUATIONS}
    with contextlib.ExitStack() as stack:
        folder = options.seeded or Path(stack.enter_context(TemporaryDirectory()))
        here = stack.enter_context(lab(seeding.seed(folder)))
        for _ in range(options.rounds):
            for name in SITUATIONS:
                with contextlib.ExitStack() as situation:
                    # A server of its own for each, so that none has what the others left in its memory.
                    if name in people:
                        board = situation.enter_context(here.dashboard())
                        situation.enter_context(people[name](board.address, seen[name]))
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
        disturbed = [run for run in runs if run.is_disturbed(alone_s)]
        unmarked = [run for run in disturbed if not run.is_marked()]
        marked = sum(run.is_marked() for run in runs)
        print(
            f"{name}: {len(runs)} runs, {marked} marked as disturbed, {len(disturbed)} off by more than "
            f"{DISTURBED:.0%}, {len(unmarked)} of these not marked"
        )
    return alone_s


if __name__ == "__main__":
    main()
