"""Charts of repeats: rows of points with median and interquartile range, and the repeats of one run in order."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts, summaries


def spread(
    frame: pd.DataFrame,
    colours: Mapping[str, str],
    *,
    title: str,
    unit: str = "s",
    better: formatting.Better | None = "lower",
    baseline: str | None = None,
    is_panel: bool = False,
) -> go.Figure:
    """Repeats, median and interquartile range of a metric, one row per label.

    Args:
        frame: one line per repeat with ``label`` (row, in order of first appearance), ``adapter`` (colour key),
            ``value`` in ``unit`` and ``run_id``. A label whose runs all ended out of memory (``state``)
            has a hollow marker at what was reached.
        colours: adapter -> colour; adapters that are missing are grey.
        title: metric and unit; the direction is added.
        unit: of ``value``, as metrics store it.
        better: which way the metric is better.
        baseline: label of the row whose median is drawn as a dashed line through all rows.
        is_panel: one of several small charts, where only hovering tells what a median stands on.
    """
    rows = frame.assign(label=frame["label"].map(parts.escape))
    is_ended = rows["state"].eq(parts.OUT_OF_MEMORY) if "state" in rows else pd.Series(False, index=rows.index)
    measured = rows[rows["value"].notna() & ~is_ended]
    table = summaries.quartiles(measured, ["label"])
    table["colour"] = _colours(measured, colours).reindex(table.index)
    without = rows[is_ended & ~rows["label"].isin(table.index)].groupby("label", sort=False)["value"].max()
    labels = list(dict.fromkeys(rows[is_ended | rows["label"].isin(table.index)]["label"]))
    known = [*measured["value"], *without.dropna()] or [0.0]
    low, high = float(min(known)), float(max(known))
    # By the medians: one disturbed repeat is no reason to bend the axis.
    log = low > 0 and parts.needs_log_axis(table["median"])
    middle = table["median"].get(parts.escape(baseline)) if baseline is not None else None

    figure = go.Figure()
    _points(figure, measured, table, unit)
    _ranges(figure, table[table["repeats"] > 1], unit)
    _medians(figure, table, unit)
    figure.add_scatter(
        x=[parts.text_start(float(end), middle, high, is_log=log) for end in table["most"]],
        y=list(table.index),
        mode="text",
        # Em spaces, as ordinary ones at the start of a line are dropped.
        text=[
            f"\u2003<b>{formatting.measured(line.median, unit)}</b>"
            + ("" if is_panel else f"\u2002{formatting.evidence(line.repeats, line.runs)}")
            for line in table.itertuples()
        ],
        textfont={"size": 13},
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )
    if middle is not None:
        figure.add_vline(x=middle, line={"dash": "dash", "width": 1.5, "color": formatting.GREY}, layer="below")
    head = f"{title}, log scale" if log else title
    parts.finish(figure, f"{head}{parts.direction(better)}", height_px=104 + parts.rows_px(len(labels)))
    parts.name_axis(figure, labels)
    _value_axis(figure, low, high, unit, log)
    if len(without):
        _out_of_memory(figure, without, unit, 10 ** figure.layout.xaxis.range[0] if log else 0.0)
    return figure


def _colours(rows: pd.DataFrame, colours: Mapping[str, str]) -> pd.Series:
    """The colour of each label by its first adapter."""
    adapters = rows.drop_duplicates("label").set_index("label")["adapter"]
    return adapters.map(lambda adapter: colours.get(str(adapter), formatting.GREY))


def _points(figure: go.Figure, rows: pd.DataFrame, table: pd.DataFrame, unit: str) -> None:
    """Every repeat."""
    figure.add_scatter(
        x=rows["value"],
        y=rows["label"],
        mode="markers",
        marker={"size": 9, "color": list(rows["label"].map(table["colour"])), "opacity": 0.4, "line": {"width": 0}},
        customdata=[
            [run, formatting.measured(value, unit)] for run, value in zip(rows["run_id"], rows["value"], strict=True)
        ],
        hovertemplate="%{y}<br>%{customdata[1]} · run %{customdata[0]}<extra></extra>",
    )


def _ranges(figure: go.Figure, table: pd.DataFrame, unit: str) -> None:
    """Interquartile ranges as thick lines, one trace for each colour."""
    for colour, rows in table.groupby("colour", sort=False):
        texts = [
            f"interquartile range {formatting.measured(line.lower, unit)} to {formatting.measured(line.upper, unit)}"
            for line in rows.itertuples()
        ]
        figure.add_scatter(
            # A gap after each row keeps the lines of different rows apart.
            x=[place for line in rows.itertuples() for place in (line.lower, line.upper, None)],
            y=[label for label in rows.index for _ in range(3)],
            mode="lines",
            line={"width": 7, "color": colour},
            opacity=0.8,
            customdata=[text for text in texts for _ in range(3)],
            hovertemplate="%{customdata}<extra></extra>",
        )


def _medians(figure: go.Figure, table: pd.DataFrame, unit: str) -> None:
    """Medians as upright strokes."""
    figure.add_scatter(
        x=table["median"],
        y=list(table.index),
        mode="markers",
        marker={"symbol": "line-ns", "size": 22, "line": {"width": 3, "color": list(table["colour"])}},
        customdata=[
            f"median {formatting.measured(line.median, unit)}<br>{formatting.evidence(line.repeats, line.runs)}"
            for line in table.itertuples()
        ],
        hovertemplate="%{y}<br>%{customdata}<extra></extra>",
    )


def _out_of_memory(figure: go.Figure, reached: pd.Series, unit: str, edge: float) -> None:
    """Hollow markers where there is nothing but runs out of memory: at what was reached, else at the axis' start."""
    figure.add_scatter(
        x=reached.fillna(edge),
        y=list(reached.index),
        mode="markers+text",
        marker={"symbol": "circle-open", "size": 11, "color": formatting.GREY, "line": {"width": 2}},
        text=[
            "\u2003out of memory" + (f" at {formatting.measured(value, unit)}" if pd.notna(value) else "")
            for value in reached
        ],
        textfont={"size": 13},
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )


