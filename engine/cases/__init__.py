"""The published claims as data, and the verdicts on them. Imports no torch, so that pages can use it."""

from __future__ import annotations

from engine.cases import inference, init, merge, train_memory, train_speed
from engine.cases.records import Advice, Case, Observation, Published, Ratio, Size, Source, Sweep, Verdict

__all__ = [
    "Advice",
    "Case",
    "Observation",
    "Published",
    "Ratio",
    "Size",
    "Source",
    "Sweep",
    "Verdict",
    "case",
    "cases",
]

_MODULES = (init, merge, train_memory, inference, train_speed)


def cases() -> tuple[Case, ...]:
    """The five claims, by number."""
    return tuple(module.CASE for module in _MODULES)


def case(case_id: str) -> Case:
    """The claim with that id.

    Raises:
        KeyError: if there is none.
    """
    return {known.id: known for known in cases()}[case_id]
