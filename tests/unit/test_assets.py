"""What the dashboard's server sends of Streamlit's own files, and what it adds to a page's HTML."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from streamlit.file_util import get_static_dir

from app.assets import ELEMENTS, Assets, hints

FOLDER = Path(get_static_dir())
INDEX = (FOLDER / "index.html").read_bytes()
SCRIPTS = FOLDER / "static" / "js"


class Behind:
    """What stands behind the middleware; it answers everything with one page, as far as it may packed, and keeps what
    it was asked for.
    """

    asked: list[str]
    status: int

    async def __call__(self, scope: Any, _receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        self.asked.append(scope["path"])
        page = gzip.compress(INDEX) if b"gzip" in dict(scope["headers"]).get(b"accept-encoding", b"") else INDEX
        headers = [(b"content-type", b"text/html"), (b"Content-Length", str(len(page)).encode()), (b"etag", b'"1"')]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for start in range(0, len(page), 4096):
            more = start + 4096 < len(page)
            await send({"type": "http.response.body", "body": page[start : start + 4096], "more_body": more})


BEHIND = Behind()
ASSETS = Assets(BEHIND)


def answer(path: str, method: str = "GET", status: int = 200) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and content of what the middleware sends; ``status`` is that of what stands behind it."""
    BEHIND.asked, BEHIND.status = [], status
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def receive() -> Any:
        return {"type": "http.request"}

    asked = [(b"host", b"127.0.0.1"), (b"accept-encoding", b"gzip, deflate, br")]
    # In a thread of its own: that of the tests may have a loop that Playwright left running.
    request = {"type": "http", "method": method, "path": path, "headers": asked}
    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: asyncio.run(ASSETS(request, receive, send))).result()
    content = b"".join(message.get("body", b"") for message in sent[1:])
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    return sent[0]["status"], {name.lower(): value for name, value in sent[0]["headers"]}, content


def linked(html: bytes) -> list[str]:
    return re.findall(r'<link rel="modulepreload" crossorigin href="\./static/js/([^"]+)">', html.decode())


def base_script(page: str) -> bytes:
    where = f"location.origin + location.pathname.slice(0, -{len(page)})"
    return f"<script>window.__streamlit = {{BACKEND_BASE_URL: {where}}}</script>".encode()


def test_every_file_of_streamlit_is_sent_whole_and_may_be_kept_for_ever() -> None:
    files = [path for path in (FOLDER / "static").rglob("*") if path.suffix in (".js", ".css", ".woff2")]
    assert len(files) > 100
    for path in files[::25]:
        status, headers, content = answer(f"/{path.relative_to(FOLDER).as_posix()}")
        assert (status, content) == (200, path.read_bytes())
        assert headers[b"content-length"] == str(len(content)).encode()
        assert b"immutable" in headers[b"cache-control"]
        assert not BEHIND.asked


@pytest.mark.parametrize(
    "path", ["/static/../index.html", "/static/js/..", "/static/js/none.js", "/static/", "/etc/passwd", "/static//js"]
)
def test_a_name_that_is_no_file_of_streamlit_is_left_to_streamlit(path: str) -> None:
    assert answer(path)[2] == INDEX
    assert BEHIND.asked == [path]


def test_only_reading_is_answered() -> None:
    for path in ("/static/js/" + next(SCRIPTS.glob("*.js")).name, "/runs"):
        assert answer(path, "POST")[2] == INDEX
        assert BEHIND.asked == [path]


@pytest.mark.parametrize("page", ELEMENTS)
def test_a_page_names_the_scripts_of_its_elements_and_all_that_these_import(page: str) -> None:
    _, headers, html = answer(page)
    assert headers[b"content-length"] == str(len(html)).encode()
    assert b"etag" not in headers
    assert base_script(page) + hints(FOLDER, ELEMENTS[page]).encode() in html
    names = linked(html)
    for element in ELEMENTS[page]:
        assert any(name.startswith(f"{element}.") for name in names), f"Streamlit has no {element} any more"
    assert len(names) == len(set(names))
    known = {*names, *re.findall(r"static/js/([^\"]+\.js)", INDEX.decode())}
    found = 0
    for name in names:
        imported = re.findall(r'(?:from|import)"\./([\w.-]+)"', (SCRIPTS / name).read_text(encoding="utf-8"))
        assert not set(imported) - known, name
        found += len(imported)
    assert found


def test_a_page_that_is_not_sent_again_stays_as_it_is() -> None:
    assert answer("/runs", status=304)[2] == INDEX


def test_a_page_says_where_the_server_is_and_is_else_sent_as_it_is() -> None:
    assert answer("/launch")[2] == INDEX.replace(b"</head>", base_script("/launch") + b"</head>")
    # Here the page is where the server is.
    assert answer("/")[2] == INDEX
