"""Charts of repeats: rows of points with median and interquartile range, and the repeats of one run in order."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts


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
    figure = go.Figure()
    frame = frame.assign(label=frame["label"].map(parts.escape))
    is_ended = frame["state"].eq(parts.OUT_OF_MEMORY) if "state" in frame else pd.Series(False, index=frame.index)
    has_value = frame["value"].notna() & ~is_ended
    without = _reached(frame[is_ended], set(frame[has_value]["label"]))
    labels = [label for label in dict.fromkeys(frame[has_value | is_ended]["label"])]
    frame = frame[has_value]
    baseline = None if baseline is None else parts.escape(baseline)
    middle = None
    if baseline in set(frame["label"]):
        middle = float(frame.loc[frame["label"] == baseline, "value"].median())
    for label in (label for label in labels if label not in without):
        _row(figure, label, frame[frame["label"] == label], colours, unit, is_panel)
        end = float(frame.loc[frame["label"] == label, "value"].max())
        figure.data[-1].x = [parts.text_start(end, middle, float(frame["value"].max()))]
    if middle is not None:
        figure.add_vline(x=middle, line={"dash": "dash", "width": 1.5, "color": formatting.GREY}, layer="below")
    # By the medians: one disturbed repeat is no reason to bend the axis.
    log = bool((frame["value"] > 0).all()) and parts.needs_log_axis(frame.groupby("label")["value"].median())
    head = f"{title}, log scale" if log else title
    parts.finish(figure, f"{head}{parts.direction(better)}", height_px=104 + parts.rows_px(len(labels)))
    parts.name_axis(figure, labels)
    known = [*frame["value"], *(value for value in without.values() if math.isfinite(value))] or [0.0]
    _value_axis(figure, float(min(known)), float(max(known)), unit, log)
    for label, reached in without.items():
        is_known = math.isfinite(reached)
        text = f"out of memory at {formatting.measured(reached, unit)}" if is_known else "out of memory"
        _no_value(figure, label, reached if is_known else 10 ** figure.layout.xaxis.range[0] if log else 0.0, text)
    return figure


def _reached(ended: pd.DataFrame, measured: set[str]) -> dict[str, float]:
    """What was reached by the labels that have nothing but runs out of memory, nan where that is not known."""
    return {
        label: float(rows["value"].max()) for label, rows in ended.groupby("label", sort=False) if label not in measured
    }


def _no_value(figure: go.Figure, label: str, place: float, text: str) -> None:
    """A hollow marker with the reason why there is no value."""
    figure.add_scatter(
        x=[place],
        y=[label],
        mode="markers+text",
        marker={"symbol": "circle-open", "size": 11, "color": formatting.GREY, "line": {"width": 2}},
        text=[f"\u2003{text}"],
        textfont={"size": 13},
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )


def _row(
    figure: go.Figure, label: str, rows: pd.DataFrame, colours: Mapping[str, str], unit: str, is_panel: bool
) -> None:
    values = rows["value"]
    colour = colours.get(str(rows["adapter"].iloc[0]), formatting.GREY)
    median = float(values.median())
    figure.add_scatter(
        x=values,
        y=[label] * len(values),
        mode="markers",
        marker={"size": 9, "color": colour, "opacity": 0.4, "line": {"width": 0}},
        customdata=[[run, formatting.measured(value, unit)] for run, value in zip(rows["run_id"], values, strict=True)],
        hovertemplate="%{y}<br>%{customdata[1]} · run %{customdata[0]}<extra></extra>",
    )
    if len(values) > 1:
        lower, upper = float(values.quantile(0.25)), float(values.quantile(0.75))
        figure.add_scatter(
            x=[lower, upper],
            y=[label, label],
            mode="lines",
            line={"width": 7, "color": colour},
            opacity=0.65,
            hovertemplate=f"interquartile range {formatting.measured(lower, unit)} to "
            f"{formatting.measured(upper, unit)}<extra></extra>",
        )
    evidence = formatting.evidence(len(rows), rows["run_id"].nunique())
    figure.add_scatter(
        x=[median],
        y=[label],
        mode="markers",
        marker={"symbol": "line-ns", "size": 22, "line": {"width": 3, "color": colour}},
        hovertemplate=f"%{{y}}<br>median {formatting.measured(median, unit)}<br>{evidence}<extra></extra>",
    )
    figure.add_scatter(
        x=[float(values.max())],
        y=[label],
        mode="text",
        # Em spaces, as ordinary ones at the start of a line are dropped.
        text=[f"\u2003<b>{formatting.measured(median, unit)}</b>\u2002{'' if is_panel else evidence}"],
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
        ticks, texts = parts.linear_ticks(high * 1.05, unit)
        figure.update_xaxes(range=[0, high * 1.5 or 1], tickvals=ticks, ticktext=texts)


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
