"""What a node of a cluster does for the supervisor: keeps a warm local executor, starts workers in it, tells of them.

An actor per node runs ``NodeAgent``. The task of a run (``engine.leash``) asks it for the worker over a socket, whose
other end the worker gets for a leash. Knows no cluster library and no database, and does not choose what runs.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from engine import worker
from engine.executors import Ending, Lock, Work
from engine.executors.local import LocalExecutor, LocalWorker
from engine.executors.processes import is_same_process, process_start_s
from engine.leash import Leash
from engine.measure.environment import NODE_VARIABLE, versions

#: What a spec calls the one GPU that the cluster gives a run; its worker sees no other.
ANY_GPU = "cuda:0"
_FOLDER = "peft-lab-node-"
_MOST_LOG_BYTES = 2**18
#: How a process ended is known a moment after it did.
_EXIT_CODE_S = 2.0


class NodeAgent:
    """The supervisor's hands on one node. Its methods are called over the network; all they take and give is plain."""

    def __init__(self, name: str) -> None:
        _as_the_node_was_started()
        os.environ[NODE_VARIABLE] = name
        self._executor = LocalExecutor()
        self._folder = _own_folder()
        self._key = secrets.token_bytes(32)
        self._changed = threading.Lock()
        self._gpus: tuple[str, ...] = ()
        #: Devices that are kept for a run that has not begun, by what the driver calls each of its requests.
        self._kept: dict[str, Lock] = {}
        self._given_up: set[str] = set()
        self._workers: dict[str, LocalWorker] = {}
        self._cancelled: set[str] = set()

    def start(self) -> dict[str, Any]:
        """Import what workers need, once, and say what this node has and where its tasks find this agent.

        Raises:
            ExecutorError: if no worker can be started here.
        """
        devices = self._executor.start()
        self._gpus = tuple(device.id for device in devices if device.kind == "cuda")
        listener = Listener(str(self._folder / "agent"), "AF_UNIX", authkey=self._key)
        threading.Thread(target=self._serve, args=(listener,), name="agent", daemon=True).start()
        return {
            "devices": [asdict(device) for device in devices],
            "versions": versions(),
            "environment": self._executor.environment,
            "address": listener.address,
            "key": self._key,
        }

    def lock(self, device: str, token: str) -> bool:
        """Keep a device for the run that will name ``token``; False if measurements use it. ``cuda:0`` is any GPU."""
        with self._changed:
            if token in self._given_up:
                self._given_up.discard(token)
                return False
            for one in self._gpus if device == ANY_GPU else (device,):
                taken = self._executor.lock(one)
                if taken is not None:
                    self._kept[token] = taken
                    return True
        return False

    def release(self, token: str) -> None:
        """Give up what was kept, or is about to be, and no run has begun on."""
        with self._changed:
            kept = self._kept.pop(token, None)
            if kept is None:
                # Calls may overtake each other.
                self._given_up.add(token)
            else:
                kept.close()

    def look(self, runs: Mapping[str, int]) -> dict[str, dict[str, Any]]:
        """Where each of these runs is that has begun here, and what its log has from the given byte on."""
        seen = {}
        for run, log_from in runs.items():
            found = self._worker(run)
            if found is not None:
                progress = found.progress()
                seen[run] = {
                    "progress": None if progress is None else asdict(progress),
                    "log": _log(found.work.folder, log_from, _MOST_LOG_BYTES),
                }
        return seen

    def cancel(self, run: str, ending: Ending, grace_s: float) -> None:
        """End a run's worker and wait for that; one that has not begun never will."""
        with self._changed:
            found = self._workers.get(run)
            if found is None:
                self._cancelled.add(run)
        if found is not None:
            found.cancel(ending, grace_s)

    def collect(self, run: str, token: str, log_from: int, ending: Ending | None) -> dict[str, Any] | None:
        """What came of a run, with the rest of its log; None if it never began here. Forgets all about the run.

        ``ending`` is what it is called if it still runs, or if it left no result and nobody ended it.
        """
        with self._changed:
            found = self._workers.pop(run, None)
            self._cancelled.discard(run)
            kept = self._kept.pop(token, None)
        if kept is not None:
            kept.close()
        if found is None:
            return None
        patience_s = time.monotonic() + _EXIT_CODE_S
        while ending is None and found.is_alive() and time.monotonic() < patience_s:
            time.sleep(0.002)
        if found.is_alive():
            found.cancel(ending or ("lost", "The worker was left by the task that had asked for it"))
        answer = {"document": found.collect(), "log": _log(found.work.folder, log_from, None)}
        shutil.rmtree(found.work.folder, ignore_errors=True)
        return answer

    # --- the tasks of this node -------------------------------------------------------------------------------------

    def _serve(self, listener: Listener) -> None:
        while True:
            # A task that is ended while it speaks is nobody's loss but its own.
            with (
                contextlib.suppress(multiprocessing.AuthenticationError, EOFError, OSError),
                listener.accept() as connection,
            ):
                problem = self._begin(connection, json.loads(connection.recv_bytes()))
                connection.send_bytes(json.dumps(problem).encode())

    def _begin(self, connection: Connection[Any, Any], request: Mapping[str, Any]) -> str | None:
        """Start the worker of one run, on a leash whose other end the task has. Returns why not, if it cannot be."""
        run = request["run"]
        with self._changed:
            if run in self._cancelled:
                return "it was cancelled"
            lock = self._kept.pop(request["token"], None)
            if lock is None:
                return f"{request['device']} is not kept for it"
            work = Work(request["spec"], request["spec_hash"], self._folder / run)
            try:
                with socket.socket(fileno=os.dup(connection.fileno())) as requester:
                    leash = Leash(requester, request["gpu"])
                    self._workers[run] = self._executor.submit(work, lock, leash)
            except (OSError, EOFError) as error:
                return str(error) or type(error).__name__
            finally:
                lock.close()
        return None

    def _worker(self, run: str) -> LocalWorker | None:
        with self._changed:
            return self._workers.get(run)


def _as_the_node_was_started() -> None:
    """Undo what the cluster's library set for itself, so that workers find what they would find without it."""
    started = (entry.partition("=") for entry in Path("/proc/self/environ").read_text().split("\0") if "=" in entry)
    variables = {name: value for name, _, value in started}
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)
    # Workers import the main module of the process that they come from. Here that is the library's own.
    sys.modules["__main__"] = types.ModuleType("__main__")


def _own_folder() -> Path:
    """A folder for the runs of this process, under its name. Those of agents that are gone are removed."""
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_FOLDER}*@*"):
        pid, _, start_s = left.name.removeprefix(_FOLDER).partition("@")
        with contextlib.suppress(ValueError):
            if not is_same_process(int(pid), float(start_s)):
                shutil.rmtree(left, ignore_errors=True)
    folder = parent / f"{_FOLDER}{os.getpid()}@{process_start_s(os.getpid()):.2f}"
    folder.mkdir(mode=0o700)
    return folder


def _log(folder: Path, first_byte: int, most_bytes: int | None) -> bytes:
    try:
        with (folder / worker.LOG_FILE).open("rb") as file:
            file.seek(first_byte)
            return file.read(-1 if most_bytes is None else most_bytes)
    except OSError:
        return b""
