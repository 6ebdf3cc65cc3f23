"""Which processes belong to a lab, and what each of them is. Reads /proc and imports nothing but Python's own."""

from __future__ import annotations

import os
from pathlib import Path

#: Every process of a lab was started with it; it names the folder of the lab's traps.
VARIABLE = "FAULTS_FOLDER"
SUPERVISOR, FORK_SERVER, WORKER, DASHBOARD = "supervisor", "fork server", "worker", "dashboard"
_FORK_SERVER = "multiprocessing.forkserver"


def processes(folder: str) -> dict[int, str]:
    """The role of every living process of a lab, by pid; those without a role have an empty one."""
    mark = f"{VARIABLE}={folder}".encode()
    return {pid: _role(pid) for pid in _pids() if mark in _read(f"/proc/{pid}/environ").split(b"\0")}


def run_of(pid: int) -> str:
    """The uid of the run whose log a worker writes; empty before it has opened that."""
    try:
        log = Path(os.readlink(f"/proc/{pid}/fd/1"))
    except OSError:
        return ""
    return log.parent.name if log.parent.parent.name == "runs" else ""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _role(pid: int) -> str:
    command = _command(pid)
    if "supervise" in command:
        return SUPERVISOR
    if "tests.faults.dashboard" in command or "streamlit" in command:
        return DASHBOARD
    if _FORK_SERVER not in command:
        return ""
    # A worker keeps the command line of the server that it was forked from, and soon leads a session of its own.
    parent, session = _parent_and_session(pid)
    return WORKER if session == pid or _FORK_SERVER in _command(parent) else FORK_SERVER


def _parent_and_session(pid: int) -> tuple[int, int]:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[1]), int(fields[3])) if fields else (0, 0)


def _command(pid: int) -> str:
    return _read(f"/proc/{pid}/cmdline").decode("utf-8", "replace")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
