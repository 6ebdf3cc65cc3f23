"""The names that a filter expression, an added column and an order may use, and what each of them stands for.

Columns and spec fields are known from the code; metrics and the environment's fields from what is stored.
"""

from __future__ import annotations

import difflib
import functools
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app import formatting
from app.filtering.values import Dimension, dimension
from app.widgets import labels
from db.conditions import NUMBER_COLUMNS, TEXT_COLUMNS, Column, EnvironmentField, Field, MetricField, SpecField
from db.runs import StoredMetric
from engine import catalog
from engine.result import STATES
from engine.spec import MEASURED_KINDS, REQUEST_KINDS, Spec

#: ``any``: JSON, whose values may be numbers, texts or true and false.
Reads = typing.Literal["text", "number", "moment", "any"]

_MOMENTS = ("created", "started", "finished")
_NEAREST = 3


@dataclass(frozen=True, slots=True)
class KnownField:
    """One field by its name, what kind of values it has, and which unit they are in."""

    name: str
    field: Field
    reads: Reads
    dimension: Dimension


@dataclass(frozen=True, slots=True)
class Known:
    """Every field there is, and the unit of each stored metric. Names are looked up in any case."""

    metrics: tuple[str, ...]
    environment: tuple[str, ...]
    units: dict[str, str]
    _by_name: dict[str, KnownField]

    @classmethod
    def of(cls, metrics: Iterable[StoredMetric] = (), environment: Iterable[Sequence[str]] = ()) -> Known:
        """The fields of the code, with the metrics and the environments' paths that are stored."""
        listed = list(metrics)
        stored = [
            name
            for metric in listed
            for name in (metric.name, *(f"{metric.name}@{variant}" for variant in metric.variants))
        ]
        paths = {".".join(("environment", *path)): tuple(path) for path in environment}
        fields = [
            *(_metric(name) for name in dict.fromkeys([*stored, *formatting.metric_names()])),
            *(KnownField(name, EnvironmentField(path), "any", dimension(name)) for name, path in paths.items()),
            *_fields_of_the_code(),
        ]
        units = {metric.name: metric.unit for metric in listed}
        return cls(tuple(stored), tuple(paths), units, {entry.name.casefold(): entry for entry in fields})

    def find(self, name: str) -> KnownField | None:
        """The field of this name, None where there is none."""
        found = self._by_name.get(name.casefold())
        if found is None and "@" in name:
            # A variant that no run has is a metric that no run has, not a mistake in the expression.
            metric = self._by_name.get(name.casefold().partition("@")[0])
            if metric is not None and isinstance(metric.field, MetricField):
                return _metric(f"{metric.name}@{name.partition('@')[2]}")
        return found

    def nearest(self, name: str) -> list[str]:
        """The names that were probably meant, the likeliest first; a last part alone finds its whole path."""
        wanted = name.casefold()
        within = sorted(key for key in self._by_name if key.endswith(f".{wanted}"))
        alike = difflib.get_close_matches(wanted, self._by_name, n=_NEAREST, cutoff=0.65)
        return [self._by_name[key].name for key in dict.fromkeys([*within, *alike])][:_NEAREST]


def columns() -> tuple[str, ...]:
    """The columns of a run, with its tags."""
    return (*TEXT_COLUMNS, "tag", *NUMBER_COLUMNS)


@functools.cache
def spec_fields() -> tuple[str, ...]:
    """Every field that some kind's spec can have and that is no column, sorted; not those of specs in a request."""
    found = {name for spec in typing.get_args(Spec) for name in _leaves(spec) if not name.startswith("of.")}
    options = {f"adapter.options.{field.name}" for kind in catalog.adapter_types().values() for field in kind.fields}
    return tuple(sorted((found | options) - {"adapter.options", *columns()}))


def aliases(name: str, text: str) -> tuple[str, ...]:
    """The stored values that a person may mean by what pages show: "Out of memory" -> ("out_of_memory",).

    Raises:
        ValueError: with the rest of a sentence, where a column has only certain values and this is none.
    """
    known = _shown_values().get(name)
    if known is None:
        return (text,)
    found = known.get(text.casefold(), ())
    if not found and name in ("state", "kind"):
        values = sorted({value for values in known.values() for value in values})
        raise ValueError(f"is one of {', '.join(values)}, not {text[:40]}")
    return tuple(dict.fromkeys(found or (text,)))


@functools.cache
def _shown_values() -> dict[str, dict[str, tuple[str, ...]]]:
    strategies = [(entry.id, entry.label) for kind in MEASURED_KINDS for entry in catalog.strategies(kind)]
    pairs: dict[str, list[tuple[str, str]]] = {
        "state": [(state, formatting.state_text(state)) for state in STATES],
        "kind": [(kind, labels.kind_label(kind)) for kind in (*MEASURED_KINDS, *REQUEST_KINDS)],
        "model": [(model, labels.model_label(model)) for model in catalog.models()],
        "strategy": strategies,
    }
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, values in pairs.items():
        shown = found.setdefault(name, {})
        for value, label in values:
            for word in {value.casefold(), label.casefold()}:
                shown[word] = (*shown.get(word, ()), value)
    return found


@functools.cache
def _fields_of_the_code() -> tuple[KnownField, ...]:
    return (
        *(KnownField(name, Column(name), "text", "plain") for name in (*TEXT_COLUMNS, "tag")),
        *(
            KnownField(name, Column(name), "moment" if name in _MOMENTS else "number", "plain")
            for name in NUMBER_COLUMNS
        ),
        *(KnownField(name, SpecField(tuple(name.split("."))), "any", dimension(name)) for name in spec_fields()),
    )


def _metric(name: str) -> KnownField:
    metric, _, variant = name.partition("@")
    return KnownField(name, MetricField(metric, variant or None), "number", dimension(metric))


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = [part for part in _parts(field.annotation) if issubclass(part, BaseModel)]
        for part in inner:
            yield from _leaves(part, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def _parts(annotation: Any) -> list[type]:
    """The classes in a union, or the one class."""
    return [part for part in (typing.get_args(annotation) or (annotation,)) if isinstance(part, type)]
