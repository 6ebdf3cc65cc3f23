"""What every page needs at hand: the database, the devices, the supervisor's state, the reader's clock.

Opens things once per server process; keeps no job state, since everything about runs lives in the database.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from datetime import tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import psutil
import streamlit as st

from app import places
from app.supervision import Supervision, SupervisorSigns, SupervisorState
from db import nodes as stored_nodes
from db.nodes import NodeRow
from db.session import Database, database_url, home, open_database
from engine.result import Device
from engine.spec import Measured

#: How often live parts look again. An open page must not disturb a measurement on the same machine by 3 % (at one
#: second it did: make bench-dashboard).
LIVE_EVERY_S = 2


@st.cache_resource(show_spinner="Opening the database", max_entries=8)
def _open(url: str) -> Database:
    return open_database(url)


def database() -> Database:
    """The database of this home folder, migrated; opened once per server process."""
    return _open(database_url())


def forget_database() -> None:
    """Have the database opened again where it is asked for next."""
    _open.clear()


@st.cache_resource(show_spinner=False, max_entries=8)
def _supervision(folder: Path) -> Supervision:
    return Supervision(folder)


def ensure_supervisor() -> SupervisorState:
    """Make sure that a supervisor works on this database, and say whether it does."""
    return _supervision(home()).ensure()


def supervisor_signs() -> SupervisorSigns | None:
    """The process and last heartbeat of the supervisor, or of the last one; None where there never was one."""
    return _supervision(home()).signs()


def supervisor_last_words() -> str:
    """Why no supervisor started, as far as it said so itself."""
    return _supervision(home()).last_words()


@st.cache_data(ttl=10, show_spinner=False, max_entries=8)
def _nodes(url: str) -> tuple[NodeRow, ...]:
    with _open(url).reading() as session:
        return tuple(stored_nodes.nodes(session))


def nodes() -> Sequence[NodeRow]:
    """The machines that supervisors found, the head first; none until one has looked."""
    return _nodes(database_url())


def devices() -> Sequence[Device]:
    """The devices to choose from, each id once, the head's first; this machine's CPU until a supervisor has looked."""
    return places.devices(nodes()) or (this_cpu(),)


def this_cpu() -> Device:
    """The CPU as far as it can be known without torch."""
    return Device(
        id="cpu",
        kind="cpu",
        name=platform.processor() or platform.machine() or "CPU",
        memory_bytes=psutil.virtual_memory().total,
        dtypes=("float32", "bfloat16", "float16"),
    )


def free_memory_bytes() -> int:
    """Memory that a new process could use now without swapping, in bytes."""
    return int(psutil.virtual_memory().available)


def room_for(spec: Measured) -> tuple[Sequence[Device], float]:
    """The devices that a run may get, and the memory for its process in bytes.

    That is what is free now where it can only run here, and all that the smallest node has where it may run elsewhere.
    """
    able = places.nodes_for(spec, nodes())
    if all(node.is_head for node in able):
        return devices(), free_memory_bytes()
    found = places.smallest(able)
    return found, min(device.memory_bytes for device in found if device.kind == "cpu")


def cores() -> int:
    """CPU cores that this process, and so a worker, may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def zone() -> tzinfo | None:
    """The reader's time zone as the browser tells it; the server's own where it does not."""
    name = st.context.timezone
    try:
        return ZoneInfo(name) if name else None
    except (KeyError, ValueError, OSError):
        return None


def now_s() -> float:
    """Now, as UTC epoch seconds like every time in the database."""
    return time.time()


def log_tail(path: Path, lines: int = 200) -> str:
    """The last lines of a log file, read from its end; empty when there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            end = file.tell()
            start = max(end - 64 * 1024, 0)
            file.seek(start)
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
