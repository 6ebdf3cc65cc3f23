"""Plain records of what was measured: no behaviour beyond turning themselves into JSON-ready dictionaries.

Does not measure, store or format anything. Imports no torch. Units are in the names: bytes and seconds only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

State = Literal["queued", "running", "succeeded", "failed", "out_of_memory", "cancelled", "timed_out", "lost"]
STATES: tuple[State, ...] = (
    "queued",
    "running",
    "succeeded",
    "failed",
    "out_of_memory",
    "cancelled",
    "timed_out",
    "lost",
)
FINAL_STATES: tuple[State, ...] = ("succeeded", "failed", "out_of_memory", "cancelled", "timed_out", "lost")


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One measured number. ``repeat`` counts from 0; ``x`` is the position along an axis where a metric has one."""

    name: str
    unit: str
    value: float
    variant: str | None = None
    x: float | None = None
    repeat: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One yes-or-no statement about the result that was verified in the job, with the numbers behind it."""

    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one moment. ``source`` is ``process`` (seen from outside) or ``tensors`` (live tensor bytes)."""

    source: Literal["process", "tensors"]
    time_s: float
    phase: str
    category: str
    bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a run has no result: the kind of error and one sentence a person can act on."""

    kind: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A device that runs can be measured on, as the machine reports it."""

    id: str
    kind: Literal["cpu", "cuda", "mps"]
    name: str
    memory_bytes: int
    dtypes: tuple[str, ...]
    driver: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Where a running job is: the phase, how many of its steps are done, and seconds left if that is known.

    ``node`` is the machine of a cluster that it runs on, which the job itself does not know.
    """

    phase: str
    done: int = 0
    total: int = 0
    eta_s: float | None = None
    node: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """Everything a run produced: the document that the command line prints and the database keeps."""

    state: State
    spec: Mapping[str, Any]
    spec_hash: str
    metrics: tuple[Metric, ...] = ()
    checks: tuple[Check, ...] = ()
    samples: tuple[Sample, ...] = ()
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: Failure | None = None
    inspection: Mapping[str, Any] | None = None

    def to_document(self) -> dict[str, Any]:
        """The JSON-ready document of design.md 5."""
        return dataclasses.asdict(self)
