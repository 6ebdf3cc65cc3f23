"""The watch ends runs that pass their limits or take the machine's reserve, with all they started, and only those.

Real processes, that are no workers: what they hold and start is known here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.executors import Work
from engine.executors.local import LocalWorker
from engine.executors.processes import is_same_process, process_start_s
from engine.executors.watch import Watch
from engine.measure.free_memory import RESERVE_VARIABLE

Wait = Callable[..., None]
Start = Callable[..., LocalWorker]
MIB = 2**20

GROW = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(bytearray(b"x") * (16 * 2**20))
    time.sleep(float(sys.argv[2]))
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process in a session of its own, as a worker of a spec with these limits; all end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, **limits: Any) -> LocalWorker:
        started.append(subprocess.Popen(command, start_new_session=True))
        pid = started[-1].pid
        work = Work(limits, "0" * 64, tmp_path / str(pid))
        return LocalWorker(work, pid, process_start_s(pid) or 0.0)

    yield start
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()


def has_ended(worker: LocalWorker) -> bool:
    return not worker.is_alive()


def test_a_timeout_ends_what_the_run_started_also_in_sessions_of_their_own(start: Start, eventually: Wait) -> None:
    worker = start("sh", "-c", "sleep 60 & setsid sleep 60 & wait", timeout_s=0.5)
    leader = psutil.Process(worker.pid)
    eventually(lambda: len(leader.children(recursive=True)) == 2, "it has started both")
    started = [(child.pid, process_start_s(child.pid) or 0.0) for child in leader.children(recursive=True)]
    Watch().add(worker)
    eventually(lambda: has_ended(worker), "it is ended", 5)
    assert worker.collect()["state"] == "timed_out"
    eventually(lambda: not any(is_same_process(*one) for one in started), "what it started is gone", 5)


def test_what_a_worker_left_behind_ends_when_its_result_is_collected(start: Start, eventually: Wait) -> None:
    worker = start("sh", "-c", "sleep 60 & sleep 0.5")
    leader = psutil.Process(worker.pid)
    eventually(lambda: len(leader.children()) == 2, "it has started both")
    started = [(child.pid, process_start_s(child.pid) or 0.0) for child in leader.children()]
    assert worker.is_alive()
    eventually(lambda: has_ended(worker), "it has ended by itself", 5)
    assert any(is_same_process(*one) for one in started), "its child goes on"
    worker.collect()
    assert not any(is_same_process(*one) for one in started)


def test_a_run_over_its_memory_limit_is_ended_and_its_neighbour_is_not(start: Start, eventually: Wait) -> None:
    within = start(sys.executable, "-c", GROW, "8", "0", memory_limit_bytes=400 * MIB)
    over = start(sys.executable, "-c", GROW, "100", "0.02", memory_limit_bytes=400 * MIB)
    watch = Watch()
    watch.add(within)
    watch.add(over)
    eventually(lambda: has_ended(over), "it is ended", 10)
    document = over.collect()
    assert document["state"] == "out_of_memory"
    peak_bytes = document["metrics"][0]["value"]
    # Looking every 20 ms at what grows by 16 MiB in as much time.
    assert 400 * MIB < peak_bytes < 600 * MIB
    assert within.is_alive()


def test_of_two_runs_the_one_that_grows_gives_way_to_the_machine_and_not_the_larger_one(
    start: Start, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = start(sys.executable, "-c", GROW, "40", "0")
    watched = psutil.Process(larger.pid)
    eventually(lambda: watched.memory_info().rss > 640 * MIB, "the larger run has all it takes")
    growing = start(sys.executable, "-c", GROW, "30", "0.05")

    def free_bytes() -> int:
        # A machine with nobody else on it.
        return 1100 * MIB - larger.rss_anon_bytes - growing.rss_anon_bytes

    monkeypatch.setattr("engine.executors.watch.free_memory_bytes", free_bytes)
    monkeypatch.setenv(RESERVE_VARIABLE, str(100 * MIB))
    watch = Watch()
    watch.add(larger)
    watch.add(growing)
    eventually(lambda: has_ended(growing), "the growing run is ended", 20)
    document = growing.collect()
    assert document["state"] == "out_of_memory"
    assert document["error"]["text"].endswith(f"less than its reserve of 0.0977 GiB ({RESERVE_VARIABLE})")
    assert larger.is_alive()
    assert larger.ending is None


def test_a_watch_of_ended_runs_leaves_no_thread_and_no_open_file(start: Start, eventually: Wait) -> None:
    before = psutil.Process().num_fds()
    watch = Watch()
    for _ in range(3):
        worker = start("sleep", "0.1")
        watch.add(worker)
        eventually(lambda worker=worker: has_ended(worker), "it has ended", 5)
    eventually(lambda: watch._thread is None, "the watch is over", 5)
    assert psutil.Process().num_fds() == before
