"""Charts that every kind has of several compared runs: one metric against a field that varies, or in rows.

Pure functions on the frames of the Compare page. ``frame`` has one line per value: ``run_id group adapter name unit
variant x repeat value failed_checks state``; ``fields`` has one line per run, also for those without any value:
``group adapter state``, the dotted fields of ``app.comparison.fields``, and perhaps ``PREDICTED_PEAK``. Group names
are parts joined by ", ".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pandas as pd
import plotly.graph_objects as go

from app import figures, formatting
from app.comparison import fields as flat_fields
from app.widgets import labels
from app.widgets.metrics import Chart

#: More rows than this in one chart are left out, and the title says so; the table has all.
MAX_ROWS = 40
OUT_OF_MEMORY = "out_of_memory"
#: The column of predicted peaks in bytes among the fields of the runs.
PREDICTED_PEAK = "predicted_peak_bytes"


def varying(fields: pd.DataFrame, names: Sequence[str], *, without: str | None = None) -> list[str]:
    """Those of the numeric fields that have two values or more among the runs."""
    return [name for name in names if name in fields and name != without and _numbers(fields[name]).nunique() > 1]


def _numbers(column: pd.Series) -> pd.Series:
    """The numbers of a column, missing where there is none; yes and no are none."""
    return pd.to_numeric(column.map(lambda value: None if isinstance(value, bool) else value), errors="coerce")


def known(fields: pd.DataFrame, facet: str | None) -> str | None:
    """The field to have panels by, None where no run on screen has it."""
    return facet if facet in fields else None


def field_title(name: str) -> str:
    """ "train.context_length" -> "context length"."""
    return name.rpartition(".")[2].replace("_", " ")


def series(rows: pd.DataFrame, fields: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """The group of each line without the parts of its name that say the value of these fields."""

    @functools.cache
    def shortened(group: str, run_id: int) -> str:
        said = {flat_fields.short(name, _plain(fields.at[run_id, name])) for name in names if name in fields}
        kept = [part for part in group.split(", ") if part not in said]
        adapter = fields.at[run_id, "adapter"]
        return ", ".join(kept) or (labels.BASE if pd.isna(adapter) else str(adapter))

    pairs = zip(rows["group"], rows["run_id"], strict=True)
    return pd.Series([shortened(str(group), run_id) for group, run_id in pairs], index=rows.index, dtype=object)


def _plain(value: object) -> flat_fields.Value:
    """A cell as the field's own value: pandas turns whole numbers beside missing ones into floats."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.item() if hasattr(value, "item") else value  # type: ignore[return-value]


def lines_of(frame: pd.DataFrame, fields: pd.DataFrame, name: str, *, variants: bool) -> pd.DataFrame:
    """The values of one metric, and a line without a value for each run out of memory that has none.

    Args:
        frame: all values.
        fields: all runs.
        name: the metric.
        variants: whether variants are groups of their own; else only values without a variant count.
    """
    rows = frame[(frame["name"] == name) & frame["x"].isna()]
    if not variants:
        rows = rows[rows["variant"].isna()]
    ended = fields[fields["state"].eq(OUT_OF_MEMORY) & ~fields.index.isin(rows["run_id"])]
    if ended.empty:
        return rows
    missing = pd.DataFrame(
        {
            "run_id": ended.index,
            "group": ended["group"].to_numpy(),
            "adapter": ended["adapter"].fillna("").to_numpy(),
            "name": name,
            "value": float("nan"),
            "state": OUT_OF_MEMORY,
        }
    ).astype({"value": float})
    return pd.concat([rows, missing], ignore_index=True) if len(rows) else missing


