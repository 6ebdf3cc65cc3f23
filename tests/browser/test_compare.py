"""Two sweeps compared: by keyboard, the address opened by somebody else, and the report opened without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from db.session import open_database
from tests.app import stored
from tests.browser.conftest import Dashboard

DONE = '[data-testid="stApp"][data-test-script-state="notRunning"]'
# A busy machine may take long.
WAIT_MS = 30_000


def two_sweeps() -> str:
    """Four replicas each of LoRA and DoRA, stored; their ids as the address has them."""
    database = open_database()
    ids = [
        stored.store(
            database,
            stored.init_document(dora=dora),
            stored.result([seconds * (1 + step / 100)] * 3, peak_bytes=peak * 2**20),
            sweep=f"{seconds} s",
        )
        for dora, seconds, peak in ((False, 0.2, 50), (True, 1.5, 200))
        for step in range(4)
    ]
    database.close()
    return ",".join(map(str, ids))


def choose(page: Page, label: str, text: str) -> None:
    """Pick an option of a select box with the keyboard alone."""
    box = page.get_by_role("combobox", name=label)
    box.focus()
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.wait_for_selector(DONE)


def test_the_address_shows_somebody_else_the_same_comparison(
    quiet_dashboard: Dashboard, page: Page, chromium: Browser
) -> None:
    page.goto(f"{quiet_dashboard.address}/compare?ids={two_sweeps()}")
    expect(page.get_by_text("DoRA · Stock PEFT is 7.50× slower than LoRA · Stock PEFT")).to_be_visible(timeout=WAIT_MS)
    choose(page, "Baseline", "DoRA")
    expect(page.get_by_text("LoRA · Stock PEFT is 7.50× faster than DoRA · Stock PEFT")).to_be_visible(timeout=WAIT_MS)
    choose(page, "Metric", "Peak extra memory")
    sentence = "LoRA · Stock PEFT is 4.00× smaller than DoRA · Stock PEFT"
    expect(page.get_by_text(sentence)).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("radio", name="Two metrics").click()
    expect(page.locator(".main-svg").first).to_be_visible(timeout=WAIT_MS)

    other = chromium.new_context()
    tab = other.new_page()
    tab.goto(page.url)
    expect(tab.get_by_text(sentence)).to_be_visible(timeout=WAIT_MS)
    expect(tab.get_by_role("radio", name="Two metrics")).to_be_checked(timeout=WAIT_MS)
    other.close()


def test_what_is_chosen_below_the_answer_stays_in_the_address_when_that_gets_shorter(
    quiet_dashboard: Dashboard, page: Page
) -> None:
    several = two_sweeps()
    database = open_database()
    single = stored.store(database, stored.init_document(strategy="factored_norm", dora=True), stored.result([0.5] * 3))
    database.close()
    page.goto(f"{quiet_dashboard.address}/compare?ids={several},{single}")
    expect(page.get_by_text("DoRA · Stock PEFT is 7.50× slower than LoRA · Stock PEFT")).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("radio", name="Two metrics").click()
    expect(page).to_have_url(re.compile("chart=Two"))
    page.get_by_role("searchbox", name="Search").fill("use_")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("find=use_"))
    choose(page, "Baseline", "Factored")
    expect(page.get_by_text("Not enough data to decide on 2 groups")).to_be_visible(timeout=WAIT_MS)
    expect(page).to_have_url(re.compile("baseline=DoRA"))
    expect(page).to_have_url(re.compile("chart=Two"))
    expect(page).to_have_url(re.compile("find=use_"))


def test_the_report_opens_without_a_network(
    quiet_dashboard: Dashboard, page: Page, chromium: Any, tmp_path: Path
) -> None:
    page.goto(f"{quiet_dashboard.address}/compare?ids={two_sweeps()}")
    expect(page.locator(".main-svg").first).to_be_visible(timeout=WAIT_MS)
    with page.expect_download() as download:
        page.get_by_role("button", name="HTML report").click()
    path = tmp_path / "report.html"
    download.value.save_as(path)

    offline = chromium.new_context(offline=True)
    tab = offline.new_page()
    tab.goto(path.as_uri())
    expect(tab.get_by_text("DoRA · Stock PEFT is 7.50× slower than LoRA · Stock PEFT")).to_be_visible(timeout=WAIT_MS)
    expect(tab.get_by_text("Wilcoxon")).to_be_visible(timeout=WAIT_MS)
    expect(tab.locator(".main-svg").first).to_be_visible(timeout=WAIT_MS)
    offline.close()
