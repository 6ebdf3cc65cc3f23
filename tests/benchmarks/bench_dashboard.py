"""What an open dashboard costs a measurement, and what a measurement costs the dashboard.

Two tables. Disturbance: the same init run measured with and without a live page open in Chromium, in turns (A B A B),
everything on this machine. Answer: seconds from a click to the complete page while a run is measured,
and for comparison a new tab, which loads Streamlit's own JavaScript first. Run it with ``make bench-dashboard`` on an
otherwise idle machine; it needs Chromium.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from playwright.sync_api import sync_playwright

from engine.measure.environment import environment
from tests.benchmarks.lab import Lab, lab
from tests.benchmarks.table import HEADER, machine_line, row, save
from tests.chromium import FLAGS, chromium_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

SPEC = {"model": "minimind-26m", "repeats": 100, "adapter": {"options": {"use_dora": True}}}
PAGES = {"Launch": "Launch", "Queue": "Queue", "Runs": "Runs", "Cases": "Cases", "Overview": "What adapters cost"}
COMPLETE = '[data-testid="stApp"][data-test-script-state="notRunning"]'


@contextmanager
def opened_page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(COMPLETE)
    yield page
    context.close()


def init_time_s(opened: Lab, spec: dict[str, Any]) -> float:
    """The median attach of one run, in seconds."""
    run = opened.wait(opened.submit(spec))[0]
    return statistics.median(metric.value for metric in run.metrics if metric.name == "init_time_s")


def answer_times_s(opened: Lab, browser: Browser, address: str, rounds: int) -> dict[str, list[float]]:
    """Seconds from a click in the navigation to the complete page while a run is measured, by page."""
    found: dict[str, list[float]] = {title: [] for title in PAGES}
    for _ in range(rounds):
        run_ids = opened.submit(SPEC, SPEC)
        time.sleep(1)
        with opened_page(browser, address) as page:
            for _ in range(2):
                for title, heading in PAGES.items():
                    started_s = time.monotonic()
                    page.get_by_role("link", name=title, exact=True).click()
                    page.get_by_role("heading", name=heading, level=1).wait_for()
                    page.wait_for_selector(COMPLETE)
                    found[title].append(time.monotonic() - started_s)
        opened.wait(run_ids)
    return found


def reload_times_s(opened: Lab, browser: Browser, address: str, rounds: int) -> list[float]:
    """Seconds until a newly opened browser tab shows a run's page, Streamlit's own JavaScript and charts included."""
    found = []
    for _ in range(rounds):
        run_ids = opened.submit(SPEC)
        time.sleep(1)
        started_s = time.monotonic()
        with opened_page(browser, f"{address}/run?id=1"):
            found.append(time.monotonic() - started_s)
        opened.wait(run_ids)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    path = chromium_path()
    if path is None:
        raise SystemExit("bench_dashboard needs Chromium; `make chromium` installs it")
    machine = environment()
    with lab() as opened, opened.dashboard() as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        without_s, with_s = [], []
        for _ in range(options.pairs):
            without_s.append(init_time_s(opened, SPEC))
            with opened_page(browser, f"{address}/queue"):
                with_s.append(init_time_s(opened, SPEC))
        answers_s = answer_times_s(opened, browser, address, options.rounds)
        reloads_s = reload_times_s(opened, browser, address, options.rounds)
        browser.close()
    ratios = [a / b for a, b in zip(with_s, without_s, strict=True)]
    print(machine_line(machine))
    print(HEADER)
    print(row("median attach of a run, no page open", without_s))
    print(row("median attach of a run, live Queue page open", with_s))
    print(row("ratio of each pair", ratios, target=1.03))
    for name, values_s in answers_s.items():
        print(row(f"click to complete {name} page, run being measured", values_s, target=1.0))
    print(row("new tab to complete Run page, run being measured", reloads_s))
    figures = {"without_page_s": without_s, "with_page_s": with_s, "page_answer_s": answers_s, "new_tab_s": reloads_s}
    print(f"saved {save('dashboard', machine, figures)}")


if __name__ == "__main__":
    main()
