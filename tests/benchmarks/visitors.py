"""People who look at the dashboard without a browser: each is a session over its own WebSocket, as a tab has one.

A visitor asks for pages as a tab does, lets their live parts ask again in their own time, and reads everything that
the server answers. It draws nothing: what it takes is the server's part of a page's time, not what a person waits for.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self
from urllib.parse import urlparse

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

TIMEOUT_S = 60.0


class BrokenPage(RuntimeError):
    """A page answered with an exception, or with none of its elements."""


class Visitor:
    """One session of the dashboard at ``address``. A context manager: leaving it closes the tab."""

    def __init__(self, address: str) -> None:
        self._socket = connect(
            f"ws://{urlparse(address).netloc}/_stcore/stream", subprotocols=["streamlit"], max_size=None, origin=address
        )
        self._page = self._query = ""
        #: What the page's live parts asked for: seconds between two askings, and when the next is due, by fragment.
        self._live: dict[str, tuple[float, float]] = {}
        self.read_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def open(self, path: str) -> float:
        """Ask for a page, such as ``/run?id=1``, and read it to its end; seconds from the question.

        Raises:
            BrokenPage: when the page shows an exception, is not there or draws nothing.
        """
        page, _, self._query = path.partition("?")
        self._page = page.strip("/")
        self._live.clear()
        started_s = time.monotonic()
        self._ask()
        elements = 0
        while True:
            message = self._read(TIMEOUT_S)
            elements += message.WhichOneof("type") == "delta"
            if message.WhichOneof("type") == "page_not_found":
                raise BrokenPage(f"{path} is not there")
            # The end of a live part that was still at work on the page before is not the end of this one.
            if message.WhichOneof("type") == "script_finished" and message.script_finished == (
                ForwardMsg.FINISHED_SUCCESSFULLY
            ):
                break
        if not elements:
            raise BrokenPage(f"{path} is empty")
        return time.monotonic() - started_s

    def look(self, seconds: float) -> None:
        """Stay on the page; its live parts are asked for again as often as they wish."""
        until_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < until_s:
            for fragment, (every_s, due_s) in self._live.items():
                if due_s <= now_s:
                    self._live[fragment] = (every_s, now_s + every_s)
                    self._ask(fragment)
            next_s = min([until_s, *(due_s for _, due_s in self._live.values())])
            try:
                self._read(max(next_s - time.monotonic(), 0.001))
            except TimeoutError:
                continue

    def _ask(self, fragment: str = "") -> None:
        message = BackMsg()
        rerun = message.rerun_script
        rerun.query_string, rerun.page_name = self._query, self._page
        rerun.fragment_id, rerun.is_auto_rerun = fragment, bool(fragment)
        self._socket.send(message.SerializeToString())

    def _read(self, timeout_s: float) -> ForwardMsg:
        data = self._socket.recv(timeout=timeout_s)
        assert isinstance(data, bytes)
        self.read_bytes += len(data)
        message = ForwardMsg.FromString(data)
        kind = message.WhichOneof("type")
        if kind == "auto_rerun":
            every_s = message.auto_rerun.interval
            self._live[message.auto_rerun.fragment_id] = (every_s, time.monotonic() + every_s)
        elif kind == "stop_auto_rerun":
            for fragment in message.stop_auto_rerun.fragment_ids:
                self._live.pop(fragment, None)
        elif kind == "delta" and message.delta.new_element.WhichOneof("type") == "exception":
            raise BrokenPage(f"{self._page or 'overview'}: {message.delta.new_element.exception.message}")
        return message
