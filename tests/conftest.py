"""Fixtures shared by all tests: a home folder of its own for each test, and helpers that wait for real processes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import postgresql


@pytest.fixture(scope="session", autouse=True)
def temporary_folder_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests and their processes a temporary folder, and so device locks, of their own.

    The locks are host-wide on purpose; a measurement that somebody runs beside the tests must not hold these up. The
    name is short, because addresses of sockets in it may have no more than 108 characters. pytest removes it later:
    processes may use it until the very end.
    """
    # Models of tests are in the folders of their own tests, which are beside that one.
    os.environ["PEFT_LAB_MODEL_ROOTS"] = str(tmp_path_factory.getbasetemp())
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = str(tmp_path_factory.mktemp("t"))
    yield
    tempfile.tempdir = None
    del os.environ["PEFT_LAB_MODEL_ROOTS"]
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PEFT_LAB_HOME that no other test sees."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("PEFT_LAB_HOME", str(folder))
    monkeypatch.delenv("PEFT_LAB_DATABASE_URL", raising=False)
    return folder


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    """A PostgreSQL server; what needs it is skipped, with the reason, where there can be none."""
    reason = postgresql.why_not()
    if reason is not None:
        pytest.skip(reason)
    started = postgresql.Server(*postgresql.CARELESS)
    yield started
    started.stop()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until a condition holds, or fail saying what was waited for."""

    def wait(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                pytest.fail(f"waited {timeout_s:.0f} s in vain until {what}")
            time.sleep(0.05)

    return wait
