"""The table of runs as data: which columns it has, their values in stored units, and how the grid shows them.

Pure functions; the page draws the grid. A column is one of the usual ones, or any field by the name that filters use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from app import formatting
from app.filtering.fields import KnownField
from app.kinds import KINDS
from app.widgets import frames, labels
from db.conditions import Column, EnvironmentField, Field, MetricField, SpecField
from db.runs import RunRow
from engine.result import STATES

Medians = Mapping[tuple[int, MetricField], float]
Environments = Mapping[int, Mapping[str, Any]]

#: The usual columns that a person may take away. Those without any value, and the kind of runs of one kind, go by
#: themselves.
HIDEABLE = {
    "kind": "Kind",
    "state": "State",
    "model": "Model",
    "adapter": "Adapter",
    "strategy": "Strategy",
    "targets": "Targets",
    "work": "Work",
    "dtype": "Dtype",
    "device": "Device",
    "result": "Result",
    "peak": "Peak memory",
    "when": "When",
    "origin": "Origin",
    "tags": "Tags",
    "name": "Name",
    "problem": "What went wrong",
}
_ONLY_IF_ANY = ("work", "origin", "tags", "name", "problem")
_COLUMN_ATTRIBUTES = {
    "sweep": "sweep_name",
    "error": "error_text",
    "created": "created_at",
    "started": "started_at",
    "finished": "finished_at",
}
_MOMENTS = ("created", "started", "finished")


@dataclass(frozen=True, slots=True)
class RunTable:
    """The rows in stored units, as they are downloaded, and the same ones as the grid shows them."""

    stored: pd.DataFrame
    shown: pd.DataFrame
    config: dict[str, Any]


def metrics_of(rows: Iterable[RunRow], added: Iterable[KnownField]) -> list[MetricField]:
    """The metrics whose medians the table of these runs needs."""
    kinds = {row.kind for row in rows}
    usual = [MetricField(name) for kind in KINDS if kind in kinds for name in KINDS[kind].COLUMNS.values()]
    return list(dict.fromkeys([*usual, *(entry.field for entry in added if isinstance(entry.field, MetricField))]))


def build(
    rows: Sequence[RunRow],
    medians: Medians,
    environments: Environments,
    added: Sequence[KnownField],
    hidden: Iterable[str],
    units: Mapping[str, str],
) -> RunTable:
    """The table of these runs in their order.

    Args:
        medians: those of ``metrics_of``, in stored units.
        environments: by run id; needed only for added fields of the environment.
        added: further fields, each a column of its own unless it is one of the usual.
        hidden: usual columns to leave out.
        units: the unit of each stored metric.
    """
    hidden = set(hidden)
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    metrics = list(dict.fromkeys(column for kind in kinds for column in KINDS[kind].COLUMNS))
    lines = [_line(row, medians, metrics) for row in rows]
    is_mixed = len({row.kind for row in rows}) > 1
    if not is_mixed and rows[0].kind in KINDS:
        usual = {MetricField(name) for name in KINDS[rows[0].kind].COLUMNS.values()}
        added = [entry for entry in added if entry.field not in usual]
    values = {entry.name: [_value(row, entry.field, medians, environments) for row in rows] for entry in added}
    stored = pd.DataFrame(lines)
    absent = {name for name in _ONLY_IF_ANY if not stored[name].map(bool).any()} | (set() if is_mixed else {"kind"})
    stored = stored.drop(columns=[name for name in stored if name in hidden | absent])
    place = list(stored.columns).index(metrics[-1]) + 1 if metrics else len(stored.columns)
    for name, column in reversed(values.items()):
        stored.insert(place, name, pd.Series(column, index=stored.index))
    shown, config = _shown(stored, rows, metrics, is_mixed, hidden, units)
    for entry in added:
        shown[entry.name], config[entry.name] = _added(entry, stored[entry.name], units)
    return RunTable(stored, shown, config)


def _line(row: RunRow, medians: Medians, columns: Sequence[str]) -> dict[str, object]:
    kind = KINDS.get(row.kind)
    metrics = kind.COLUMNS if kind else {}
    return {
        "id": row.id,
        "kind": row.kind,
        "state": row.state,
        "model": row.model,
        "adapter": row.adapter or (labels.bare_label(row.kind) if kind else None),
        "strategy": row.strategy,
        "targets": labels.targets_label(row.spec) if kind else None,
        "work": ", ".join([*labels.work_parts(row.spec), *labels.savings(row.spec)]) if kind else None,
        "dtype": row.dtype,
        "device": row.device,
        **{name: medians.get((row.id, MetricField(metrics[name]))) if name in metrics else None for name in columns},
        "when": row.finished_at or row.started_at or row.created_at,
        "origin": labels.origin_label(row.origin),
        "tags": list(row.tags),
        "name": row.name or (None if kind else labels.run_title(row)),
        "problem": frames.problem_sentence(row),
    }


def _value(row: RunRow, field: Field, medians: Medians, environments: Environments) -> Any:
    """One field of one run as a number or a text, None where it has none."""
    match field:
        case MetricField():
            return medians.get((row.id, field))
        case Column("tag"):
            return ", ".join(row.tags) or None
        case Column(name):
            return getattr(row, _COLUMN_ATTRIBUTES.get(name, name))
        case SpecField(path):
            return _inside(row.spec, path)
        case EnvironmentField(path):
            return _inside(environments.get(row.id, {}), path)


def _inside(document: Any, path: Sequence[str]) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    if isinstance(document, list | tuple):
        return ", ".join(str(item.get("name", item)) if isinstance(item, Mapping) else str(item) for item in document)
    return None if isinstance(document, Mapping) else document


def _shown(
    stored: pd.DataFrame,
    rows: Sequence[RunRow],
    metrics: Sequence[str],
    is_mixed: bool,
    hidden: set[str],
    units: Mapping[str, str],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The usual columns as people read them; runs of several kinds share one column for what each kind measures."""
    shown, config = stored.copy(), _usual_config()
    labelled = {
        "kind": [labels.kind_label(row.kind) for row in rows],
        "state": [[formatting.state_text(row.state)] for row in rows],
        "model": [labels.model_label(row.model) for row in rows],
        "strategy": [labels.strategy_label(row.kind, row.strategy) if row.strategy else None for row in rows],
        "when": pd.to_datetime(stored["when"], unit="s", utc=True) if "when" in stored else None,
    }
    for name, values in labelled.items():
        if name in shown:
            shown[name] = values
    if is_mixed:
        place = list(shown.columns).index(metrics[0]) if metrics else len(shown.columns)
        texts = [_headline(row.kind, line) for row, line in zip(rows, stored.to_dict("records"), strict=True)]
        shown = shown.drop(columns=list(metrics))
        for name, number in (("peak", 1), ("result", 0)):
            if name not in hidden:
                shown.insert(place, name, [text[number] for text in texts])
        return shown, config
    for name in metrics:
        metric = KINDS[rows[0].kind].COLUMNS[name]
        shown[name], config[name] = _measured(MetricField(metric), shown[name], units)
    return shown, config


