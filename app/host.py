"""The machine as it is now: memory, swap, disk, CPU, the limits of this process's control group, other programs.

Reads only; what of it is worth a warning is ``app.host_warnings``'s. On systems without ``/sys`` and ``/proc`` what
comes from there is unknown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Process:
    """A program that is not PEFT Lab's. ``cpu_share`` is of the whole machine, 1.0 being all of its cores."""

    pid: int
    name: str
    cpu_share: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the control groups of a process leave it; None where they set no limit."""

    memory_bytes: int | None = None
    cores: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """One look at the machine. ``cores`` are those that this process may use, of ``machine_cores``."""

    memory_bytes: int
    available_bytes: int
    swap_used_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    cores: int
    machine_cores: int
    governors: tuple[str, ...]
    limits: Limits
    processes: tuple[Process, ...]


def look(folder: Path, own_pids: Collection[int], interval_s: float = 0.3) -> Host:
    """Look at the machine, for ``interval_s`` at what its programs do.

    Args:
        folder: whose disk is meant.
        own_pids: processes of PEFT Lab; with all their descendants they are no other programs.
    """
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(folder))
    machine_cores = psutil.cpu_count() or 1
    return Host(
        memory_bytes=memory.total,
        available_bytes=memory.available,
        swap_used_bytes=psutil.swap_memory().used,
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine_cores,
        machine_cores=machine_cores,
        governors=_governors(),
        limits=limits(_text(Path("/proc/self/cgroup")) or "", _GROUPS),
        processes=other_processes(own_pids, machine_cores, interval_s),
    )


def other_processes(own_pids: Collection[int], machine_cores: int, interval_s: float) -> tuple[Process, ...]:
    """Programs besides these processes and their descendants, those that use the CPU most first."""
    seen: dict[int, tuple[psutil.Process, float]] = {}
    parents: dict[int, int] = {}
    started_s = time.monotonic()
    for process in psutil.process_iter():
        try:
            parents[process.pid] = process.ppid()
            seen[process.pid] = (process, _cpu_s(process))
        except psutil.Error:
            continue
    time.sleep(interval_s)
    found = []
    for pid, (process, before_s) in seen.items():
        if _is_under(pid, own_pids, parents):
            continue
        try:
            used_s = _cpu_s(process) - before_s
            share = used_s / (time.monotonic() - started_s) / machine_cores
            found.append(Process(pid, process.name(), share, process.memory_info().rss))
        except psutil.Error:  # it ended meanwhile, or is not ours to look at
            continue
    return tuple(sorted(found, key=lambda process: process.cpu_share, reverse=True))


def limits(membership: str, root: Path) -> Limits:
    """The lowest limits on the way from a process's control groups up to the root.

    Args:
        membership: what ``/proc/PID/cgroup`` holds.
        root: where control groups are mounted; version 2 directly, version 1 with a folder for each controller.
    """
    memory: list[int] = []
    cores: list[float] = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if not controllers:
            for folder in _upwards(root, path):
                memory.extend(_numbers(folder / "memory.max")[:1])
                cores.extend(_shares(_numbers(folder / "cpu.max")))
        if "memory" in names:
            for folder in _upwards(root / "memory", path):
                memory.extend(_numbers(folder / "memory.limit_in_bytes"))
        if "cpu" in names:
            for folder in _upwards(root / "cpu", path):
                cores.extend(_shares(_numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")))
    return Limits(min(memory, default=None), min(cores, default=None))


def _upwards(root: Path, path: str) -> Iterable[Path]:
    """A group's folder and those above it. In a container the path may be the host's, and only the root is here."""
    folder = root / path.strip("/")
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _numbers(path: Path) -> list[int]:
    """The whole numbers in a file; none where one of its words is "max", which means no limit."""
    words = (_text(path) or "").split()
    return [int(word) for word in words] if all(word.lstrip("-").isdigit() for word in words) else []


def _shares(quota_and_period: list[int]) -> list[float]:
    """How many cores' time a quota per period is; version 1 writes -1 for no limit."""
    if len(quota_and_period) != 2 or min(quota_and_period) <= 0:
        return []
    return [quota_and_period[0] / quota_and_period[1]]


def _governors() -> tuple[str, ...]:
    texts = {_text(path) for path in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return tuple(sorted(text for text in texts if text))


def _is_under(pid: int, own_pids: Collection[int], parents: dict[int, int]) -> bool:
    """Whether a process is one of ours or descends from one."""
    passed: set[int] = set()
    while pid not in own_pids:
        passed.add(pid)
        pid = parents.get(pid, 0)
        if pid == 0 or pid in passed:
            return False
    return True


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
