"""Makes sure that one supervisor works on this database, and says whether it does.

Starts ``python -m engine supervise`` as a process of its own that outlives the dashboard. Does not claim, watch or stop
runs. Whether a supervisor is alive is answered by its file lock, never by a stored process id.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parent.parent
CHECK_EVERY_S = 3.0
IDLE_EXIT_S = 900
# A child that has not taken the lock by then is not importing any more: it is stuck or another supervisor won.
START_LIMIT_S = 60.0
RETRY_AFTER_S = 30.0
#: Ray writes "(raylet) ..." in colours, "[2026-11-21 ...] ..." and the end of its own logs, indented, to the same log.
_RAYS_LINE = re.compile(r"(\x1b\[\d+m)*[(\[\s]")
_TAIL_BYTES = 64 * 1024

SupervisorState = Literal["running", "starting", "stopped"]


@dataclass(frozen=True, slots=True)
class SupervisorSigns:
    """The process that took the lock, and when it last went round its loop (UTC epoch seconds)."""

    pid: int | None
    heartbeat_at: float


class Supervision:
    """Watches the supervisor's lock of one home folder. Safe to call from every session's thread."""

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._lock = threading.Lock()
        self._checked_at_s = -CHECK_EVERY_S
        self._child: subprocess.Popen[bytes] | None = None
        self._child_started_at_s = 0.0
        self._state: SupervisorState = "stopped"

    @property
    def log_path(self) -> Path:
        """Where the supervisor's own output goes."""
        return self._home / "supervisor.log"

    def last_words(self) -> str:
        """The last line that a supervisor wrote itself, to say why it did not start; empty if it wrote nothing."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line[:300].rstrip() for line in reversed(lines) if line and not _RAYS_LINE.match(line)), "")

    def trouble(self) -> str:
        """What keeps a supervisor that runs from its work, in one sentence; empty while nothing does."""
        if not os.access(self._home, os.W_OK):
            return f"Runs and results wait until {self._home} can be written"
        try:
            told = (self._home / "supervisor.trouble").read_text(errors="ignore").strip()
        except OSError:
            return ""
        return f"Runs and results wait until the database can be used: {told}" if told else ""

    def signs(self) -> SupervisorSigns | None:
        """What the last supervisor to hold the lock shows of itself; None where there never was one.

        Does not probe the lock, which could keep one that is just starting from taking it.
        """
        path = self._home / "supervisor.lock"
        try:
            return SupervisorSigns(_owner(path), path.stat().st_mtime)
        except OSError:
            return None

    def ensure(self) -> SupervisorState:
        """Start a supervisor if none holds the lock; cheap to call on every page run.

        Returns:
            "running" when one holds the lock, "starting" when one was started and has not taken it yet,
            "stopped" when it cannot be started.
        """
        with self._lock:
            now_s = time.monotonic()
            # While one starts, look at every call: a person waits for it.
            if self._state == "running" and now_s - self._checked_at_s < CHECK_EVERY_S:
                return self._state
            self._checked_at_s = now_s
            self._state = self._check(now_s)
            return self._state

    def _check(self, now_s: float) -> SupervisorState:
        since_start_s = now_s - self._child_started_at_s
        if self._child is not None and self._child.poll() is None:
            # Our own child writes its process id into the file that it locks. Probing the lock in the moment in which
            # the child tries to take it would make the child believe that another supervisor has it.
            if _owner(self._home / "supervisor.lock") == self._child.pid:
                return "running"
            if since_start_s < START_LIMIT_S:
                return "starting"
        if is_locked(self._home / "supervisor.lock"):
            return "running"
        if self._child is not None and self._child.returncode not in (None, 0) and since_start_s < RETRY_AFTER_S:
            # One that fails at start would fail again: try seldom, its log says why.
            return "stopped"
        return self._start(now_s)

    def _start(self, now_s: float) -> SupervisorState:
        command = [sys.executable, "-m", "engine", "supervise", "--idle-exit", str(IDLE_EXIT_S)]
        try:
            with self.log_path.open("ab") as log:
                self._child = subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env={**os.environ, "PEFT_LAB_HOME": str(self._home)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError:
            return "stopped"
        self._child_started_at_s = now_s
        return "starting"


def _owner(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def is_locked(path: Path) -> bool:
    """Whether some process holds an exclusive lock on ``path``; never waits and leaves no lock behind."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        return False
    try:
        # Shared, so that two dashboards that look at the same moment do not take each other for a supervisor.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
