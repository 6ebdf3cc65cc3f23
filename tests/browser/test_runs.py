"""One person narrows the list of runs down, shares the address, and takes some of them to Compare."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Locator, Page, expect

from db.session import open_database
from tests.app import stored
from tests.browser.conftest import Dashboard

# A busy machine may take long.
WAIT_MS = 30_000


def test_a_narrowed_list_is_shared_by_its_address_and_goes_to_compare(
    quiet_dashboard: Dashboard, page: Page, chromium: Browser
) -> None:
    database = open_database()
    stored.lora_and_dora(database)
    database.close()
    page.goto(f"{quiet_dashboard.address}/runs")
    expect(page.get_by_text("4 runs", exact=True)).to_be_visible(timeout=WAIT_MS)

    box = page.get_by_role("textbox", name="Filter")
    box.fill("adapter = dora AND (init_time_s < 1s")
    box.press("Enter")
    expect(page.get_by_text("A closing parenthesis is missing here.")).to_be_visible()
    expect(page.get_by_text(re.compile(r"^ {36}\^$", re.MULTILINE))).to_be_visible()
    box.fill("adapter = dora AND init_time_s < 1s")
    box.press("Enter")
    expect(page.get_by_text("2 runs", exact=True)).to_be_visible()
    page.get_by_role("combobox", name=re.compile("Sort by")).click()
    page.keyboard.type("init_time_s")
    page.get_by_role("option", name="init_time_s", exact=True).click()
    expect(page).to_have_url(re.compile("sort=init_time_s"))
    expect(ids(page)).to_have_text(["3", "4"], timeout=WAIT_MS)

    other = chromium.new_context()
    second = other.new_page()
    second.goto(page.url)
    expect(second.get_by_text("2 runs", exact=True)).to_be_visible(timeout=WAIT_MS)
    expect(second.get_by_role("textbox", name="Filter")).to_have_value("adapter = dora AND init_time_s < 1s")
    expect(ids(second)).to_have_text(["3", "4"], timeout=WAIT_MS)
    other.close()

    page.get_by_role("button", name="Compare all shown").click()
    expect(page.get_by_role("heading", name="Compare")).to_be_visible(timeout=WAIT_MS)
    expect(page).to_have_url(re.compile("ids=3%2C4|ids=3,4"))


def ids(page: Page) -> Locator:
    """The runs' ids in the order shown, as the grid tells them to screen readers."""
    return page.locator("table[role=grid] tbody [aria-colindex='1']")
