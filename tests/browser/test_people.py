"""Beyond this machine: signing in at a real OpenID Connect provider, who may launch then, and who may only look."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import oidc_provider_mock
import pytest
from oidc_provider_mock import User
from playwright.sync_api import Browser, Page, expect

from db import actions, runs
from db.session import open_database
from tests.browser.conftest import Dashboard

USERS = [
    User(sub="ada", claims={"email": "Ada@example.org", "email_verified": True}),
    User(sub="bob", claims={"email": "bob@example.org", "email_verified": True}),
    User(sub="eve", claims={"email": "ada@example.org", "email_verified": False}),
]
MEASURE = "Measure LoRA against DoRA here"


@pytest.fixture
def shared(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A dashboard for other machines, too, with sign-in; Ada may launch. Nobody works on its queue."""
    monkeypatch.setenv("PEFT_LAB_LAUNCHERS", "ada@example.org")
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((home / "supervisor.lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        provider = stack.enter_context(oidc_provider_mock.run_server_in_thread(user_claims=USERS))
        secrets = tmp_path / "secrets.toml"
        secrets.write_text(
            f"""[auth]
            redirect_uri = "http://127.0.0.1:{{port}}/oauth2callback"
            cookie_secret = "only for this test, and long enough"
            client_id = "peft-lab"
            client_secret = "known to the provider"
            server_metadata_url = "http://localhost:{provider.server_port}/.well-known/openid-configuration"
            """
        )
        dashboard = Dashboard(home, "--server.address=0.0.0.0", f"--secrets.files={secrets}")
        dashboard.start()
        stack.callback(dashboard.kill)
        yield dashboard


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Page]:
    """A tab in which the provider's pages come without the style sheet that they ask another host for."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.route("https://**", lambda route: route.abort())
    yield page
    context.close()


def sign_in(page: Page, name: str) -> None:
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name=name, exact=True).click()
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()


def done() -> list[tuple[str, str]]:
    """Who did what so far, and that there are runs only as somebody launched them."""
    database = open_database()
    with database.reading() as session:
        found = [(row.person, row.action) for row in actions.recent(session)]
        assert bool(runs.list_runs(session)) is bool(found)
    database.close()
    return found


def test_only_who_signed_in_with_a_verified_address_of_the_list_may_launch(shared: Dashboard, tab: Page) -> None:
    tab.goto(shared.address)
    expect(tab.get_by_text("View only").first).to_be_visible()
    expect(tab.get_by_role("button", name=MEASURE)).to_be_disabled()

    for name in ("bob", "eve"):
        sign_in(tab, name)
        expect(tab.get_by_text("View only").first).to_be_visible()
        expect(tab.get_by_role("button", name=MEASURE)).to_be_disabled()
        tab.get_by_role("button", name="Sign out").click()
        tab.get_by_role("button", name="End session").click()
        expect(tab.get_by_role("button", name="Sign in")).to_be_visible()
    assert done() == []

    sign_in(tab, "ada")
    expect(tab.get_by_text("View only")).to_have_count(0)
    tab.get_by_role("button", name=MEASURE).click()
    expect(tab.get_by_text("of 4 runs measured")).to_be_visible()
    assert done() == [("Ada@example.org", "launch")]

    tab.get_by_role("link", name="System").click()
    expect(tab.get_by_role("heading", name="Who did what")).to_be_visible()
    tab.get_by_role("button", name="Sign out").click()
    tab.get_by_role("button", name="End session").click()
    expect(tab.get_by_text("View only").first).to_be_visible()
    tab.get_by_role("link", name="Queue").click()
    expect(tab.get_by_role("button", name="Cancel all waiting")).to_be_disabled()


def test_on_this_machine_nobody_signs_in_and_a_proxy_makes_view_only_of_it(
    quiet_dashboard: Dashboard, page: Page
) -> None:
    page.goto(quiet_dashboard.address)
    expect(page.get_by_role("button", name=MEASURE)).to_be_enabled()
    expect(page.get_by_text("View only")).to_have_count(0)
    page.set_extra_http_headers({"X-Forwarded-For": "192.0.2.9"})
    page.goto(f"{quiet_dashboard.address}/launch")
    expect(page.get_by_text("View only").first).to_be_visible()
    expect(page.get_by_text("Only who is on its own machine").first).to_be_visible()
