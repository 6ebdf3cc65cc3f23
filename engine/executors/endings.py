"""What a run is called when its worker left no result: past a limit, killed, or gone. Pure functions over a worker.

Does not end processes and does not store anything. Used by the supervisor and by the command line alike, so that a run
ends in the same words wherever it ran.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from engine.executors.local import LocalWorker
from engine.measure.free_memory import RESERVE_VARIABLE, free_memory_bytes, reserve_bytes
from engine.result import Failure, Metric, Result, State

Ending = tuple[State, str]


def limit_passed(spec: Mapping[str, Any], worker: LocalWorker) -> Ending | None:
    """The state and sentence of a run that must be ended now, by its own limits or because the machine runs out."""
    timeout_s, limit_bytes = spec.get("timeout_s"), spec.get("memory_limit_bytes")
    if timeout_s is not None and worker.age_s > timeout_s:
        return "timed_out", f"timeout_s: the run took longer than its {timeout_s:g} s"
    peak_bytes = worker.peak_rss_anon_bytes
    if limit_bytes is not None and peak_bytes > limit_bytes:
        text = f"the run reached {peak_bytes} bytes, over its limit {limit_bytes}{_phase_of(worker)}"
        return "out_of_memory", f"memory_limit_bytes: {text}"
    free_bytes, reserve = free_memory_bytes(), reserve_bytes()
    if free_bytes < reserve:
        return "out_of_memory", (
            f"The run was stopped at {peak_bytes} bytes{_phase_of(worker)}, because the machine had {free_bytes} left, "
            f"less than the reserve of {reserve} ({RESERVE_VARIABLE})"
        )
    return None


def _phase_of(worker: LocalWorker) -> str:
    progress = worker.progress()
    return "" if progress is None else f" in the phase {progress.phase!r}"


def ending_of(worker: LocalWorker) -> Ending:
    """Why a worker that is gone left no result, as far as the system tells."""
    if worker.exit_code is None or worker.exit_code >= 0:
        code = "" if worker.exit_code is None else f" with exit code {worker.exit_code}"
        return "lost", f"The worker process ended{code} before it wrote a result; its log may say why"
    name = signal.Signals(-worker.exit_code).name
    if name == "SIGKILL" and worker.was_killed_for_memory():
        return "out_of_memory", "The operating system ended the worker because the machine ran out of memory"
    return "lost", f"The worker process was ended by {name} before it wrote a result"


def document_without_result(
    spec: Mapping[str, Any], spec_hash: str, ending: Ending, worker: LocalWorker | None = None
) -> dict[str, Any]:
    """The result document of a run whose worker could not write one, with all that is known of it.

    A worker, also one that is gone, adds its environment, its samples and, out of memory, the peak seen so far.
    """
    state, text = ending
    metrics: tuple[Metric, ...] = ()
    if worker is not None and state == "out_of_memory":
        metrics = (Metric("peak_rss_bytes", "bytes", float(worker.peak_rss_anon_bytes), variant="anonymous"),)
    return Result(
        state=state,
        spec=dict(spec),
        spec_hash=spec_hash,
        metrics=metrics,
        samples=tuple(worker.samples) if worker else (),
        environment=worker.environment() if worker else {},
        error=Failure(state, text),
    ).to_document()
