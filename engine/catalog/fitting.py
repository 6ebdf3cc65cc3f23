"""Whether what a job needs goes into a memory, what a CPU process takes beside its tensors, and what is best first.

Predicts and measures nothing: bytes in, a word out. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

Fit = Literal["fits", "tight", "will not fit"]
_COMFORTABLE_SHARE = 0.9
RULE = (
    "fits: needs at most 90 % of the memory; tight: at most all of it, so that little else may run there; "
    "will not fit: needs more"
)

_MIB = 2**20
_IDLE_WORKER_BYTES = 43 * _MIB
_KEPT_BY_LIBRARIES_BYTES = 360 * _MIB
_KEPT_SHARE = 0.06
PROCESS_SOURCE = (
    "The most that 27 training runs took beside their tensors (unattributed_bytes; 2 cores, torch 2.13): 43 MiB where "
    "the model is next to nothing, 403 MiB at 0.7 GiB of tensors, 959 MiB at 10 GiB"
)


def fit(needed_bytes: float, memory_bytes: float) -> Fit:
    """Whether that much goes into that memory, by :data:`RULE`."""
    if needed_bytes <= _COMFORTABLE_SHARE * memory_bytes:
        return "fits"
    return "tight" if needed_bytes <= memory_bytes else "will not fit"


def process_bytes(tensor_bytes: int) -> int:
    """What a worker on the CPU is expected to take at most, its tensors and what comes beside them.

    Beside them are the worker itself, what libraries take inside one operation, and freed memory that glibc keeps:
    an upper bound of what was seen (:data:`PROCESS_SOURCE`), not a prediction.
    """
    kept_bytes = min(tensor_bytes, _KEPT_BY_LIBRARIES_BYTES + int(_KEPT_SHARE * tensor_bytes))
    return tensor_bytes + _IDLE_WORKER_BYTES + kept_bytes


RANKING = (
    "What fits comes first, then what is tight, then what will not fit; among equals the shorter step where all their "
    "times are known, else the smaller need. How good the trained model is is not measured here"
)
_WORST_LAST: tuple[Fit | None, ...] = ("fits", "tight", "will not fit", None)


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """A way to train: whether it fits (None where that is not known), what it needs, and a step's seconds if known."""

    fit: Fit | None
    needed_bytes: float
    step_time_s: float | None = None


def ranked(candidates: Sequence[Candidate]) -> list[int]:
    """The candidates' places in the list, best first, by :data:`RANKING`."""
    timed = {word: all(one.step_time_s is not None for one in candidates if one.fit == word) for word in _WORST_LAST}

    def key(place: int) -> tuple[int, float]:
        one = candidates[place]
        cost = one.step_time_s if timed[one.fit] else None
        return _WORST_LAST.index(one.fit), one.needed_bytes if cost is None else cost

    return sorted(range(len(candidates)), key=key)
