"""The operating system's view of a process's memory: resident bytes, anonymous and file-backed apart, and its peak.

Does not know what the memory is used for (``tensors`` does) and keeps no history. The split views and the peak come
from Linux's ``/proc``; elsewhere only the resident size is known and the others are ``None``, never a guess.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STATUS_FIELDS = {
    "VmRSS": "rss_bytes",
    "VmHWM": "peak_rss_bytes",
    "RssAnon": "rss_anon_bytes",
    "RssFile": "rss_file_bytes",
    "RssShmem": "rss_shared_bytes",
}


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process in bytes. ``None`` marks a view that this system does not offer."""

    rss_bytes: int
    rss_anon_bytes: int | None = None
    rss_file_bytes: int | None = None
    rss_shared_bytes: int | None = None
    peak_rss_bytes: int | None = None


def read_process_memory(pid: int | None = None) -> ProcessMemory | None:
    """Read the memory of a process, this one by default; ``None`` if it has ended (a zombie has no memory left)."""
    pid = os.getpid() if pid is None else pid
    if not sys.platform.startswith("linux"):
        try:
            return ProcessMemory(rss_bytes=psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found: dict[str, int] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name in _STATUS_FIELDS:
            found[_STATUS_FIELDS[name]] = int(value.split()[0]) * 1024
    return ProcessMemory(**found) if "rss_bytes" in found else None


class AnonymousMemory:
    """The anonymous memory of one process, for whoever looks often: about 2 microseconds a reading. Linux only.

    It stays with the process it was made for, also when another one is given its number.

    Raises:
        OSError: when there is no such process, or no ``/proc``.
    """

    def __init__(self, pid: int) -> None:
        self._descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)

    def read_bytes(self) -> int | None:
        """Bytes now; None once the process has ended and given all back."""
        try:
            fields = os.pread(self._descriptor, 256, 0).split()
        except ProcessLookupError:
            return None
        resident_pages, shared_pages = int(fields[1]), int(fields[2])
        return (resident_pages - shared_pages) * _PAGE_BYTES if resident_pages else None

    def close(self) -> None:
        """Close the file behind it."""
        os.close(self._descriptor)


def reset_peak(pid: int | None = None) -> bool:
    """Set ``peak_rss_bytes`` back to what is resident now; say whether the system allowed it."""
    try:
        Path(f"/proc/{os.getpid() if pid is None else pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def return_freed_memory() -> None:
    """Collect garbage and have glibc give free heap pages back, so that a peak taken next is not hidden by them."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class PeakIncrease:
    """Context manager; afterwards how far this process's memory rose above its level at the start, in bytes.

    ``rss_bytes`` is the kernel's own high-water mark and misses nothing. ``rss_anon_bytes`` is sampled every
    ``interval_s`` by a thread and may miss a shorter spike. ``None`` where the system does not tell.
    """

    def __init__(self, interval_s: float = 0.001) -> None:
        self.rss_bytes: int | None = None
        self.rss_anon_bytes: int | None = None
        self._interval_s = interval_s
        self._sampler: _AnonymousSampler | None = None
        self._before: ProcessMemory | None = None

    def __enter__(self) -> Self:
        return_freed_memory()
        could_reset = reset_peak()
        self._before = read_process_memory() if could_reset else None
        if self._before is not None and self._before.rss_anon_bytes is not None:
            self._sampler = _AnonymousSampler(self._interval_s)
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is not None:
            self.rss_anon_bytes = self._sampler.stop()
        after = read_process_memory()
        if self._before is not None and after is not None and after.peak_rss_bytes is not None:
            self.rss_bytes = max(0, after.peak_rss_bytes - self._before.rss_bytes)


class _AnonymousSampler(threading.Thread):
    """Polls this process's anonymous memory and keeps the largest increase."""

    def __init__(self, interval_s: float) -> None:
        super().__init__(name="anonymous-memory-sampler", daemon=True)
        self._interval_s = interval_s
        self._finished = threading.Event()
        self._memory = AnonymousMemory(os.getpid())
        self._start_bytes = self._memory.read_bytes() or 0
        self._peak_bytes = self._start_bytes

    def run(self) -> None:
        while not self._finished.wait(self._interval_s):
            self._peak_bytes = max(self._peak_bytes, self._memory.read_bytes() or 0)

    def stop(self) -> int:
        """End the thread and return the peak above the start in bytes."""
        self._finished.set()
        self.join()
        self._peak_bytes = max(self._peak_bytes, self._memory.read_bytes() or 0)
        self._memory.close()
        return self._peak_bytes - self._start_bytes
