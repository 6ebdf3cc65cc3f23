"""A real database in a folder of its own for each test, and pages that believe a supervisor runs.

AppTest has no connection; pages take it for that of a browser on this machine.
"""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from app import people
from app.access import Connection
from db.session import Database, open_database
from tests.app import stored

MAIN = Path(__file__).resolve().parents[2] / "app" / "main.py"


@pytest.fixture(scope="session", autouse=True)
def components_are_looked_for_once() -> Iterator[None]:
    """Otherwise Streamlit reads what all installed packages say of themselves for each AppTest: most of its time."""
    once = functools.cache(manifest_scanner.scan_component_manifests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", once)
        yield


@pytest.fixture(autouse=True)
def browser_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page is visited from this machine; a test that is about others says so itself."""
    here = Connection("127.0.0.1", "127.0.0.1", {"host": "127.0.0.1:8501", "origin": "http://127.0.0.1:8501"})
    monkeypatch.setattr(people, "connection", lambda: here)


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    """The empty database that the pages will open, with the test machine's CPU in it.

    The supervisor's lock is held, so that no page starts a supervisor that nobody needs.
    """
    lock = os.open(home / "supervisor.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    opened = open_database()
    stored.devices(opened)
    yield opened
    opened.close()
    os.close(lock)


@pytest.fixture
def open_page(database: Database) -> Callable[..., AppTest]:
    """Open a page by its name, with query parameters."""

    def open_(name: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(MAIN), default_timeout=30)
        for key, value in query.items():
            app.query_params[key] = value
        if name != "overview":
            app.switch_page(f"views/{name}.py")
        app.run()
        assert not app.exception, app.exception
        return app

    return open_
