"""Memory at the peak against context length, stacked by category, one panel per method. Measures nothing."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts
from app.figures.facets import facets
from app.figures.memory import CATEGORY_COLOURS, UNATTRIBUTED, filling, hatching

_LIMIT_COLOUR = "#D55E00"
# A device this many times larger than the highest stack would press all stacks flat.
_NEAR = 3


def context_memory(
    frame: pd.DataFrame,
    *,
    title: str,
    limits: Mapping[str, float] | None = None,
    x_title: str = "context length",
    is_predicted: bool = False,
    points: pd.DataFrame | None = None,
) -> go.Figure:
    """Bytes at the peak by category against context length, one panel per method on the same axes.

    The x axis is logarithmic to base 2 with the real lengths as ticks. Where a run ran out of memory there is a hollow
    marker at what it reached, or at the top where that is not known, and nothing is drawn through it.

    Args:
        frame: ``group`` (panel, in order of first appearance), ``x`` (tokens, positive), ``part`` (category) and
            ``value`` (bytes, one line per group, x and part); ``state`` is "out_of_memory" on a line whose value is the
            peak that was reached, or missing.
        title: metric; the direction is added.
        limits: name -> bytes of the devices, drawn as lines where they are near enough to be seen.
        x_title: what ``x`` is.
        is_predicted: the stacks are predicted, so they are hatched, and ``points`` are measured; otherwise the stacks
            are measured and ``points`` predicted.
        points: ``group``, ``x`` and ``value`` (bytes) of totals that are drawn as points beside the stacks.
    """
    # Every panel has the same lines, as it has the same axes.
    keys = ["group", "x", "state"] if "state" in frame else ["group", "x"]
    highest = frame.groupby(keys, dropna=False)["value"].sum().max()
    if points is None or points.empty:
        points = pd.DataFrame({"group": [], "x": [], "value": []})
    else:
        highest = max(highest, points["value"].max())
    near = {name: limit for name, limit in (limits or {}).items() if not highest > 0 or limit < highest * _NEAR}
    draw = functools.partial(
        _panel, whole=frame, title=title, limits=near, x_title=x_title, is_predicted=is_predicted, points=points
    )
    return facets(frame, "group", draw)


def _panel(
    rows: pd.DataFrame,
    *,
    whole: pd.DataFrame,
    title: str,
    limits: Mapping[str, float],
    x_title: str,
    is_predicted: bool,
    points: pd.DataFrame,
) -> go.Figure:
    figure = go.Figure()
    lengths = sorted({float(x) for x in whole["x"].dropna()})
    beside = points[points["group"].isin(rows["group"]) & points["x"].isin(lengths)]
    places = {length: math.log2(length) for length in lengths}
    gaps = [places[after] - places[before] for before, after in itertools.pairwise(lengths)]
    width = 0.78 * min(gaps, default=1.0)
    is_ended = rows["state"].eq(parts.OUT_OF_MEMORY) if "state" in rows else pd.Series(False, index=rows.index)
    measured, ended = rows[~is_ended & rows["value"].notna()], rows[is_ended]
    totals = measured.groupby("x")["value"].sum()
    high = max([float(totals.max())] if len(totals) else [0.0])
    high = max(high, float(ended["value"].max()) if ended["value"].notna().any() else 0.0)
    high = max(high, float(beside["value"].max()) if len(beside) else 0.0)
    top = max([high, *limits.values()])
    # What a run out of memory reached is often not known: its marker is above the point of what it would have taken.
    y_axis = parts.value_axis(0.0, top, "bytes", is_log=False, room=1.35 if len(ended) and len(beside) else 1.15)
    unit, unit_bytes = parts.scale("bytes", top)
    for part in _stack_order(whole):
        found = measured[measured["part"] == part]
        if len(found):
            figure.add_bar(
                x=[places[x] for x in found["x"]],
                y=found["value"],
                width=width,
                name=part,
                marker=(hatching if is_predicted else filling)(part, CATEGORY_COLOURS.get(part, formatting.GREY)),
                customdata=[
                    [f"{x:.6g}", formatting.size(value)] for x, value in zip(found["x"], found["value"], strict=True)
                ],
                hovertemplate=f"{x_title} %{{customdata[0]}}<br>{part} %{{customdata[1]}}<extra></extra>",
            )
    figure.add_scatter(
        x=[places[x] for x in totals.index],
        y=totals,
        mode="text",
        # A point may lie on the edge of its stack: the number goes above it.
        text=[
            formatting.significant(float(value) / unit_bytes) + ("<br>\u2002" if x in set(beside["x"]) else "")
            for x, value in totals.items()
        ],
        textposition="top center",
        textfont={"size": 12},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    if len(beside):
        _beside(figure, beside, places, "measured" if is_predicted else "predicted")
    if len(ended):
        _ended(figure, ended, places, y_axis["range"][1])
    parts.finish(figure, f"{title}, {unit}{parts.direction('lower')}", height_px=parts.PANEL_HEIGHT_PX + 40)
    parts.legend(figure, hover=False)
    edge = width / 2 + 0.25
    ends = [min(places.values(), default=0.0) - edge, max(places.values(), default=1.0) + edge]
    figure.update_layout(barmode="stack")
    figure.update_xaxes(
        title=x_title,
        showgrid=False,
        range=ends,
        tickvals=list(places.values()),
        ticktext=[f"{length:.6g}" for length in lengths],
    )
    figure.update_yaxes(**y_axis)
    for (name, limit), dash in zip(limits.items(), itertools.cycle(("solid", "dash", "dot")), strict=False):
        figure.add_scatter(
            x=ends,
            y=[limit, limit],
            name=parts.escape(name),
            mode="lines",
            line={"width": 1.5, "color": _LIMIT_COLOUR, "dash": dash},
            hoverinfo="skip",
        )
    return figure


def _beside(figure: go.Figure, rows: pd.DataFrame, places: Mapping[float, float], name: str) -> None:
    """Totals of another origin: filled where they are measured, hollow where they are predicted."""
    is_measured = name == "measured"
    figure.add_scatter(
        x=[places[x] for x in rows["x"]],
        y=rows["value"],
        name=name,
        mode="markers",
        marker={
            "size": 11,
            "symbol": "circle" if is_measured else "square-open",
            # White within black is seen on every part of a stack, in light and in dark.
            "color": "#ffffff" if is_measured else _LIMIT_COLOUR,
            "line": {"width": 2.5, "color": "#1c2733" if is_measured else _LIMIT_COLOUR},
        },
        customdata=[formatting.size(value) for value in rows["value"]],
        hovertemplate=f"{name} %{{customdata}}<extra></extra>",
    )


def _ended(figure: go.Figure, ended: pd.DataFrame, places: Mapping[float, float], top: float) -> None:
    """Hollow markers at what was reached."""
    reached = ended.groupby("x")["value"].max()
    figure.add_scatter(
        x=[places[x] for x in reached.index],
        y=reached.fillna(top * 0.93),
        name="out of memory",
        mode="markers",
        marker={"size": 13, "symbol": "circle-open", "color": _LIMIT_COLOUR, "line": {"width": 2}},
        customdata=[
            f"out of memory at {formatting.size(value)}" if pd.notna(value) else "out of memory" for value in reached
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _stack_order(rows: pd.DataFrame) -> list[str]:
    found = [part for part in dict.fromkeys(rows["part"].dropna()) if part]
    known = [part for part in CATEGORY_COLOURS if part in found]
    others = [part for part in found if part not in CATEGORY_COLOURS and part != UNATTRIBUTED]
    return known + others + [UNATTRIBUTED] * (UNATTRIBUTED in found)
