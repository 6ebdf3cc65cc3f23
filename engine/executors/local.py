"""Run workers on this machine: forked from a warm server that has imported everything and run nothing.

Starts and ends worker processes and collects what they leave; a ``Watch`` holds them to their limits. Does not know the
queue or the database. A worker keeps running when the process that started it dies; ``adopt`` takes it over.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import engine
from engine import worker
from engine.executors import Ending, ExecutorError, Lock, Node, Work
from engine.executors.endings import document_without_result, ended_by_itself
from engine.executors.processes import (
    DeviceLock,
    asleep_s,
    end_processes,
    is_same_process,
    process_age_s,
    process_start_s,
    signal_processes,
)
from engine.executors.watch import Watch
from engine.leash import Leash
from engine.measure.environment import WORKER_ENVIRONMENT, node_name, versions
from engine.measure.process_memory import AnonymousMemory, read_process_memory
from engine.result import Device, Progress, Sample

StartMethod = Literal["forkserver", "spawn"]
_PROBE_TIMEOUT_S = 120.0
#: A forked worker says who it is within milliseconds, on a machine at its limit within a second or two.
_ORPHAN_WAIT_S = 2.0


class LocalWorker:
    """One worker process of this host, started here or adopted from a supervisor that died. ``executors.Worker``."""

    def __init__(self, work: Work, pid: int, process_start_s: float, process: Any = None) -> None:
        self.work = work
        self.pid = pid
        self.process_start_s = process_start_s
        self.ending: Ending | None = None
        self.sentinel: int | None = None if process is None else process.sentinel
        self.samples: list[Sample] = []
        #: Anonymous memory as the watch saw it last, and the largest it saw.
        self.rss_anon_bytes = self.peak_rss_anon_bytes = 0
        self._process = process
        self._seen_alive = process is not None
        self._asleep_s_at_start = asleep_s()
        self._exit_code: int | None = None
        self._memory_kills_at_start = _memory_kills()
        self._progress: Progress | None = None
        self._progress_stamp_ns = 0
        self._memory: AnonymousMemory | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the worker process started, less those in which the machine slept while this one knew it."""
        return process_age_s(self.process_start_s) - (asleep_s() - self._asleep_s_at_start)

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        if self._process is None:
            alive = is_same_process(self.pid, self.process_start_s)
            self._seen_alive |= alive
            return alive
        # The fork server tells how its child ended, a moment after it did; an adopted worker has nobody to tell.
        self._process.join(timeout=0)
        self._exit_code = self._process.exitcode
        if self._exit_code is None:
            return True
        if is_same_process(self.pid, self.process_start_s):
            # It is the fork server that ended, and what it does not tell any more is seen from outside.
            self._process = self.sentinel = self._exit_code = None
            return True
        return False

    def progress(self) -> Progress | None:
        """Where the job says it is; None before it said anything."""
        path = self.work.folder / worker.PROGRESS_FILE
        with contextlib.suppress(OSError, ValueError, TypeError):
            stamp_ns = path.stat().st_mtime_ns
            if stamp_ns != self._progress_stamp_ns:
                self._progress = Progress(**json.loads(path.read_text()))
                self._progress_stamp_ns = stamp_ns
        return self._progress

    @property
    def phase(self) -> str | None:
        """The phase that the job named last, None before it named one."""
        progress = self.progress()
        return None if progress is None else progress.phase

    def cancel(self, ending: Ending, grace_s: float = 1.0) -> None:
        """End the worker and everything it started, and wait for that. One that has ended keeps its own ending."""
        if self.is_alive():
            self.ending = self.ending or ending
        end_processes(self.pid, self.process_start_s, grace_s)

    def collect(self) -> dict[str, Any]:
        """The result document of a worker that has ended, with what was seen of it from outside.

        Ends what the worker left behind, but not where it ended before it was adopted: its number may be another's by
        now.
        """
        if self._seen_alive:
            end_processes(self.pid, self.process_start_s, grace_s=0)
        document = self._document_left()
        if document is None:
            return document_without_result(
                self.work,
                self.ending or ended_by_itself(self._exit_code, killed_for_memory=self._killed_for_memory()),
                peak_bytes=self.peak_rss_anon_bytes,
                samples=self.samples,
                environment=self._environment(),
            )
        # A result that was whole before the worker was ended is kept: it was measured.
        document["samples"] = [asdict(sample) for sample in self.samples] + list(document.get("samples") or [])
        return document

    # --- for the watch ----------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Note how much memory the worker has now; False once it has ended."""
        if self._memory is None:
            try:
                self._memory = AnonymousMemory(self.pid)
            except OSError:
                return self._look_without_proc()
        size_bytes = self._memory.read_bytes()
        if size_bytes is None:
            self.rss_anon_bytes = 0
            self._memory.close()
            return False
        self._note(size_bytes)
        return True

    def sample(self) -> None:
        """Keep what the worker has now among its samples, anonymous and file-backed apart."""
        memory = read_process_memory(self.pid)
        if memory is None:
            return
        phase, time_s = self.phase or "starting", round(self.age_s, 3)
        for category, size_bytes in (("anonymous", memory.rss_anon_bytes), ("file-backed", memory.rss_file_bytes)):
            if size_bytes is not None:
                self.samples.append(Sample("process", time_s, phase, category, size_bytes))

    def kill(self, ending: Ending) -> None:
        """End the worker and everything it started at once, without waiting for it."""
        self.ending = self.ending or ending
        signal_processes(self.pid, self.process_start_s, signal.SIGKILL)

    # --- what is left of it -----------------------------------------------------------------------------------------

    def _look_without_proc(self) -> bool:
        alive = is_same_process(self.pid, self.process_start_s)
        memory = read_process_memory(self.pid) if alive else None
        if memory is not None:
            self._note(memory.rss_bytes)
        return alive

    def _note(self, size_bytes: int) -> None:
        self.rss_anon_bytes = size_bytes
        self.peak_rss_anon_bytes = max(self.peak_rss_anon_bytes, size_bytes)

    def _document_left(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads((self.work.folder / worker.RESULT_FILE).read_text())
        except (OSError, ValueError):
            return None
        return document

    def _environment(self) -> dict[str, Any]:
        """What the worker runs on, by its own words once it has said so; empty if nobody wrote it."""
        try:
            document: dict[str, Any] = json.loads((self.work.folder / worker.ENVIRONMENT_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return document

    def _killed_for_memory(self) -> bool:
        """Whether the kernel's out-of-memory killer struck on this machine since this worker was started."""
        return _memory_kills() > self._memory_kills_at_start


class LocalExecutor:
    """Starts workers: ``forkserver`` (warm, the default) or ``spawn`` (cold, where fork is not to be had).

    Raises:
        SpecError: if the setting of the machine's memory reserve is no number of bytes.
    """

    def __init__(self, start_method: StartMethod = "forkserver") -> None:
        self.start_method = start_method
        # Typed loosely: the context classes share their methods but not a base class that declares them.
        self._context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            self._context.set_forkserver_preload(["engine.preload"])
        self._devices: list[Device] = []
        self._environment: dict[str, Any] = {}
        self._watch = Watch()

    def start(self) -> list[Device]:
        """Start the fork server, prove that its preload worked, and return this machine's devices.

        Raises:
            ExecutorError: if the preload failed; Python itself would go on silently and import cold in every worker.
        """
        # The fork server and every worker get these at their start: later changes never reach them.
        os.environ.update(WORKER_ENVIRONMENT)
        root = str(Path(engine.__file__).resolve().parent.parent)
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        if root not in paths:
            os.environ["PYTHONPATH"] = os.pathsep.join([root, *paths])
        answer = self._probe() or self._probe()
        if answer is None:
            raise ExecutorError("the first worker ended before it answered; run `python -m engine.preload`")
        if self.start_method == "forkserver" and not answer["preloaded"]:
            raise ExecutorError(f"the fork server could not import engine.preload: {answer['reason'] or 'unknown'}")
        self._environment = answer["environment"]
        self._devices = [Device(**{**device, "dtypes": tuple(device["dtypes"])}) for device in answer["devices"]]
        return self._devices

    def _probe(self) -> dict[str, Any] | None:
        """What the first worker says of the preload and of this machine; None if it ended before it said so."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=worker.probe, args=(sender,), daemon=True)
        try:
            process.start()
            sender.close()
            if not receiver.poll(_PROBE_TIMEOUT_S):
                raise ExecutorError(f"no worker answered within {_PROBE_TIMEOUT_S:.0f} s")
            answer: dict[str, Any] = receiver.recv()
            process.join(timeout=5)
        except (EOFError, ConnectionError):
            return None
        finally:
            sender.close()
            receiver.close()
        return answer

    def nodes(self) -> list[Node]:
        """This machine."""
        return [Node(node_name(), tuple(self._devices), versions(), is_head=True)]

    @property
    def environment(self) -> Mapping[str, Any]:
        """What workers run on, as the first one saw it; empty before ``start``."""
        return self._environment

    def lock(self, device: str, node: str | None = None) -> DeviceLock | None:
        """Take the host-wide lock of a device, or return None at once if it is held."""
        return DeviceLock.try_acquire(device)

    def submit(self, work: Work, lock: Lock | None, leash: Leash | None = None) -> LocalWorker:
        """Start a worker in the folder of ``work``, which is made, and watch it. It gets its own copy of ``lock``.

        With a ``leash`` it ends with whoever holds the other end; without one it outlives this process.

        Raises:
            OSError: if the folder cannot be written or the process not be started.
        """
        folder, document = work.folder, dict(work.spec)
        folder.mkdir(parents=True, exist_ok=True)
        # A run that is queued in a restored database may have been measured before it was restored.
        for left in (worker.RESULT_FILE, worker.WORKER_FILE):
            (folder / left).unlink(missing_ok=True)
        (folder / "spec.json").write_text(json.dumps(document, indent=2))
        # What the first worker saw; this one replaces it, unless it is ended before it comes to that.
        (folder / worker.ENVIRONMENT_FILE).write_text(json.dumps(self._environment))
        started = self._fork(work, lock, leash)
        self._watch.add(started)
        return started

    def _fork(self, work: Work, lock: Lock | None, leash: Leash | None) -> LocalWorker:
        arguments = (dict(work.spec), str(work.folder), lock, leash)
        for is_second in (False, True):
            process = self._context.Process(target=worker.main, args=arguments)
            try:
                process.start()
            except (EOFError, ConnectionError) as error:
                # The fork server was killed. The worker may be there nevertheless; if not, another server forks it.
                found = _wait_for_identity(work.folder)
                if found is not None:
                    return LocalWorker(work, *found)
                if is_second:
                    raise OSError(f"the fork server ended twice before the worker began: {error!r}") from None
                continue
            assert process.pid is not None, "a started process has a pid"
            return LocalWorker(work, process.pid, process_start_s(process.pid) or 0.0, process)
        raise AssertionError("one of two attempts returns or raises")

    def adopt(self, work: Work) -> LocalWorker | None:
        """Take over a worker that outlived its supervisor, by pid and start time, or what it left; None if none was."""
        identity = _worker_identity(work.folder)
        if identity is None:
            return None
        adopted = LocalWorker(work, *identity)
        if adopted.is_alive():
            self._watch.add(adopted)
        else:
            adopted.ending = "lost", "The supervisor and the worker both ended before there was a result"
        return adopted


def _wait_for_identity(folder: Path) -> tuple[int, float] | None:
    deadline_s = time.monotonic() + _ORPHAN_WAIT_S
    while time.monotonic() < deadline_s:
        found = _worker_identity(folder)
        if found is not None:
            return found
        time.sleep(0.05)
    return None


def _memory_kills() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _worker_identity(folder: Path) -> tuple[int, float] | None:
    """Pid and start (seconds since boot) of the worker of a run folder, as it wrote them itself."""
    try:
        document = json.loads((folder / worker.WORKER_FILE).read_text())
        return int(document["pid"]), float(document["process_start_s"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
