"""A model that exceeds the machine's memory is ended before the machine runs out of it; whatever else runs goes on.

The machine is a control group of 3 GiB where one can be made, with everything in it: dashboard, supervisor and workers.
Elsewhere it is this machine with all but 1.5 GiB of its free memory as the reserve.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from db import queue, runs
from db.session import open_database
from engine.measure.free_memory import RESERVE_VARIABLE, free_memory_bytes
from engine.spec import Spec, parse_spec, spec_hash

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
MACHINE_BYTES = 3 * GIB
Wait = Callable[..., None]

#: 14.5 GB of weights.
TOO_LARGE = parse_spec({"kind": "init", "model": "mistral-7b", "dtype": "bfloat16"})
BESIDE = parse_spec({"kind": "predict", "of": [{"kind": "train", "model": "tinyllama-1.1b"}]})
#: A second, while the workers take both cores, is what a person takes for an answer.
SLOWEST_ANSWER_S = 1.0


@dataclass
class Machine:
    """How to start a process on the small machine, and how many processes its kernel has ended for want of memory."""

    group: Path | None
    free_bytes: int

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self.group is None:
            environment[RESERVE_VARIABLE] = str(self.free_bytes - MACHINE_BYTES // 2)
            return subprocess.Popen(command, cwd=ROOT, env=environment)
        joining = f'echo $$ > "{self.group}/cgroup.procs" && exec "$@"'
        return subprocess.Popen(["sh", "-c", joining, "sh", *command], cwd=ROOT, env=environment)

    def kernel_kills(self) -> int:
        if self.group is None:
            return 0
        name = "memory.events" if (self.group / "memory.events").exists() else "memory.oom_control"
        counts = dict(line.split() for line in (self.group / name).read_text().splitlines())
        return int(counts["oom_kill"])


@pytest.fixture
def machine() -> Iterator[Machine]:
    group = next(filter(None, map(_group, ("/sys/fs/cgroup", "/sys/fs/cgroup/memory"))), None)
    yield Machine(group, MACHINE_BYTES if group else free_memory_bytes())
    if group is not None:
        _remove(group)


def _group(root: str) -> Path | None:
    """A new control group of the small machine's memory; None where this version of them, or the right, is missing."""
    group = Path(root, f"peft-lab-test-{os.getpid()}")
    if not Path(root, "cgroup.procs").exists():
        return None
    try:
        group.mkdir()
    except OSError:
        return None
    for limit in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError):
            if (group / limit).exists():
                (group / limit).write_text(str(MACHINE_BYTES))
                return group
    group.rmdir()
    return None


def _remove(group: Path) -> None:
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


class Visitor(threading.Thread):
    """Asks the dashboard whether it is well, ten times a second, and notes the longest that an answer took."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.leaving = threading.Event()
        self.answers = 0
        self.slowest_s = 0.0

    def run(self) -> None:
        while not self.leaving.wait(0.1):
            asked_s = time.monotonic()
            urllib.request.urlopen(self._address, timeout=30).close()
            self.answers += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - asked_s)


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
        return True
    return False


def new_run(spec: Spec) -> queue.NewRun:
    return queue.NewRun(
        kind=spec.kind,
        spec=spec.model_dump(mode="json"),
        spec_hash=spec_hash(spec),
        model="",
        device="cpu",
        priority=0 if spec is TOO_LARGE else 1,
    )


def test_a_model_that_exceeds_the_machine_leaves_the_dashboard_and_the_run_beside_it_alone(
    home: Path, machine: Machine, eventually: Wait
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/_stcore/health"
    database = open_database()
    with database.writing() as db:
        beside, too_large = queue.enqueue(db, [new_run(BESIDE), new_run(TOO_LARGE)])
    command = [sys.executable, "-m", "app", f"--server.port={port}"]
    started = [machine.start(*command, "--server.headless=true")]
    visitor = Visitor(address)
    try:
        eventually(lambda: answers(address), "the dashboard answers", 60)
        visitor.start()
        started.append(machine.start(sys.executable, "-m", "engine", "supervise"))

        def ended() -> bool:
            with database.reading() as db:
                return not queue.running(db) and not queue.queue_depth(db)

        eventually(ended, "both runs have ended", 120)
    finally:
        visitor.leaving.set()
        for process in started:
            process.terminate()
            process.wait()
    with database.reading() as db:
        ended_for_memory, unharmed = runs.get_run(db, too_large), runs.get_run(db, beside)
    database.close()
    assert ended_for_memory is not None
    assert unharmed is not None
    assert unharmed.state == "succeeded"
    assert ended_for_memory.state == "out_of_memory"
    assert ended_for_memory.error_text is not None
    assert "in the phase 'weights'" in ended_for_memory.error_text
    assert RESERVE_VARIABLE in ended_for_memory.error_text
    peak = next(metric.value for metric in ended_for_memory.metrics if metric.name == "peak_rss_bytes")
    assert 0.2 * GIB < peak < MACHINE_BYTES
    assert machine.kernel_kills() == 0
    visitor.join()
    assert visitor.answers > 20
    assert visitor.slowest_s < SLOWEST_ANSWER_S
