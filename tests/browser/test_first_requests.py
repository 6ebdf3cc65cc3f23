"""What a browser asks for on its way to a page: nothing in vain, and nothing late that could be early."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.conftest import Dashboard


def test_a_tab_finds_the_server_at_once_and_has_the_scripts_of_its_page_before_the_content(
    quiet_dashboard: Dashboard, page: Page
) -> None:
    asked: list[str] = []
    refused: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(f"{quiet_dashboard.address}/runs?sort=created")
    expect(page.get_by_role("button", name="Launch a run")).to_be_visible()
    assert not refused
    [stream] = [place for place, url in enumerate(asked) if url.startswith("ws:")]
    assert asked[stream] == f"{quiet_dashboard.address.replace('http', 'ws')}/_stcore/stream"
    [table] = [place for place, url in enumerate(asked) if "/js/DataFrame." in url]
    assert table < stream
    # The address stays that of the page.
    assert page.url.startswith(f"{quiet_dashboard.address}/runs")
