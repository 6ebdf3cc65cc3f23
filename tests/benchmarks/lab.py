"""A throw-away lab for benchmarks: its own home, a supervisor and, if wanted, a dashboard, all real processes.

Measures nothing. Everything it starts is ended when the block ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from app.widgets.launching import new_run
from db import queue, runs
from db.session import Database, open_database
from engine.spec import parse_spec

ROOT = Path(__file__).resolve().parents[2]


class Dashboard(NamedTuple):
    """A dashboard that serves: its address and the id of its process."""

    address: str
    pid: int


class Lab:
    """An open database with a supervisor that serves it."""

    def __init__(self, home: Path, database: Database, supervisor_pid: int) -> None:
        self.home = home
        self.database = database
        self.supervisor_pid = supervisor_pid

    def submit(self, *documents: dict[str, Any]) -> list[int]:
        """Queue init specs and return their run ids."""
        with self.database.writing() as db:
            return queue.enqueue(db, [new_run(parse_spec({"kind": "init", **document})) for document in documents])

    def wait(self, run_ids: list[int], timeout_s: float = 600) -> list[runs.RunDetail]:
        """The runs, once all have ended well."""
        self.wait_until_idle(timeout_s)
        with self.database.reading() as db:
            rows = [row for row in (runs.get_run(db, run_id) for run_id in run_ids) if row is not None]
        for row in rows:
            if row.state != "succeeded":
                raise SystemExit(f"run {row.id} {row.state}: {row.error_text}")
        return rows

    def wait_until_idle(self, timeout_s: float = 600) -> None:
        """Wait until no run waits or is measured, however the runs ended."""
        deadline_s = time.monotonic() + timeout_s
        # Only the short list is read meanwhile: whoever waits must not disturb what is measured.
        while self._unfinished():
            if time.monotonic() > deadline_s:
                raise SystemExit(f"runs did not end within {timeout_s:.0f} s")
            time.sleep(0.2)

    def _unfinished(self) -> bool:
        with self.database.reading() as db:
            return bool(runs.queued_and_running(db))

    def dashboard(self, port: int | None = None) -> AbstractContextManager[Dashboard]:
        """A dashboard on this lab, in a process of its own that no page has been asked of yet."""
        return serving(self.home, ["app"], port)


@contextlib.contextmanager
def serving(home: Path, module: Sequence[str], port: int | None = None) -> Iterator[Dashboard]:
    """A server with nothing opened yet, on this port or a free one; its log goes to ``home``.

    Args:
        home: a folder for the log.
        module: what Python runs, with its arguments: ``app``, or ``streamlit``, ``run`` and a script.
        port: None for a free one.
    """
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    process = _start(home, "dashboard.log", "-m", *module, f"--server.port={port}")
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                break
            time.sleep(0.2)
        yield Dashboard(address, process.pid)
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def lab(stored: Path | None = None) -> Iterator[Lab]:
    """A lab in a temporary home whose supervisor is warm, with a copy of the ``stored`` SQLite file if one is given."""
    home = Path(tempfile.mkdtemp(prefix="peft-lab-bench-"))
    if stored is not None:
        shutil.copy(stored, home / "peft-lab.sqlite3")
    os.environ["PEFT_LAB_HOME"] = str(home)
    os.environ.pop("PEFT_LAB_DATABASE_URL", None)
    database = open_database()
    supervisor = _start(home, "supervisor.log", "-m", "engine", "supervise")
    opened = Lab(home, database, supervisor.pid)
    try:
        opened.wait(opened.submit({"model": "tiny-test", "repeats": 1, "warmup": 0}))
        yield opened
    finally:
        supervisor.terminate()
        supervisor.wait()
        database.close()
        shutil.rmtree(home, ignore_errors=True)


def _start(home: Path, log_name: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (home / log_name).open("ab") as log:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log)
