"""Two metrics against each other, one point per group, and which groups no other beats in both. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts, styles, summaries

_DIRECT_LABELS = 6
_LABEL_CHARACTERS = 32
# Names of points nearer than this share of the width would overlap.
_NEAR = 0.3


def pareto_front(points: pd.DataFrame, better_x: formatting.Better, better_y: formatting.Better) -> list[object]:
    """The index of each point that no other beats: at least as good in both and better in one; ordered along x.

    Args:
        points: ``x`` and ``y``, without missing values.
        better_x: which way ``x`` is better.
        better_y: which way ``y`` is better.
    """
    signs = {"lower": 1.0, "higher": -1.0}
    costs = pd.DataFrame({"x": points["x"] * signs[better_x], "y": points["y"] * signs[better_y]})
    front: list[object] = []
    best = float("inf")
    for _, same_x in costs.sort_values(["x", "y"], kind="stable").groupby("x"):
        low = float(same_x["y"].min())
        if low < best:
            front += list(same_x.index[same_x["y"] == low])
            best = low
    return front if better_x == "lower" else front[::-1]


def scatter(
    frame: pd.DataFrame, colours: Mapping[str, str], *, x: str, y: str, baseline: str | None = None
) -> go.Figure:
    """Two metrics against each other, a point per group at its medians, with the Pareto front as a dotted line.

    Args:
        frame: one line per metric and repeat with ``group``, ``adapter`` (colour key), ``name``, ``unit``, ``value``
            and ``run_id``. Groups that lack either metric are left out.
        colours: adapter -> colour; adapters that are missing are grey.
        x: name of the metric along; a view of it follows an "@".
        y: name of the metric up.
        baseline: group whose point is ringed.
    """
    rows = frame[frame["name"].isin([x, y]) & frame["value"].notna()].assign(
        group=lambda found: found["group"].map(parts.escape)
    )
    points = _points(rows, x, y)
    units = {name: str(rows.loc[rows["name"] == name, "unit"].iloc[0]) if len(points) else "" for name in (x, y)}
    looks = styles.of_groups(rows[rows["group"].isin(points.index)], colours)
    figure = go.Figure()
    better_x, better_y = _better(x), _better(y)
    ringed = None if baseline is None else parts.escape(baseline)
    front = pareto_front(points, better_x, better_y) if better_x and better_y else []
    if len(front) > 1:
        figure.add_scatter(
            x=points.loc[front, "x"],
            y=points.loc[front, "y"],
            mode="lines",
            line={"dash": "dot", "width": 2, "color": formatting.GREY},
            hoverinfo="skip",
            showlegend=False,
        )
    for group, style in looks.items():
        _point(figure, group, points.loc[group], style, (x, y), units, is_ringed=group == ringed)
    title = f"{_title(y)} against {_lower_first(_title(x))}"
    parts.finish(
        figure,
        f"{title}; dotted: no other is better in both" if len(front) > 1 else title,
        height_px=parts.PANEL_HEIGHT_PX + 80,
    )
    for name, column, update in ((x, "x", figure.update_xaxes), (y, "y", figure.update_yaxes)):
        low, high = _ends(points, column)
        is_log = low > 0 and parts.needs_log_axis(points[column])
        axis = parts.value_axis(low, high, units[name], is_log=is_log, room=1.15)
        scale = ", tokens/s" if units[name] == "tokens/s" else ""
        scale += ", log scale" if is_log else ""
        update(title=f"{_title(name)}{scale}{parts.direction(_better(name))}", **axis)
    if len(looks) <= _DIRECT_LABELS and max(map(parts.length, looks), default=0) <= _LABEL_CHARACTERS:
        _labels(figure, points)
    else:
        parts.legend(figure, hover=False)
    return figure


def _title(metric: str) -> str:
    name, _, view = metric.partition("@")
    return f"{formatting.metric_title(name)} ({view.replace('_', ' ')})" if view else formatting.metric_title(name)


def _better(metric: str) -> formatting.Better | None:
    return formatting.better(metric.partition("@")[0])


def _lower_first(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def _points(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """One line per group that has both: medians ``x y``, quartiles, and what they stand on."""
    found = {
        column: summaries.quartiles(rows[rows["name"] == name], ["group"]) for column, name in (("x", x), ("y", y))
    }
    table = pd.DataFrame(
        {
            f"{column}{suffix}": of_metric[part]
            for column, of_metric in found.items()
            for suffix, part in (("", "median"), ("_low", "lower"), ("_high", "upper"), ("_runs", "runs"))
        }
    ).dropna()
    return table.loc[[group for group in dict.fromkeys(rows["group"]) if group in table.index]]


def _ends(points: pd.DataFrame, column: str) -> tuple[float, float]:
    if points.empty:
        return 0.0, 0.0
    return float(points[f"{column}_low"].min()), float(points[f"{column}_high"].max())


def _point(
    figure: go.Figure,
    group: str,
    point: pd.Series,
    style: styles.Style,
    names: tuple[str, str],
    units: Mapping[str, str],
    *,
    is_ringed: bool,
) -> None:
    bars = {
        f"error_{column}": {
            "type": "data",
            "array": [point[f"{column}_high"] - point[column]],
            "arrayminus": [point[column] - point[f"{column}_low"]],
            "thickness": 1.5,
            "width": 0,
            "color": style.colour,
        }
        for column in ("x", "y")
    }
    texts = [
        f"{_title(name)} {formatting.metric_text(name.partition('@')[0], float(point[column]), units[name])}"
        for name, column in zip(names, ("x", "y"), strict=True)
    ]
    ring = {"width": 3, "color": formatting.GREY} if is_ringed else {"width": 0}
    figure.add_scatter(
        x=[point["x"]],
        y=[point["y"]],
        **bars,
        name=group,
        mode="markers",
        marker={"size": 14 if is_ringed else 12, "symbol": style.symbol, "color": style.colour, "line": ring},
        customdata=[
            ["<br>".join([group, *texts, formatting.plural(int(max(point["x_runs"], point["y_runs"])), "run")])]
        ],
        hovertemplate="%{customdata[0]}<extra></extra>",
    )


def _labels(figure: go.Figure, points: pd.DataFrame) -> None:
    """Names beside the points, on the side where the plot has room; those of near points one below the other."""
    places = {column: _shares(points[column], figure.layout[f"{column}axis"]) for column in ("x", "y")}
    margin = figure.layout.margin
    gap = 18 / (figure.layout.height - margin.t - margin.b)
    left_over = sorted(points.index, key=lambda group: places["x"][group])
    while left_over:
        near = [group for group in left_over if places["x"][group] - places["x"][left_over[0]] < _NEAR]
        left_over = left_over[len(near) :]
        is_left = places["x"][near[0]] < 0.5
        for group, height in zip(near, parts.apart([places["y"][group] for group in near], gap), strict=True):
            figure.add_annotation(
                name=parts.DIRECT_LABEL,
                x=places["x"][group],
                xref="paper",
                y=height,
                yref="paper",
                xanchor="left" if is_left else "right",
                yanchor="middle",
                xshift=10 if is_left else -10,
                yshift=10,
                text=str(group),
                showarrow=False,
                font={"size": 13},
            )


def _shares(values: pd.Series, axis: go.layout.XAxis) -> pd.Series:
    """Where values lie along an axis, from 0 to 1."""
    start, end = axis.range
    return ((values.map(math.log10) if axis.type == "log" else values) - start) / (end - start)
