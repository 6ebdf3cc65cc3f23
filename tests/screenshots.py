"""Pictures of every page, light and dark, into ``docs/screenshots/``: ``make screenshots``.

Shows the bundled sample data and a few real runs of the smallest model, in a home folder of its own that is removed
afterwards. Checks nothing; a page that never becomes complete ends it with the page's name.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from app.widgets import samples
from db import queue, runs, transfer
from engine.catalog.documents import document_spec
from tests.benchmarks.lab import Lab, lab
from tests.chromium import FLAGS, chromium_path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "screenshots"
WIDTH, HEIGHT, TALLEST = 1440, 900, 2400
COLOURS = 128
COMPARED = 24
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
REAL_RUNS = (
    {"model": "tiny-test"},
    {"model": "tiny-test", "adapter": {"options": {"use_dora": True}}},
    {"model": "tiny-test", "adapter": {"options": {"use_dora": True}}, "strategy": "zero_b_norm"},
)
# Long enough to be running, and to leave some waiting, while the Queue page is taken.
BUSY = {"model": "minimind-26m", "repeats": 100, "adapter": {"options": {"use_dora": True}}}
# True once the script has ended, nothing is being loaded or predicted, and every chart is drawn.
COMPLETE = """() => {
  const missing = document.querySelector('[data-testid="stSkeleton"], [data-testid="stSpinner"]');
  const charts = [...document.querySelectorAll('[data-testid="stPlotlyChart"]')];
  return document.querySelector('[data-testid="stApp"][data-test-script-state="notRunning"]') && !missing
    && !/predictions? to come/.test(document.body.innerText)
    && document.querySelector('h1') && charts.every(chart => chart.querySelector('.main-svg'));
}"""


@contextmanager
def tab(browser: Browser, theme: Theme) -> Iterator[Page]:
    """A tab whose reader prefers this theme."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()


def sample_runs(rows: list[runs.RunRow], kind: str) -> list[runs.RunRow]:
    """The sample runs of one kind that succeeded."""
    return [row for row in rows if (row.origin, row.kind, row.state) == (samples.ORIGIN, kind, "succeeded")]


def compared(rows: list[runs.RunRow], kind: str) -> str:
    """The address of Compare with the sample runs of one kind on the model and device that has most of them."""
    fitting = sample_runs(rows, kind)
    ((place, _),) = Counter((row.model, row.device) for row in fitting).most_common(1)
    ids = sorted(row.id for row in fitting if (row.model, row.device) == place)
    return "/compare?ids=" + ",".join(map(str, ids[:COMPARED]))


def addresses(rows: list[runs.RunRow]) -> dict[str, str]:
    """Every page by the name of its picture."""
    # What has the most to show: memory by category, the step's parts, and gradients in every block.
    shown = min(row.id for row in sample_runs(rows, "train") if row.adapter == "LoRA")
    return {
        "overview": "/?from=sample",
        "cases": "/cases?from=sample",
        "case": "/case?id=init&from=sample",
        "launch": "/launch",
        "runs": "/runs",
        "compare": compared(rows, "init"),
        "run": f"/run?id={shown}",
        "merge-files": "/merge_files",
        "system": "/system",
        "predict": "/predict",
    }


def take(page: Page, address: str, name: str) -> None:
    """One picture of the whole page, as high as the page is."""
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    page.goto(address)
    page.wait_for_function(COMPLETE)
    height = page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": max(HEIGHT, min(int(height), TALLEST))})
    page.wait_for_function(COMPLETE)
    # Charts follow the new size in their next frames.
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled", caret="hide")))
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(FOLDER / f"{name}.png", optimize=True)


def take_all(here: Lab, browser: Browser, address: str) -> None:
    """Every page in both themes; the Queue last, while something is measured."""
    with here.database.reading() as session:
        pages = addresses(runs.list_runs(session))
    for theme in THEMES:
        with tab(browser, theme) as page:
            for name, path in pages.items():
                take(page, address + path, f"{name}-{theme}")
    busy = here.submit(*[BUSY] * 4)
    for theme in THEMES:
        with tab(browser, theme) as page:
            take(page, f"{address}/queue", f"queue-{theme}")
    with here.database.writing() as session:
        queue.request_cancel(session, busy)
    here.wait_until_idle()


def main() -> None:
    path = chromium_path()
    if path is None:
        raise SystemExit("screenshots need Chromium; `make chromium` installs it")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with lab() as here, here.dashboard() as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        here.wait(here.submit(*REAL_RUNS))
        # Not by the pages' own function, which is for visitors.
        found = transfer.check_file(samples.FILE.read_bytes(), document_spec, largest_bytes=2**28)
        with here.database.writing() as session:
            transfer.store_runs(session, found, origin=samples.ORIGIN)
        take_all(here, browser, address)
        browser.close()


if __name__ == "__main__":
    main()
