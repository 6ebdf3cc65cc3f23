"""Who may talk to the dashboard's server: its own pages under a known name, and no page of anybody else's."""

from __future__ import annotations

import fcntl
import http.client
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from db.session import open_database
from tests.app import stored
from tests.browser.conftest import Dashboard

HOSTILE_LOG = (
    "loading <script>window.ran = 1</script><img src=x onerror='window.ran = 1'>\n"
    "```\n# heading [link](javascript:alert(1)) :red[word] $x^2$\n\x1b[31mred\x1b[0m\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A server with one run, whose log has markup in it. It starts no supervisor: its lock is held here."""
    home = tmp_path_factory.mktemp("home")
    database = open_database(f"sqlite:///{home / 'peft-lab.sqlite3'}")
    folder = home / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(HOSTILE_LOG)
    stored.store(database, stored.init_document(), stored.result([0.5]), folder=folder)
    database.close()
    with (home / "supervisor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = Dashboard(home)
        running.start()
        yield running
        running.kill()


def answer(server: Dashboard, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    """What the server says to a request with these headers; ``Host`` is its own unless given."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    return connection.getresponse()


def websocket(server: Dashboard, **headers: str) -> int:
    """The status with which the server answers somebody who wants to talk to it as its pages do."""
    asked = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec_WebSocket_Protocol": "streamlit",
    }
    return answer(server, "GET", "/_stcore/stream", **asked, **headers).status


def test_a_page_of_this_server_may_open_its_socket(server: Dashboard) -> None:
    assert websocket(server, Origin=server.address) == 101
    local = server.address.replace("127.0.0.1", "localhost")
    assert websocket(server, Origin=local, Host=local.removeprefix("http://")) == 101


@pytest.mark.parametrize(
    "origin", ["http://host.example", "https://host.example:8501", "http://127.0.0.1.host.example", "null"]
)
def test_a_page_from_elsewhere_may_not(server: Dashboard, origin: str) -> None:
    assert websocket(server, Origin=origin) == 403


def test_a_name_of_somebody_else_that_leads_here_is_not_served(server: Dashboard) -> None:
    """DNS rebinding: the browser takes the page for one of this server's, as its name now has this address."""
    port = server.address.rpartition(":")[2]
    assert websocket(server, Origin=f"http://host.example:{port}", Host=f"host.example:{port}") == 403


def test_a_page_from_elsewhere_may_not_read_what_the_server_answers(server: Dashboard) -> None:
    for path in ("/_stcore/health", "/_stcore/host-config", "/"):
        found = answer(server, "GET", path, Origin="http://host.example")
        assert found.status == 200
        assert found.headers["Access-Control-Allow-Origin"] is None, path


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_files_are_taken_from_pages_with_the_servers_own_token_only(server: Dashboard, method: str) -> None:
    path = "/_stcore/upload_file/some-session/some-file"
    assert answer(server, method, path, Content_Length="0").status == 403
    cookie = answer(server, "GET", "/_stcore/health").headers["Set-Cookie"].partition(";")[0]
    assert "_streamlit_xsrf" in cookie
    forged = {"Cookie": cookie, "X_Xsrftoken": "2|00000000|00000000000000000000000000000000|1700000000"}
    assert answer(server, method, path, Content_Length="0", **forged).status == 403
    # With the token it goes on to look for the session, which there is none of.
    own = {"Cookie": cookie, "X_Xsrftoken": cookie.partition("=")[2]}
    assert answer(server, method, path, Content_Length="0", **own).status != 403


def test_no_agent_may_drive_the_pages_without_a_browser(server: Dashboard) -> None:
    assert answer(server, "POST", "/_stcore/agent/interact", Content_Length="0").status in (403, 404, 405)


def test_the_log_of_a_run_is_shown_as_the_text_that_it_is(server: Dashboard, chromium: Browser) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{server.address}/run?id=1")
    page.get_by_role("tab", name="Log").click()
    shown = page.get_by_text("<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>")
    expect(shown.first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("# heading [link](javascript:alert(1)) :red[word] $x^2$").first).to_be_visible()
    assert page.evaluate("window.ran") is None
    assert page.locator("img[src='x'], a[href^='javascript'], .katex").count() == 0
    context.close()