def metric_chart(
    frame: pd.DataFrame,
    fields: pd.DataFrame,
    name: str,
    *,
    title: str,
    key: str,
    along: Sequence[str],
    baseline: str | None,
    facet: str | None,
    variants: bool = False,
    reference: float | None = None,
) -> list[Chart]:
    """One metric of every group: against the first field of ``along`` that varies within a group's name, else in rows.

    Empty where no run has the metric.

    Args:
        frame: all values.
        fields: all runs.
        name: the metric; a view of it follows an "@".
        title: what it is; unit scale and direction are added.
        key: of the chart on its page.
        along: numeric fields that may lie along the x axis, the most telling first.
        baseline: the group that is drawn dashed.
        facet: the field that has a panel per value.
        variants: whether variants are groups of their own.
        reference: a value that is a dashed line where the metric lies against a field.
    """
    facet = known(fields, facet)
    rows = lines_of(frame, fields, name, variants=variants)
    if rows["value"].notna().sum() == 0:
        return []
    unit, better = str(rows["unit"].dropna().iloc[0]), formatting.better(name.partition("@")[0])
    if unit == "ratio" and name != "overhead_ratio":
        title = f"{title}, times the baseline's"
    alt = figures.alt_text(title, rows.groupby("group", sort=False)["value"].median().to_dict(), unit, better)
    against = _against(rows, fields, along, facet)
    if against is not None:
        drawn = rows.assign(
            x=_numbers(rows["run_id"].map(fields[against])),
            group=series(rows, fields, [against, *([facet] if facet else [])]),
        )
        draw = functools.partial(
            figures.lines,
            colours=labels.adapter_colours(),
            title=title,
            unit=unit,
            better=better,
            x_title=field_title(against),
            x_unit="bytes" if against.endswith("_bytes") else "",
            is_log_x=True if against == "train.context_length" else None,
            reference=reference,
        )
        alt = f"{alt}, against {field_title(against)}"
    else:
        title, rows = first_rows(title, rows, facet)
        names = rows["group"] if facet is None else series(rows, fields, [facet])
        drawn = rows.assign(label=names)
        draw = functools.partial(
            figures.spread,
            colours=labels.adapter_colours(),
            title=title,
            unit=unit,
            better=better,
            baseline=baseline if facet is None else None,
            is_panel=facet is not None,
        )
    return [Chart(in_panels(drawn, fields, facet, draw), key, alt, is_wide=True)]


def _against(rows: pd.DataFrame, fields: pd.DataFrame, along: Sequence[str], facet: str | None) -> str | None:
    """The first field along which some line would have two points or more."""
    measured = rows[rows["value"].notna()]
    for name in varying(fields, along, without=facet):
        x = _numbers(measured["run_id"].map(fields[name]))
        lines = series(measured, fields, [name, *([facet] if facet else [])])
        if (x.groupby(lines).nunique() > 1).any():
            return name
    return None


def first_rows(title: str, rows: pd.DataFrame, facet: str | None) -> tuple[str, pd.DataFrame]:
    """The rows of the first groups, and a title that says how many there are where some are left out."""
    groups = list(dict.fromkeys(rows["group"]))
    if facet is not None or len(groups) <= MAX_ROWS:
        return title, rows
    return f"{title} (the first {MAX_ROWS} of {len(groups)})", rows[rows["group"].isin(groups[:MAX_ROWS])]


def in_panels(
    rows: pd.DataFrame, fields: pd.DataFrame, facet: str | None, draw: Callable[[pd.DataFrame], go.Figure]
) -> go.Figure:
    """One chart, or one panel per value of the field ``facet``."""
    if facet is None:
        return draw(rows)
    values, name = panels_of(rows, fields, facet)
    return figures.facets(rows.assign(_panel=values), "_panel", draw, name=name)


def panels_of(rows: pd.DataFrame, fields: pd.DataFrame, facet: str) -> tuple[pd.Series, str]:
    """The panel of each line, and what stands before its value; empty where values speak for themselves."""
    values = rows["run_id"].map(fields[facet])
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if not is_number:
        values = values.map(lambda value: None if pd.isna(value) else flat_fields.text(facet, _plain(value)))
    has_own_words = not is_number and not set(values.dropna()) <= {"yes", "no"}
    return values, "" if has_own_words else field_title(facet)
