"""Identify, end and lock things on this host: processes by pid and start time, devices by file lock.

Does not start workers and knows nothing of runs. POSIX only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import psutil


def process_start_s(pid: int) -> float | None:
    """When a live process started, in seconds since boot; None if there is no such process or it is a zombie.

    A pid alone says little, since pids are reused; pid and start time together name one process. Seconds since boot
    rather than wall-clock time, because setting the clock must not make a process look like another.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if os.path.isdir("/proc/self") else _start_without_proc_s(pid)
    # A zombie leader whose threads are still ending holds its files, and so its device lock.
    ended = fields[0] in "ZX" and int(fields[17]) <= 1
    return None if ended else int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _start_without_proc_s(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def process_age_s(start_s: float) -> float:
    """Seconds since a process started, given its ``process_start_s``."""
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()
    return max(now_s - start_s, 0.0)


def asleep_s() -> float:
    """For how many seconds this machine has slept since it was booted; 0 where the system does not tell."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def is_same_process(pid: int, started_s: float) -> bool:
    """Whether the process that had this pid and start time is still alive."""
    now = process_start_s(pid)
    return now is not None and abs(now - started_s) < 0.005


def end_processes(pid: int, started_s: float, grace_s: float = 1.0) -> None:
    """End a worker and everything it started, and wait for that: SIGTERM to all of it, SIGKILL after ``grace_s``.

    Also where the worker itself is gone and left processes behind.
    """
    if grace_s > 0:
        _wait_for_end(signal_processes(pid, started_s, signal.SIGTERM), grace_s)
    # A second round for what was started while the first went on.
    while (ended := signal_processes(pid, started_s, signal.SIGKILL)) and _wait_for_end(ended, 5.0):
        pass


def signal_processes(pid: int, started_s: float, signal_number: signal.Signals) -> list[tuple[int, float]]:
    """Send a signal to a worker and everything it started; return the pid and start of each. Does not wait.

    That is what is in the worker's session, also when the worker is gone, and what descends from any of it:
    compilers are started in sessions of their own.
    """
    members = _processes_of(pid, started_s)
    for member, _ in members:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal_number)
    return members


def _processes_of(pid: int, started_s: float) -> list[tuple[int, float]]:
    now_s = process_start_s(pid)
    if now_s is not None and not is_same_process(pid, started_s):
        # The system gives no number away that is still a session's: nothing of the worker is left.
        return []
    members = {other for other in psutil.pids() if _session_of(other) == pid}
    # Its session is that of its parent until it has made its own.
    members |= {pid} if now_s is not None else set()
    for member in tuple(members):
        with contextlib.suppress(psutil.Error):
            members.update(child.pid for child in psutil.Process(member).children(recursive=True))
    return [(member, start_s) for member in members if (start_s := process_start_s(member)) is not None]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _wait_for_end(processes: Sequence[tuple[int, float]], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while any(is_same_process(pid, started_s) for pid, started_s in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


class DeviceLock:
    """A host-wide lock on one device, held by whoever has a copy of the open file.

    Passed to a worker process it lives exactly as long as the worker, whatever becomes of the supervisor:
    ``flock`` belongs to the open file, and the worker gets a duplicate of it.
    """

    def __init__(self, descriptor: int, device: str) -> None:
        self._descriptor = descriptor
        self.device = device

    @classmethod
    def try_acquire(cls, device: str) -> DeviceLock | None:
        """Take the lock of ``device`` (``cpu``, ``cuda:0`` ...) or return None at once if it is held."""
        folder = Path(tempfile.gettempdir()) / "peft-lab-devices"
        folder.mkdir(exist_ok=True)
        path = folder / f"{device.replace(':', '-')}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        for shared in (folder, path):
            # Measurements of different users on one host must not overlap either.
            with contextlib.suppress(PermissionError):
                shared.chmod(0o1777 if shared.is_dir() else 0o666)
        if not try_lock_file(descriptor):
            os.close(descriptor)
            return None
        return cls(descriptor, device)

    def close(self) -> None:
        """Give up this process's copy; the lock is free when no process has one."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __reduce__(self) -> tuple[Callable[..., DeviceLock], tuple[Any, str]]:
        return _rebuild_lock, (reduction.DupFd(self._descriptor), self.device)


def _rebuild_lock(descriptor: Any, device: str) -> DeviceLock:
    return DeviceLock(descriptor.detach(), device)


def try_lock_file(descriptor: int) -> bool:
    """Take an exclusive ``flock`` on an open file; False at once if another open file of it has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