def _headline(kind_id: str, line: Mapping[Any, Any]) -> tuple[str, str]:
    """A run's time or speed, and its peak memory, as text."""
    kind = KINDS.get(kind_id)
    if kind is None:
        return "", ""
    name, word = kind.HEADLINE
    value, unit = line.get(name), "tokens/s" if name.endswith("tokens_per_s") else "s"
    result = "" if value is None or pd.isna(value) else f"{word} {formatting.measured(value, unit)}".strip()
    extra, peak = line.get("peak_extra_bytes"), line.get("peak_bytes")
    if extra is not None and pd.notna(extra):
        return result, f"+{formatting.size(extra)}"
    return result, "" if peak is None or pd.isna(peak) else formatting.size(peak)


def _added(entry: KnownField, values: pd.Series, units: Mapping[str, str]) -> tuple[Any, Any]:
    """An added column and its configuration."""
    if isinstance(entry.field, MetricField):
        return _measured(entry.field, values, units)
    if entry.name in _MOMENTS:
        moments = pd.to_datetime(values.astype("float64"), unit="s", utc=True)
        return moments, st.column_config.DatetimeColumn(entry.name, format="YYYY-MM-DD HH:mm")
    present = values.dropna()
    is_number = len(present) > 0 and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )
    if is_number:
        whole = all(float(value).is_integer() for value in present)
        column = st.column_config.NumberColumn(entry.name, format="%d" if whole else "%.4g")
        return values.astype("float64"), column
    texts = [None if value is None or value != value else _text(value) for value in values]
    return pd.Series(texts, index=values.index, dtype="object"), st.column_config.TextColumn(entry.name)


def _measured(field: MetricField, values: pd.Series, units: Mapping[str, str]) -> tuple[Any, Any]:
    """Medians of one metric and their configuration."""
    title = formatting.metric_title(field.name) + (f" @ {field.variant}" if field.variant else "")
    way = formatting.better(field.name)
    name = field.name + (f"@{field.variant}" if field.variant else "")
    text = f"{name}: the median of the repeats" + (f", {way} is better." if way else ".")
    return _numbers(values, units.get(field.name, ""), title, help=text)


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _numbers(values: pd.Series, unit: str, title: str, *, help: str) -> tuple[Any, Any]:
    """Measured numbers with three digits, scaled to one unit for the whole column, which its title names."""
    numbers = values.astype("float64")
    largest = float(numbers.abs().max()) if numbers.notna().any() else 0.0
    if unit == "bytes":
        unit, unit_bytes = formatting.byte_unit(largest)
        numbers = numbers / unit_bytes
    elif unit == "share":
        unit, numbers = "%", numbers * 100
    elif unit == "s" and 0 < largest < 0.9995:
        unit, numbers = "ms", numbers * 1000
    elif unit in ("count", "parameters", "ratio"):
        unit = ""
    largest = float(numbers.abs().max()) if numbers.notna().any() else 0.0
    # %g would write 1234 as 1.23e+03.
    style = "compact" if largest >= 1e5 else "%.0f" if largest >= 1000 else "%.3g"
    label = f"{title}, {unit}" if unit else title
    return numbers, st.column_config.NumberColumn(label, format=style, help=help)


def _usual_config() -> dict[str, Any]:
    texts = itertools.filterfalse(("state", "result", "peak", "when", "tags", "problem", "work").__contains__, HIDEABLE)
    return {
        "id": st.column_config.NumberColumn("Run", width="small", pinned=True, format="%d"),
        **{name: HIDEABLE[name] for name in texts},
        "state": st.column_config.MultiselectColumn(
            "State",
            options=[formatting.state_text(name) for name in STATES],
            color=[formatting.state_colour(name) for name in STATES],
            width=130,
        ),
        "work": st.column_config.TextColumn("Work", help="What each step or request was asked to do."),
        "result": st.column_config.TextColumn("Result", alignment="right", help="The median of the repeats."),
        "peak": st.column_config.TextColumn(
            "Peak memory", alignment="right", help="With a plus: on top of what the model takes."
        ),
        "when": st.column_config.DatetimeColumn("When", format="distance"),
        "tags": st.column_config.ListColumn("Tags", width=160),
        "problem": st.column_config.TextColumn("What went wrong", width="large"),
    }
