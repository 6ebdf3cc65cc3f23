"""A metric against a numeric field, one line per group: medians with interquartile ranges. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts, styles, summaries

#: Up to this many lines are labelled at their ends; more have a legend.
DIRECT_LABELS = 6
_LABEL_CHARACTERS = 30


def lines(
    frame: pd.DataFrame,
    colours: Mapping[str, str],
    *,
    title: str,
    unit: str,
    x_title: str,
    better: formatting.Better | None = "lower",
    x_unit: str = "",
    is_log_x: bool | None = None,
    baseline: str | None = None,
    reference: float | None = None,
) -> go.Figure:
    """A metric against a numeric field, one line per group.

    A run that ran out of memory is a hollow marker at what it reached, or at the axis' worse end where that is not
    known; no line is drawn through it.

    Args:
        frame: one line per repeat with ``group`` (in order of first appearance), ``adapter`` (colour key), ``x`` (the
            field, numeric), ``value`` in ``unit``, ``run_id``, and optionally ``state``. A group that has no ``x`` at
            all (full fine-tuning has no rank) is a level line across.
        colours: adapter -> colour; adapters that are missing are grey.
        title: metric; scale and direction are added.
        unit: of ``value``, as metrics store it.
        x_title: what ``x`` is.
        better: which way the metric is better.
        x_unit: of ``x``, empty for plain numbers.
        is_log_x: None lets the axis be logarithmic where the field spans a decade or grows by factors.
        baseline: group whose line is dashed.
        reference: value of a dashed line through all of it, such as 1x.
    """
    rows = _with_levels(frame.assign(group=lambda found: found["group"].map(parts.escape)))
    baseline = parts.escape(baseline) if baseline is not None else None
    failed = rows["state"].eq(parts.OUT_OF_MEMORY) if "state" in rows else pd.Series(False, index=rows.index)
    measured, ended = rows[~failed & rows["value"].notna()], rows[failed]
    table = summaries.quartiles(measured, ["group", "x"])
    known_groups = set(measured["group"])
    known = pd.concat([measured["value"], ended["value"].dropna()])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    if reference is not None:
        low, high = min(low, reference), max(high, reference)
    is_log = bool((known > 0).all()) and parts.needs_log_axis(table["median"])
    y_axis = parts.value_axis(low, high, unit, is_log=is_log, room=1.12)
    # A value that is not known lies at the axis' worse end.
    bottom, top = y_axis["range"]
    edge = bottom + (top - bottom) * (0.03 if better == "higher" else 0.97)
    unknown = 10**edge if is_log else edge

    figure = go.Figure()
    looks = styles.of_groups(rows, colours, baseline)
    for group, style in looks.items():
        if group in known_groups:
            _line(figure, group, table.loc[group].sort_index(), style, unit, x_title)
        _ended(figure, group, ended[ended["group"] == group], style, unit, unknown)
    head = f"{title}, log scale" if is_log else title
    parts.finish(figure, f"{head}{parts.direction(better)}", height_px=parts.PANEL_HEIGHT_PX + 40)
    figure.update_xaxes(
        title=parts.escape(x_title), showgrid=False, **parts.field_axis(rows["x"], x_unit, is_log=is_log_x)
    )
    figure.update_yaxes(**y_axis)
    if reference is not None:
        figure.add_hline(y=reference, line={"dash": "dash", "width": 1.5, "color": formatting.GREY}, layer="below")
    if 1 < len(looks) <= DIRECT_LABELS and max(map(parts.length, looks)) <= _LABEL_CHARACTERS:
        _end_labels(figure, table["median"], looks, is_log)
    elif len(looks) > 1:
        parts.legend(figure, hover=False)
    return figure


def _with_levels(rows: pd.DataFrame) -> pd.DataFrame:
    """The lines that have an ``x``, and those of groups without any, once at each end of the axis."""
    has_x = rows.groupby("group", sort=False)["x"].transform(lambda values: values.notna().any())
    ends = rows["x"].dropna()
    if ends.empty or has_x.all():
        return rows[rows["x"].notna()]
    level = rows[~has_x]
    return pd.concat([rows[rows["x"].notna()], *(level.assign(x=end) for end in {ends.min(), ends.max()})])


def _line(figure: go.Figure, group: str, table: pd.DataFrame, style: styles.Style, unit: str, x_title: str) -> None:
    figure.add_scatter(
        x=table.index,
        y=table["median"],
        error_y={
            "type": "data",
            "array": table["upper"] - table["median"],
            "arrayminus": table["median"] - table["lower"],
            "thickness": 1.5,
            "width": 3,
            "color": style.colour,
        },
        name=group,
        legendgroup=group,
        mode="lines+markers",
        line={"width": 2, "color": style.colour, "dash": style.dash},
        marker={"size": 8, "symbol": style.symbol, "color": style.colour},
        customdata=[
            [group, f"{at:.6g}", formatting.measured(line.median, unit), formatting.evidence(line.repeats, line.runs)]
            for at, line in zip(table.index, table.itertuples(), strict=True)
        ],
        hovertemplate=f"%{{customdata[0]}}<br>{parts.escape(x_title)} %{{customdata[1]}}: %{{customdata[2]}}"
        "<br>%{customdata[3]}<extra></extra>",
    )


def _ended(figure: go.Figure, group: str, rows: pd.DataFrame, style: styles.Style, unit: str, unknown: float) -> None:
    """Hollow markers where runs of the group ran out of memory."""
    if rows.empty:
        return
    reached = rows.groupby("x")["value"].max()
    figure.add_scatter(
        x=reached.index,
        y=reached.fillna(unknown),
        name=group,
        legendgroup=group,
        showlegend=False,
        mode="markers+text",
        text=["out of memory\u2002"] + [""] * (len(reached) - 1),
        textposition="middle left",
        textfont={"size": 11},
        marker={"size": 11, "symbol": "circle-open", "color": style.colour, "line": {"width": 2}},
        customdata=[
            [group, f"out of memory at {formatting.measured(value, unit)}" if pd.notna(value) else "out of memory"]
            for value in reached
        ],
        hovertemplate="%{customdata[0]}<br>%{x}: %{customdata[1]}<extra></extra>",
    )


def _end_labels(figure: go.Figure, medians: pd.Series, looks: Mapping[str, styles.Style], is_log: bool) -> None:
    """The name of each line at the right edge, at the height of the line's end as far as names do not overlap."""
    parts.end_labels(
        figure,
        {
            group: (float(medians[group].sort_index().iloc[-1]), style.colour)
            for group, style in looks.items()
            if group in medians.index.get_level_values("group")
        },
        is_log=is_log,
    )
