"""The request that plans what fits where. Measures nothing, allocates no weights."""

from __future__ import annotations

from collections.abc import Callable

from engine.jobs.outcome import Outcome
from engine.planning.plan import plan
from engine.result import Progress
from engine.spec import PlanSpec


def run(spec: PlanSpec, report: Callable[[Progress], None]) -> Outcome:
    """Plan; the outcome's ``inspection`` holds all of it.

    Raises:
        SpecError: one sentence, when the model cannot be built.
    """
    return Outcome(inspection=plan(spec, report))
