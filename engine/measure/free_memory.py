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
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
#: Of the second version of control groups, and of the first: limit, use, and the use that can be dropped.
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory_bytes() -> int:
    """What can be had without swapping: the machine's, or that of a control group around this process if it is less."""
    machine: int = psutil.virtual_memory().available
    return min([machine, *(free for group in _own_groups() if (free := _free_in(*group)) is not None)])


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


@functools.cache
def _own_groups() -> tuple[tuple[Path, str, str, str], ...]:
    """The control groups around this process that count memory, each with the names of what to read in it."""
    try:
        rows = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return ()
    found = []
    for _, controllers, name in rows:
        limit, used, droppable = _GROUP_FILES[1 if controllers else 0]
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _GROUPS / controllers if controllers else _GROUPS
        # In a container the names may be the host's; its own group is the root there.
        own = Path(name.lstrip("/"))
        found += [
            (folder, limit, used, droppable)
            for folder in dict.fromkeys(root / part for part in (own, *own.parents))
            if (folder / limit).exists()
        ]
    return tuple(found)


def _free_in(group: Path, limit_file: str, used_file: str, droppable_name: str) -> int | None:
    """The rest of a group's limit, counting file pages that can be dropped as free; None without a limit."""
    try:
        limit = (group / limit_file).read_text().strip()
        # The first version writes a huge number where there is no limit.
        if not limit.isdecimal() or int(limit) > _total_bytes():
            return None
        used = int((group / used_file).read_text())
        rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        droppable = next((int(value) for name, value in rows if name == droppable_name), 0)
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used + droppable)
