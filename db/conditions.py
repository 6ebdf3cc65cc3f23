"""What a list of runs can be narrowed by and ordered by, as plain data: a tree of conditions over named fields.

Holds no SQL (``db.filters`` makes that) and reads no text (``app.filtering`` does). A condition is true or false for
every run, never unknown: a run that lacks the field fails every comparison but ``!=``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the run by its name in ``TEXT_COLUMNS`` or ``NUMBER_COLUMNS``, or ``tag``."""

    name: str


@dataclass(frozen=True, slots=True)
class SpecField:
    """A field of the run's spec by its path: ``("train", "context_length")``."""

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EnvironmentField:
    """A field of the run's environment by its path: ``("packages", "peft")``."""

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricField:
    """The median over the repeats of a metric, of the variant that the run is about or of one by name."""

    name: str
    variant: str | None = None


Field = Column | SpecField | EnvironmentField | MetricField

TEXT_COLUMNS = (
    "state",
    "kind",
    "model",
    "adapter",
    "adapter_type",
    "strategy",
    "dtype",
    "device",
    "name",
    "note",
    "sweep",
    "origin",
    "error",
    "uid",
    "spec_hash",
)
#: ``created``, ``started`` and ``finished`` are epoch seconds.
NUMBER_COLUMNS = (
    "id",
    "replica",
    "failed_checks",
    "background_cpu_share",
    "created",
    "started",
    "finished",
)


@dataclass(frozen=True, slots=True)
class Compare:
    """One field against one value, in stored units (seconds, bytes).

    Text is compared in any case, and ``~`` looks for it anywhere in the field; ``None`` asks with ``=`` and ``!=``
    whether the field is missing. Of a run's tags any may match.
    """

    field: Field
    operator: Operator
    value: str | float | None


@dataclass(frozen=True, slots=True)
class And:
    """True where every part is."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True where any part is."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """True where the part is not."""

    part: Condition


Condition = Compare | And | Or | Not


@dataclass(frozen=True, slots=True)
class Order:
    """How a list is ordered: by one field, runs that lack it at the end, the newest first among equals."""

    field: Field
    is_descending: bool = False
