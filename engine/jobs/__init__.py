"""What is measured: one module per kind, each with ``run(spec, report) -> Outcome``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from engine.jobs.outcome import Outcome
from engine.result import Progress
from engine.spec import Spec

KINDS = ("init", "merge", "train", "inference", "inspect", "predict", "plan", "merge_files")
JOBS: Mapping[str, str] = {kind: f"engine.jobs.{kind}" for kind in KINDS}
"""Kind of a spec -> the module that runs it."""


def run_job(spec: Spec, report: Callable[[Progress], None]) -> Outcome:
    """Run a spec's job in this process; imports the job's module (and torch) only now.

    Raises:
        SpecError: if what the spec asks for cannot be built.
    """
    outcome: Outcome = importlib.import_module(JOBS[spec.kind]).run(spec, report)
    return outcome
