"""A meeting: run a case until its verdict, reload on the way, then show it on a projector."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.conftest import Dashboard

HANG_LIMIT_MS = 240_000
# Both cores may be busy with the sweep's first worker.
BUSY_MS = 20_000


def test_a_case_runs_to_its_verdict_survives_a_reload_and_is_presented(dashboard: Dashboard, page: Page) -> None:
    page.goto(dashboard.address)
    page.get_by_role("link", name="Cases").click()
    expect(page.get_by_role("heading", name="Cases")).to_be_visible()
    expect(page.get_by_text("Not enough data yet")).to_have_count(5)

    page.goto(f"{dashboard.address}/case?id=merge&size=test")
    expect(page.get_by_text("says nothing about the claim")).to_be_visible()
    page.get_by_role("button", name="Measure at test size").click()
    expect(page.get_by_text("runs measured")).to_be_visible(timeout=BUSY_MS)
    page.reload()
    expect(page.get_by_text("runs measured")).to_be_visible(timeout=BUSY_MS)
    expect(page.get_by_text("runs measured")).to_have_count(0, timeout=HANG_LIMIT_MS)

    expect(page.locator(".js-plotly-plot").first.get_by_text("Measured beside published")).to_be_visible()
    verdict = page.get_by_text("Holds", exact=False).or_(page.get_by_text("Does not hold here")).first
    expect(verdict).to_be_visible()
    expect(page.get_by_text("Rule:")).to_be_visible()
    expect(page.get_by_role("button", name="Measure again at test size")).to_be_enabled()

    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Present").click()
    projected = opened.value
    expect(projected.locator(".js-plotly-plot").first).to_be_visible(timeout=BUSY_MS)
    assert "embed=true" in projected.url
    expect(projected.get_by_role("link", name="Queue")).to_have_count(0)
    expect(projected.get_by_role("button", name="Measure again at test size")).to_have_count(0)
    projected.keyboard.press("Escape")
    expect(projected.get_by_role("link", name="Queue")).to_be_visible()
    assert "present=1" not in projected.url
    assert "id=merge" in projected.url
