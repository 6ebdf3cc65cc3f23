"""What a run is called when its worker left no result: past a limit, killed, or gone. Pure functions.

Does not look at processes, does not end them and does not store anything. Used wherever workers run, so that a run ends
in the same words everywhere.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from engine.executors import Ending, Work
from engine.measure.free_memory import RESERVE_VARIABLE
from engine.result import Failure, Metric, Result, Sample


def limit_passed(spec: Mapping[str, Any], age_s: float, peak_bytes: int, phase: str | None) -> Ending | None:
    """How a run ends that has passed one of its spec's own limits; None while it is within them.

    ``peak_bytes`` is the largest anonymous memory seen of its process, ``phase`` what its job said last.
    """
    timeout_s, limit_bytes = spec.get("timeout_s"), spec.get("memory_limit_bytes")
    if timeout_s is not None and age_s > timeout_s:
        return "timed_out", f"timeout_s: the run took longer than its {timeout_s:g} s"
    if limit_bytes is not None and peak_bytes > limit_bytes:
        text = f"the run reached {_size(peak_bytes)}, over its limit of {_size(limit_bytes)}{_in(phase)}"
        return "out_of_memory", f"memory_limit_bytes: {text}"
    return None


def reserve_reached(peak_bytes: int, phase: str | None, free_bytes: int, reserve_bytes: int) -> Ending:
    """How a run ends that was stopped because the machine had less memory left than no run may take."""
    return "out_of_memory", (
        f"The run was stopped at {_size(peak_bytes)}{_in(phase)}, because the machine had {_size(free_bytes)} left, "
        f"less than its reserve of {_size(reserve_bytes)} ({RESERVE_VARIABLE})"
    )


def ended_by_itself(exit_code: int | None, *, killed_for_memory: bool) -> Ending:
    """Why a worker that nobody ended left no result, as far as the system tells.

    ``killed_for_memory``: the kernel ended processes of this machine for want of memory while it ran.
    """
    if exit_code is None or exit_code >= 0:
        code = "" if exit_code is None else f" with exit code {exit_code}"
        return "lost", f"The worker process ended{code} before it wrote a result; its log may say why"
    name = signal.Signals(-exit_code).name
    if name == "SIGKILL" and killed_for_memory:
        return "out_of_memory", "The operating system ended the worker because the machine ran out of memory"
    return "lost", f"The worker process was ended by {name} before it wrote a result"


def document_without_result(
    work: Work,
    ending: Ending,
    *,
    peak_bytes: int | None = None,
    samples: Sequence[Sample] = (),
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result document of a run whose worker could not write one, with all that was seen of it from outside.

    Out of memory it carries ``peak_bytes``, the largest anonymous memory seen.
    """
    state, text = ending
    metrics: tuple[Metric, ...] = ()
    if peak_bytes is not None and state == "out_of_memory":
        metrics = (Metric("peak_rss_bytes", "bytes", float(peak_bytes), variant="anonymous"),)
    return Result(
        state=state,
        spec=dict(work.spec),
        spec_hash=work.spec_hash,
        metrics=metrics,
        samples=tuple(samples),
        environment=environment or {},
        error=Failure(state, text),
    ).to_document()


def _in(phase: str | None) -> str:
    return "" if phase is None else f" in the phase {phase!r}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.3g} GiB"
