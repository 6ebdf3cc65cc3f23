"""One spec in, one result out, in a process of its own: what runs between the fork and the result file.

Does not start processes, choose what runs or talk to a database; that is the executor's and the supervisor's. Writes
into its run folder ``worker.json`` (who it is), ``environment.json`` (what it runs on), ``progress.json`` (where it
is), ``log.txt`` and, once and whole, ``result.json``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.executors.processes import DeviceLock, process_start_s
from engine.leash import Leash
from engine.result import Check, Failure, Metric, Progress, Result, Sample
from engine.secrets import masked, masking
from engine.spec import MEASURED_KINDS, InspectSpec, MergeFilesSpec, PlanSpec, PredictSpec, Spec, parse_spec, spec_hash

WORKER_FILE = "worker.json"
ENVIRONMENT_FILE = "environment.json"
PROGRESS_FILE = "progress.json"
RESULT_FILE = "result.json"
LOG_FILE = "log.txt"

_PROGRESS_INTERVAL_S = 0.1
_WRITE_AGAIN_S = 1.0
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def main(spec_document: Mapping[str, Any], folder: str, lock: DeviceLock | None, leash: Leash | None = None) -> None:
    """Run one spec and leave its result in ``folder``. The entry point of every worker process.

    ``lock`` is this worker's copy of the device lock; it is held until the process ends and never used otherwise.
    """
    os.setsid()
    if leash is not None:
        leash.put_on()
    _give_way()
    run_folder = Path(folder)
    _send_output_to(run_folder / LOG_FILE)
    identity = {"pid": os.getpid(), "process_start_s": process_start_s(os.getpid())}
    _insist_on_writing(run_folder / WORKER_FILE, identity)
    spec = parse_spec(spec_document)
    result = _run(spec, run_folder)
    _insist_on_writing(run_folder / RESULT_FILE, result.to_document())


def probe(connection: Any) -> None:
    """Report through ``connection`` whether the preload took place, this machine's devices and the environment.

    Runs in a worker because looking at a GPU initialises CUDA, which must never happen in the fork server.
    """
    preloaded = getattr(sys.modules.get("engine.preload"), "LOADED", False)
    reason = ""
    if not preloaded:
        try:
            import engine.preload  # noqa: F401
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
    from engine.measure.environment import devices, environment

    answer = {"preloaded": preloaded, "reason": reason, "devices": [asdict(device) for device in devices()]}
    connection.send({**answer, "environment": environment()})
    connection.close()


def write_atomically(path: Path, document: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, also after a crash."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _insist_on_writing(path: Path, document: Any) -> None:
    """Write JSON however long it takes: a full disk gets room again, and a folder that somebody deleted is made again.

    What was measured is worth the wait; the run's own time limit ends it.
    """
    is_told = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, document)
        except OSError as error:
            if not is_told:
                _tell(f"{path.name} cannot be written ({error.strerror}); trying again until it can")
                is_told = True
            time.sleep(_WRITE_AGAIN_S)
        else:
            return


def _tell(text: str) -> None:
    # Where a result cannot be written, a log may not be either.
    with contextlib.suppress(OSError):
        logging.getLogger("engine").warning("%s", text)


class _ProgressFile:
    """Keeps ``progress.json`` current, at most ten times a second, so that reporting costs the job nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written_s = -_PROGRESS_INTERVAL_S
        self._phase = ""

    @property
    def phase(self) -> str:
        """The phase reported last."""
        return self._phase

    def __call__(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if progress.phase == self._phase and now_s - self._written_s < _PROGRESS_INTERVAL_S:
            return
        if progress.phase != self._phase:
            logging.getLogger("engine").info("%s", progress.phase)
        self._phase, self._written_s = progress.phase, now_s
        temporary = self._path.with_suffix(".tmp")
        # Where it cannot be shown, the job goes on all the same.
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(progress)))
            temporary.replace(self._path)


def _run(spec: Spec, folder: Path) -> Result:
    """Run the job and turn whatever happens into a result; only the process's death is not one."""
    from engine.measure.disturbance import BackgroundCpu
    from engine.measure.environment import environment

    document, report = spec.model_dump(mode="json"), _ProgressFile(folder / PROGRESS_FILE)
    metrics: tuple[Metric, ...] = ()
    checks: tuple[Check, ...] = ()
    samples: tuple[Sample, ...] = ()
    inspection: Mapping[str, Any] | None = None
    error: Failure | None = None
    state: Any = "succeeded"
    try:
        _prepare_process(spec)
        # A worker that is ended leaves no result to hold it; until here there is what the executor wrote.
        with contextlib.suppress(OSError):
            write_atomically(folder / ENVIRONMENT_FILE, environment())
        from engine.jobs import JOBS, run_job

        importlib.import_module(JOBS[spec.kind])
        logging.getLogger("engine").info("job started at %.4f", time.time())
        with BackgroundCpu() as background:
            outcome = run_job(spec, report)
        metrics, checks, samples = tuple(outcome.metrics), tuple(outcome.checks), tuple(outcome.samples)
        inspection = outcome.inspection
        if background.share is not None and spec.kind in MEASURED_KINDS:
            metrics += (Metric("background_cpu_share", "share", background.share),)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        state = "out_of_memory" if _is_out_of_memory(problem) else "failed"
        text = _first_sentence(problem)
        if state == "out_of_memory":
            metrics = _peak_so_far()
            text = "; ".join([text, *getattr(problem, "__notes__", ()), f"phase: {report.phase}"])
        error = Failure(type(problem).__name__, text)
    return Result(
        state=state,
        spec=document,
        spec_hash=spec_hash(spec),
        metrics=metrics,
        checks=checks,
        samples=samples,
        environment=environment(),
        error=error,
        inspection=inspection,
    )


def _prepare_process(spec: Spec) -> None:
    import torch

    if isinstance(spec, InspectSpec | PredictSpec | PlanSpec | MergeFilesSpec):
        # A request may run beside a measurement: it takes only what the measurement leaves.
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        torch.set_num_threads(1)
        return
    torch.set_num_threads(spec.threads or len(_usable_cores()))
    torch.manual_seed(spec.seed)


def _usable_cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _give_way() -> None:
    """Let the kernel end this process before any other if the machine runs out of memory faster than it is watched."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _send_output_to(path: Path) -> None:
    """Let everything this process prints, from C libraries too, end in its log file; Python's without secrets."""
    # On a disk that takes no new file it goes where the supervisor's output goes.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
    sys.stdout, sys.stderr = masking(sys.stdout), masking(sys.stderr)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    # The warnings of the libraries' own deprecations say nothing about the measurement.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)


def _is_out_of_memory(problem: BaseException) -> bool:
    import torch

    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem) for text in _OUT_OF_MEMORY_TEXTS)


def _peak_so_far() -> tuple[Metric, ...]:
    from engine.measure.process_memory import read_process_memory

    memory = read_process_memory()
    if memory is None:
        return ()
    return (Metric("peak_rss_bytes", "bytes", float(memory.peak_rss_bytes or memory.rss_bytes)),)


def _first_sentence(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return masked(lines[0]) if lines else f"{type(problem).__name__} without a message"
