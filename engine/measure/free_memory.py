"""How much memory the machine has left, and how much of it no run may take. Ends nothing itself."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

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


class _Group(NamedTuple):
    """A control group's folder, and what to read in it."""

    folder: Path
    limit: str
    used: str
    droppable: str


def free_memory_bytes() -> int:
    """What can be had without swapping: the machine's, or that of a control group around this process if it is less."""
    machine: int = psutil.virtual_memory().available
    return min([machine, *(free for group in _own_groups() if (free := _free_in(group)) is not None)])


def reserve_bytes() -> int:
    """What must stay free: 5 % of the memory that there is and at least 512 MiB, or what the environment variable says.

    Raises:
        SpecError: if the variable is not a number of bytes.
    """
    text = os.environ.get(RESERVE_VARIABLE)
    if text is None:
        return max(_LEAST_RESERVE_BYTES, int(_RESERVE_SHARE * min([_machine_bytes(), *_group_limits()])))
    if not text.isdecimal():
        raise SpecError(RESERVE_VARIABLE, f"must be a number of bytes, not {text[:80]!r}")
    return int(text)


@functools.cache
def _machine_bytes() -> int:
    total: int = psutil.virtual_memory().total
    return total


@functools.cache
def _own_groups() -> tuple[_Group, ...]:
    """The control groups around this process that count memory."""
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
            _Group(folder, limit, used, droppable)
            for folder in dict.fromkeys(root / part for part in (own, *own.parents))
            if (folder / limit).exists()
        ]
    return tuple(found)


def _group_limits() -> list[int]:
    return [limit for group in _own_groups() if (limit := _limit_of(group)) is not None]


def _limit_of(group: _Group) -> int | None:
    try:
        text = (group.folder / group.limit).read_text().strip()
    except OSError:
        return None
    # The first version writes a huge number where there is no limit.
    return int(text) if text.isdecimal() and int(text) <= _machine_bytes() else None


def _free_in(group: _Group) -> int | None:
    """The rest of a group's limit, counting file pages that can be dropped as free; None without a limit."""
    limit_bytes = _limit_of(group)
    if limit_bytes is None:
        return None
    try:
        used_bytes = int((group.folder / group.used).read_text())
        rows = (line.split() for line in (group.folder / "memory.stat").read_text().splitlines())
        droppable_bytes = next((int(value) for name, value in rows if name == group.droppable), 0)
    except (OSError, ValueError):
        return None
    return max(0, limit_bytes - used_bytes + droppable_bytes)
