"""Not written yet."""

from __future__ import annotations

from collections.abc import Callable

from engine.jobs.outcome import Outcome
from engine.result import Progress
from engine.spec import MergeFilesSpec


def run(spec: MergeFilesSpec, report: Callable[[Progress], None]) -> Outcome:
    """Not written yet."""
    raise NotImplementedError(spec.kind)
