"""The dashboard makes sure that one supervisor runs, and never starts two."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

from app.supervision import Supervision, is_locked


def hold(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_held_lock_is_seen_and_looking_leaves_none(tmp_path: Path) -> None:
    lock = tmp_path / "supervisor.lock"
    assert not is_locked(lock)
    held = hold(lock)
    assert is_locked(lock)
    os.close(held)
    assert not is_locked(lock)
    os.close(hold(lock))


def test_nothing_is_started_while_someone_holds_the_lock(home: Path) -> None:
    held = hold(home / "supervisor.lock")
    supervision = Supervision(home)
    assert supervision.ensure() == "running"
    assert not supervision.log_path.exists()
    os.close(held)


def test_a_supervisor_is_started_where_none_is_and_only_one(home: Path, eventually: Callable[..., None]) -> None:
    first, second = Supervision(home), Supervision(home)
    assert first.ensure() == "starting"
    eventually(lambda: first.ensure() == "running", "the started supervisor holds the lock", 60)
    pid = int((home / "supervisor.lock").read_text())
    try:
        assert second.ensure() == "running"
        assert int((home / "supervisor.lock").read_text()) == pid
        assert os.getsid(pid) != os.getsid(0), "it survives the dashboard"
    finally:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_locked(home / "supervisor.lock"), "the supervisor ended", 30)
    eventually(lambda: first.ensure() in ("starting", "running"), "an ended one is replaced", 30)
    eventually(lambda: first.ensure() == "running", "the next one holds the lock", 60)
    os.kill(int((home / "supervisor.lock").read_text()), signal.SIGTERM)
    eventually(lambda: not is_locked(home / "supervisor.lock"), "the second supervisor ended", 30)


def test_one_that_fails_at_start_is_not_started_again_and_again(home: Path, eventually: Callable[..., None]) -> None:
    (home / "peft-lab.sqlite3").write_text("this is no database, and the supervisor must refuse it")
    supervision = Supervision(home)
    assert supervision.ensure() == "starting"
    eventually(lambda: supervision.ensure() == "stopped", "its failure is noticed", 60)
    written = supervision.log_path.stat().st_size
    assert supervision.ensure() == "stopped"
    assert supervision.log_path.stat().st_size == written


def test_its_last_words_are_its_own_and_not_those_of_ray(home: Path) -> None:
    supervision = Supervision(home)
    assert supervision.last_words() == ""
    own = "PEFT_LAB_EXECUTOR: no Ray cluster answers at 10.0.0.1:6379: connection refused"
    ray = [
        "\x1b[33m(raylet)\x1b[0m Raylet is terminated. Last 20 lines of the Raylet logs:",
        *["    [state-dump] NodeManager.GcsCheckAlive - 1 total (1 active)"] * 200,
        "[2026-11-21 17:40:01,123 E 71 71] core_worker.cc:499: Failed to register worker",
        "(raylet) The node is gone",
        "",
    ]
    supervision.log_path.write_text("\n".join(["Traceback (most recent call last):", own, *ray]))
    assert supervision.last_words() == own
