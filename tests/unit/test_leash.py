"""Who holds a leash ends what is on it by ending itself, whatever the worker does at that moment."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import psutil
import pytest

from engine.leash import Leash


def start_on_a_leash(work: Callable[[], object]) -> tuple[int, socket.socket]:
    """A process, in a group of its own, that does ``work`` on a leash; its pid and the end that holds it."""
    held, worn = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        held.close()
        os.setsid()
        Leash(worn).put_on()
        work()
        os._exit(0)
    worn.close()
    return pid, held


def ended_by(pid: int) -> int:
    """The number of the signal that ended a child within two seconds; 0 if it goes on or ended by itself."""
    deadline_s = time.monotonic() + 2
    while time.monotonic() < deadline_s:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 0


def test_a_worker_that_never_lets_go_of_the_interpreter_is_ended_with_all_it_started() -> None:
    child = os.pipe()

    def work() -> None:
        os.write(child[1], str(subprocess.Popen(["sleep", "60"]).pid).encode())
        ctypes.PyDLL(None).sleep(60)

    pid, held = start_on_a_leash(work)
    grandchild = psutil.Process(int(os.read(child[0], 20)))
    held.close()
    assert ended_by(pid) == signal.SIGKILL
    psutil.wait_procs([grandchild], timeout=2)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_leash_that_nobody_holds_any_more_ends_the_worker_at_once() -> None:
    held, worn = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        held.close()
        time.sleep(0.2)
        Leash(worn).put_on()
        time.sleep(60)
        os._exit(0)
    worn.close()
    held.close()
    assert ended_by(pid) == signal.SIGKILL


def test_a_worker_whose_leash_is_held_comes_to_its_end() -> None:
    pid, held = start_on_a_leash(lambda: time.sleep(0.2))
    assert ended_by(pid) == 0
    assert held.recv(1) == b"", "and who holds it sees that"
    held.close()


def test_a_run_that_was_given_a_gpu_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = os.pipe()
    held, worn = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        Leash(worn, "3").put_on()
        os.write(seen[1], os.environ["CUDA_VISIBLE_DEVICES"].encode())
        os._exit(0)
    assert os.read(seen[0], 10) == b"3"
    assert ended_by(pid) == 0
    worn.close()
    held.close()
