"""The request that lists a model's adaptable modules. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable

from engine.inspection import inspect_model
from engine.jobs.outcome import Outcome
from engine.result import Progress
from engine.spec import InspectSpec


def run(spec: InspectSpec, report: Callable[[Progress], None]) -> Outcome:
    """Inspect the spec's model; the description is the outcome's ``inspection``.

    Raises:
        SpecError: one sentence, when there is no such model or it cannot be built.
    """
    report(Progress("inspecting"))
    return Outcome(inspection=inspect_model(spec.model))
