"""Whether what a job needs goes into a memory, and what a process on the CPU takes beside its tensors.

Predicts and measures nothing: bytes in, a word out. Imports no torch.
"""

from __future__ import annotations

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
