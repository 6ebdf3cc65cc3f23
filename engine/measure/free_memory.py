"""How much memory the machine has left, and how much of it no run may take. Ends nothing itself."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import psutil

from engine.spec import SpecError

RESERVE_VARIABLE = "PEFT_LAB_MEMORY_RESERVE_BYTES"
_LEAST_RESERVE_BYTES = 512 * 2**20
_RESERVE_SHARE = 0.05
_GROUP = Path("/sys/fs/cgroup")


def free_memory_bytes() -> int:
    """What can be had without swapping: the machine's, or its control group's where that is less."""
    machine: int = psutil.virtual_memory().available
    group = _free_in_group()
    return machine if group is None else min(machine, group)


def reserve_bytes() -> int:
    """What must stay free: 5 % of the machine's memory and at least 512 MiB, or what the environment variable says.

    Raises:
        SpecError: if the variable is not a number of bytes.
    """
    text = os.environ.get(RESERVE_VARIABLE)
    if text is None:
        return max(_LEAST_RESERVE_BYTES, int(_total_bytes() * _RESERVE_SHARE))
    if not text.isdecimal():
        raise SpecError(RESERVE_VARIABLE, f"must be a number of bytes, not {text[:80]!r}")
    return int(text)


@functools.cache
def _total_bytes() -> int:
    total: int = psutil.virtual_memory().total
    return total


def _free_in_group() -> int | None:
    """The rest of the control group's limit, counting file pages that can be dropped as free; None without a limit."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        if not limit.isdecimal():
            return None
        used = int((_GROUP / "memory.current").read_text())
        rows = (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        droppable = next((int(value) for name, value in rows if name == "inactive_file"), 0)
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used + droppable)