def _value_axis(figure: go.Figure, low: float, high: float, unit: str, log: bool) -> None:
    if log:
        # Room on the right for the direct labels, which are as long as a decade or so is wide.
        left, right = low / 1.6, high * (high / low) ** 0.45 * 1.5
        ticks, texts = parts.log_ticks(left, high * 2, unit)
        figure.update_xaxes(type="log", range=[math.log10(left), math.log10(right)], tickvals=ticks, ticktext=texts)
    else:
        axis = parts.value_axis(low, high, unit, is_log=False, room=1.05)
        figure.update_xaxes(**{**axis, "range": [axis["range"][0], max(high, 0.0) * 1.5 or 1]})


def repeats(frame: pd.DataFrame, colour: str, *, title: str, first_name: str = "first") -> go.Figure:
    """Every repeat of one run in order, with the median dashed; what came before the repeats is hollow.

    Args:
        frame: ``repeat`` (from 0; -1 for the first of the process) and ``seconds``.
        colour: of the adapter.
        title: what was timed; unit and direction are added.
        first_name: what the hollow point is called on the axis.
    """
    figure = go.Figure()
    first, rest = frame[frame["repeat"] < 0], frame[frame["repeat"] >= 0].sort_values("repeat")
    names = [str(int(number) + 1) for number in rest["repeat"]]
    for rows, xs, symbol in ((first, [first_name] * len(first), "circle-open"), (rest, names, "circle")):
        if len(rows):
            figure.add_scatter(
                x=xs,
                y=rows["seconds"],
                mode="markers",
                marker={"size": 11, "symbol": symbol, "color": colour, "line": {"width": 2, "color": colour}},
                customdata=[formatting.seconds(value) for value in rows["seconds"]],
                hovertemplate="%{x}: %{customdata}<extra></extra>",
            )
    if len(rest):
        median = float(rest["seconds"].median())
        text = f"median {formatting.seconds(median)}" if len(rest) > 1 else "1 run"
        figure.add_hline(
            y=median,
            line={"dash": "dash", "width": 1.5, "color": formatting.GREY},
            annotation={"text": text, "font": {"size": 12}, "xanchor": "left", "xshift": 6},
            annotation_position="right",
        )
    parts.finish(figure, f"{title}, seconds, lower is better", height_px=parts.PANEL_HEIGHT_PX)
    figure.update_layout(margin={"t": 76, "r": 110})
    figure.update_xaxes(type="category", title="repeat", showgrid=False)
    high = float(frame["seconds"].max())
    ticks, texts = parts.linear_ticks(high * 1.1, "s")
    figure.update_yaxes(rangemode="tozero", range=[0, high * 1.2 or 1], tickvals=ticks, ticktext=texts)
    return figure
