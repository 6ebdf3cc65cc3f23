"""The published claims as data, and the verdicts on them. Imports no torch, so that pages can use it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

from engine.cases import inference, init, merge, train_memory, train_speed
from engine.cases.evidence import DISTURBED_SHARE
from engine.cases.observing import observe
from engine.cases.predicting import Peaks
from engine.cases.predicting import predicted_ratios as _predicted_ratios
from engine.cases.records import (
    WORDS,
    Advice,
    Case,
    Observation,
    Published,
    Ratio,
    Size,
    Source,
    Sweep,
    Verdict,
    Word,
)
from engine.cases.train_memory import LITTLE_SAVED, little_saved_from
from engine.cases.verdicts import not_testable

__all__ = [
    "DISTURBED_SHARE",
    "LITTLE_SAVED",
    "WORDS",
    "Advice",
    "Case",
    "Observation",
    "Peaks",
    "Published",
    "Ratio",
    "Size",
    "Source",
    "Sweep",
    "Verdict",
    "Word",
    "case",
    "cases",
    "little_saved_from",
    "observe",
    "predicted_ratios",
    "verdict",
]

_MODULES = (init, merge, train_memory, inference, train_speed)


@functools.cache
def cases() -> tuple[Case, ...]:
    """The five claims, by number."""
    return tuple(module.CASE for module in _MODULES)


def case(case_id: str) -> Case:
    """The claim with that id.

    Raises:
        KeyError: if there is none.
    """
    return {known.id: known for known in cases()}[case_id]


def verdict(
    judged: Case, observations: Sequence[Observation], device_kinds: Collection[str], size: Size = "here"
) -> Verdict:
    """What a case's rule says of the runs of one of its sweeps.

    Args:
        judged: the case.
        observations: runs that ended; those that are not of this sweep are passed over.
        device_kinds: kinds of the devices on this machine (``cpu``, ``cuda``).
        size: which sweep.
    """
    sweep = judged.sweep(size)
    missing = not_testable(sweep, device_kinds)
    if missing is not None:
        return missing
    return _judge(judged)(sweep, observations)


def predicted_ratios(judged: Case, sweep: Sweep, predicted: Mapping[str, Peaks]) -> tuple[Ratio, ...]:
    """The ratios of a case as they are predicted for one of its sweeps, in the order of its measured ones.

    Args:
        judged: the case.
        sweep: one of its sweeps, or of those that are only predicted.
        predicted: what is known of each spec, by its hash.
    """
    return _predicted_ratios(_judge(judged), sweep, predicted)


def _judge(judged: Case) -> Callable[[Sweep, Sequence[Observation]], Verdict]:
    return next(module for module in _MODULES if module.CASE.id == judged.id).judge
