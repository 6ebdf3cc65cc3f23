"""Ends processes by SIGKILL in the very line of the project's code that was asked for.

Every Python process that has this folder on its PYTHONPATH loads it at its start, and so do the workers that are forked
from a fork server. Does nothing until ``armed.json`` lies in the lab's folder; whoever comes first to a line that fits
takes the file away, writes down whom it ends, and does it. Imports nothing of the project.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import roles

_ROOT = str(Path(__file__).resolve().parents[3]) + os.sep
_FOLDER = os.environ.get(roles.VARIABLE, "")
_ARMED = os.path.join(_FOLDER, "armed.json")

_places: dict[CodeType, str | None] = {}
_stamp_ns = 0
_armed: dict[str, Any] = {}
_lines_left = 0


def _place(code: CodeType) -> str | None:
    """``engine/worker.py:main`` for code of the project, else None."""
    path = code.co_filename.removeprefix(_ROOT)
    return f"{path}:{code.co_name}" if path.startswith(("app/", "db/", "engine/")) else None


def _calls(frame: FrameType, _event: str, _argument: Any) -> Any:
    """Python's trace function for calls: follow the lines of a function that is asked for, and of no other."""
    code = frame.f_code
    try:
        place = _places[code]
    except KeyError:
        place = _places[code] = _place(code)
    return _lines if place is not None and _is_asked_for(place) else None


def _is_asked_for(place: str) -> bool:
    global _stamp_ns, _armed, _lines_left
    try:
        stamp_ns = os.stat(_ARMED).st_mtime_ns
        if stamp_ns != _stamp_ns:
            with open(_ARMED) as file:
                _armed = json.load(file)
            _stamp_ns, _lines_left = stamp_ns, _armed["line"]
    except OSError:
        return False
    return place.startswith(tuple(_armed["places"]))


def _lines(frame: FrameType, event: str, _argument: Any) -> Any:
    global _lines_left
    # It may have been something else that was asked for when this function was called.
    if event == "line" and _is_asked_for(str(_place(frame.f_code))):
        _lines_left -= 1
        if _lines_left == 0:
            _fire(f"{_place(frame.f_code)}:{frame.f_lineno}")
    return _lines


def _fire(where: str) -> None:
    try:
        # One of several processes may: whoever takes the file away.
        os.rename(_ARMED, os.path.join(_FOLDER, "taken.json"))
    except OSError:
        return
    asked = set(_armed["victims"])
    victims = [
        {"pid": pid, "role": role, "run": roles.run_of(pid)}
        for pid, role in roles.processes(_FOLDER).items()
        if role in asked or (pid == os.getpid() and "self" in asked)
    ]
    descriptor = os.open(os.path.join(_FOLDER, "fired.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    document = {"number": _armed["number"], "where": where, "victims": victims}
    os.write(descriptor, json.dumps(document).encode() + b"\n")
    os.close(descriptor)
    # Itself last, or the others would be spared.
    for victim in sorted(victims, key=lambda victim: victim["pid"] == os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(victim["pid"]), signal.SIGKILL)


def _follow() -> None:
    threading.settrace(_calls)
    sys.settrace(_calls)


if _FOLDER:
    if "multiprocessing.forkserver" in Path("/proc/self/cmdline").read_text():
        # What a fork server imports is nobody's moment; the work of its children is.
        os.register_at_fork(after_in_child=_follow)
    else:
        _follow()
