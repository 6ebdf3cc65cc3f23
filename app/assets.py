"""Streamlit's own files on their way to the browser: sent in one step, and named before the browser meets them.

A page takes about 130 files. Streamlit sends each through its sessions, compression and worker threads, a browser asks
for those of a table or a chart only when the first of them arrives, and one that starts on a page other than the first
looks for the server in a wrong place and waits before it looks again. Touches nothing else that is sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from mimetypes import guess_type
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.file_util import get_static_dir

# Streamlit's names for the scripts of its elements, without the hash of their content.
_INPUTS = ("Button", "Checkbox", "DownloadButton", "Multiselect", "Selectbox", "TextInput")
#: The elements that a page shows at once; those of other pages are fetched as they are met.
ELEMENTS: Mapping[str, tuple[str, ...]] = {
    "/runs": (*_INPUTS, "DataFrame", "Pagination"),
    "/compare": (*_INPUTS, "ButtonGroup", "DataFrame", "Metric", "PlotlyChart"),
}
# A file's name holds the hash of its content.
_FOREVER = "public, immutable, max-age=31536000"
# The server is where the page is, without the page's name; behind a proxy that may be below the origin.
_BASE = "<script>window.__streamlit = {{BACKEND_BASE_URL: location.origin + location.pathname.slice(0, -{0})}}</script>"
_PAGE = re.compile(r"/\w+")
_IMPORTED = re.compile(r"""\b(?:from|import)\s*["']\./([^"'/]+\.js)["']""")


class Assets:
    """ASGI middleware in front of Streamlit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        folder = Path(get_static_dir())
        self._files = {
            f"/{path.relative_to(folder).as_posix()}": path
            for path in sorted((folder / "static").rglob("*"))
            if path.is_file()
        }
        self._hints = {page: hints(folder, elements) for page, elements in ELEMENTS.items()}
        # Below a path of its own, the server's first page looks like another one's name.
        self._is_at_root = not st.get_option("server.baseUrlPath")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send one of Streamlit's files, add to the head of a page, or leave the request as it is."""
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "GET" else ""
        if path in self._files:
            await _send_file(self._files[path], send)
        elif self._is_at_root and _PAGE.fullmatch(path):
            head = _BASE.format(len(path)) + self._hints.get(path, "")
            # Not compressed, so that there is a head to find.
            kept = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            await self._app({**scope, "headers": kept}, receive, _with_head(send, head.encode()))
        else:
            await self._app(scope, receive, send)


def hints(folder: Path, elements: Iterable[str]) -> str:
    """Links that have a browser fetch and compile the scripts of these elements, with all that they import, at once.

    Args:
        folder: Streamlit's static files. What its ``index.html`` names already is left out.
        elements: an element that this Streamlit does not have gets no link.
    """
    index = (folder / "index.html").read_text(encoding="utf-8")
    scripts = folder / "static" / "js"
    found: dict[str, None] = {}
    waiting = [path for name in elements for path in scripts.glob(f"{name}.*.js")]
    while waiting:
        path = waiting.pop(0)
        if path.name not in found and f"/{path.name}" not in index:
            found[path.name] = None
            waiting += [scripts / name for name in _IMPORTED.findall(path.read_text(encoding="utf-8"))]
    return "".join(f'<link rel="modulepreload" crossorigin href="./static/js/{name}">' for name in found)


async def _send_file(path: Path, send: Send) -> None:
    # Not in a thread: starting one takes longer than reading the file.
    content = path.read_bytes()
    kind = guess_type(path.name)[0] or "application/octet-stream"
    headers = {
        "content-type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
        "content-length": str(len(content)),
        "cache-control": _FOREVER,
    }
    await _send_whole(send, 200, [(name.encode(), value.encode()) for name, value in headers.items()], content)


def _with_head(send: Send, more: bytes) -> Send:
    """A ``send`` that adds to the head of the page that passes through it."""
    held: list[Message] = []

    async def add(message: Message) -> None:
        held.append(message)
        if message["type"] != "http.response.body" or message.get("more_body"):
            return
        start, *parts = held
        page = b"".join(part.get("body", b"") for part in parts)
        headers = start["headers"]
        if start["status"] == 200 and b"</head>" in page:
            page = page.replace(b"</head>", more + b"</head>", 1)
            # The validators are those of the page without.
            left_out = (b"content-length", b"etag", b"last-modified")
            headers = [(name, value) for name, value in headers if name.lower() not in left_out]
            headers.append((b"content-length", str(len(page)).encode()))
        await _send_whole(send, start["status"], headers, page)

    return add


async def _send_whole(send: Send, status: int, headers: list[tuple[Any, Any]], content: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
