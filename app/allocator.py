"""Keeps the memory of a server that answers each visit in a thread of its own from growing for hours.

glibc gives threads arenas of their own and raises by itself the size from which a block is mapped alone. What a page
takes for a moment so ends up between what stays, in one arena after the other, and cannot be given back. Only for the
dashboard's own process: what is measured runs elsewhere, under settings that are recorded (``engine.measure``).
"""

from __future__ import annotations

import contextlib
import ctypes

# mallopt(3), malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_THRESHOLD_BYTES = 128 * 1024


def keep_memory_together() -> None:
    """Have glibc use one arena for all threads, and map and give back blocks from 128 KiB on, as it does at its start.

    Threads hardly wait for each other: Python lets one of them run at a time. Does nothing under another C library.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_ARENA_MAX, 1)
        # Named once, glibc no longer raises them.
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_BYTES)
