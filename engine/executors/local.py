"""Run workers on this machine: forked from a warm server that has imported everything and run nothing.

Starts, watches, samples and ends worker processes. Does not know the queue or the database, and decides nothing: the
caller says when to look, when to cancel and what a missing result means. A worker keeps running when the process that
started it dies; ``adopt`` takes it over.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import engine
from engine import worker
from engine.executors import ExecutorError
from engine.executors.processes import DeviceLock, end_process_group, is_same_process, process_age_s, process_start_s
from engine.measure.environment import WORKER_ENVIRONMENT
from engine.measure.process_memory import read_process_memory
from engine.result import Device, Progress, Sample

StartMethod = Literal["forkserver", "spawn"]
SAMPLE_INTERVAL_S = 0.05
_PROBE_TIMEOUT_S = 120.0


class LocalWorker:
    """One worker process of this host, started here or adopted from a supervisor that died."""

    def __init__(self, pid: int, process_start_s: float, folder: Path, sentinel: int | None = None) -> None:
        self.pid = pid
        self.process_start_s = process_start_s
        self.folder = folder
        self.sentinel = sentinel
        self.samples: list[Sample] = []
        #: The largest anonymous memory seen from outside so far.
        self.peak_rss_anon_bytes = 0
        self.exit_code: int | None = None
        self._process: Any = None
        self._memory_kills_at_start = _memory_kills()
        self._progress: Progress | None = None
        self._progress_stamp_ns = 0

    @property
    def age_s(self) -> float:
        """Seconds since the worker process started, also if another supervisor started it."""
        return process_age_s(self.process_start_s)

    def is_alive(self) -> bool:
        """Whether the process still runs. Once it does not, ``exit_code`` is set if the system told us."""
        if self._process is not None:
            # The fork server tells how its child ended, a moment after it did; an adopted worker has nobody to tell.
            self._process.join(timeout=0)
            self.exit_code = self._process.exitcode
            return self.exit_code is None
        return is_same_process(self.pid, self.process_start_s)

    def progress(self) -> Progress | None:
        """Where the job says it is; None before it said anything."""
        path = self.folder / worker.PROGRESS_FILE
        with contextlib.suppress(OSError, ValueError, TypeError):
            stamp_ns = path.stat().st_mtime_ns
            if stamp_ns != self._progress_stamp_ns:
                self._progress = Progress(**json.loads(path.read_text()))
                self._progress_stamp_ns = stamp_ns
        return self._progress

    def environment(self) -> dict[str, Any]:
        """What the worker runs on, by its own words once it has said so; empty if nobody wrote it."""
        try:
            document: dict[str, Any] = json.loads((self.folder / worker.ENVIRONMENT_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return document

    def sample(self) -> None:
        """Look at the worker's memory from outside and keep what was seen, anonymous and file-backed apart."""
        memory = read_process_memory(self.pid)
        if memory is None:
            return
        phase = self._progress.phase if self._progress else "starting"
        time_s = round(self.age_s, 3)
        self.peak_rss_anon_bytes = max(self.peak_rss_anon_bytes, memory.rss_anon_bytes or 0)
        for category, size_bytes in (("anonymous", memory.rss_anon_bytes), ("file-backed", memory.rss_file_bytes)):
            if size_bytes is not None:
                self.samples.append(Sample("process", time_s, phase, category, size_bytes))

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel's out-of-memory killer struck on this machine since this worker was started."""
        return _memory_kills() > self._memory_kills_at_start

    def cancel(self, grace_s: float = 1.0) -> None:
        """End the worker's whole process group."""
        if is_same_process(self.pid, self.process_start_s):
            end_process_group(self.pid, grace_s)

    def collect(self) -> dict[str, Any] | None:
        """The result document the worker left, with the samples seen from outside; None if it left none."""
        try:
            document: dict[str, Any] = json.loads((self.folder / worker.RESULT_FILE).read_text())
        except (OSError, ValueError):
            return None
        document["samples"] = [asdict(sample) for sample in self.samples] + list(document.get("samples") or [])
        return document


class LocalExecutor:
    """Starts workers: ``forkserver`` (warm, the default) or ``spawn`` (cold, where fork is not to be had)."""

    def __init__(self, start_method: StartMethod = "forkserver") -> None:
        self.start_method = start_method
        # Typed loosely: the context classes share their methods but not a base class that declares them.
        self._context: Any = multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            self._context.set_forkserver_preload(["engine.preload"])
        self._environment: dict[str, Any] = {}

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
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=worker.probe, args=(sender,), daemon=True)
        process.start()
        sender.close()
        try:
            if not receiver.poll(_PROBE_TIMEOUT_S):
                raise ExecutorError(f"no worker answered within {_PROBE_TIMEOUT_S:.0f} s")
            answer = receiver.recv()
        except EOFError:
            raise ExecutorError("the first worker ended before it answered; run `python -m engine.preload`") from None
        finally:
            receiver.close()
            process.join(timeout=5)
        if self.start_method == "forkserver" and not answer["preloaded"]:
            raise ExecutorError(f"the fork server could not import engine.preload: {answer['reason'] or 'unknown'}")
        self._environment = answer["environment"]
        return [Device(**{**device, "dtypes": tuple(device["dtypes"])}) for device in answer["devices"]]

    def submit(self, spec_document: Mapping[str, Any], folder: Path, lock: DeviceLock | None) -> LocalWorker:
        """Start a worker for one spec in ``folder``, which is made. The worker gets its own copy of ``lock``."""
        folder.mkdir(parents=True, exist_ok=True)
        # A run that is queued in a restored database may have been measured before it was restored.
        for left in (worker.RESULT_FILE, worker.WORKER_FILE):
            (folder / left).unlink(missing_ok=True)
        (folder / "spec.json").write_text(json.dumps(spec_document, indent=2))
        # What the first worker saw; this one replaces it, unless it is ended before it comes to that.
        (folder / worker.ENVIRONMENT_FILE).write_text(json.dumps(self._environment))
        process = self._context.Process(target=worker.main, args=(dict(spec_document), str(folder), lock))
        process.start()
        pid = process.pid
        assert pid is not None, "a started process has a pid"
        started = LocalWorker(pid, process_start_s(pid) or 0.0, folder, process.sentinel)
        started._process = process
        return started

    @staticmethod
    def adopt(folder: Path) -> LocalWorker | None:
        """Take over a worker that outlived its supervisor, by pid and start time; None if it is gone."""
        identity = worker_identity(folder)
        if identity is None or not is_same_process(*identity):
            return None
        return LocalWorker(*identity, folder)


def _memory_kills() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def worker_identity(folder: Path) -> tuple[int, float] | None:
    """Pid and start (seconds since boot) of the worker of a run folder, as it wrote them itself."""
    try:
        document = json.loads((folder / worker.WORKER_FILE).read_text())
        return int(document["pid"]), float(document["process_start_s"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
