"""Small multiples: the same chart once for each value of a field, on the same axes. Draws no data of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.figures import parts

#: More panels than this are too small to read.
MAX_PANELS = 12
_COLUMNS = 3
_AXIS = (
    "type",
    "range",
    "tickvals",
    "ticktext",
    "ticksuffix",
    "categoryorder",
    "categoryarray",
    "tickfont",
    "showgrid",
)


def facets(frame: pd.DataFrame, by: str, draw: Callable[[pd.DataFrame], go.Figure], *, name: str = "") -> go.Figure:
    """The chart that ``draw`` makes, once for each value of a column, with the same ranges on all of them.

    Args:
        frame: what ``draw`` takes, with the column ``by``; lines where that is missing are a panel of their own.
        by: the column; panels are in order of its values where they are numbers, else of first appearance; lines
            without a value come last.
        draw: DataFrame -> figure with one x and one y axis. Its end labels become one legend.
        name: what the column is, written before each value; empty where the values speak for themselves.

    Returns:
        The figure of all of it where there is only one value; else at most ``MAX_PANELS`` panels, and the title says
        how many were left out.
    """
    values = _in_order(frame[by])
    whole = draw(frame)
    if len(values) < 2:
        return whole
    shown = values[:MAX_PANELS]
    pieces = [draw(frame[frame[by].isna() if pd.isna(value) else frame[by] == value]) for value in shown]
    # Charts of rows need room for their labels.
    has_rows = whole.layout.yaxis.categoryarray is not None
    columns = min(len(shown), 2 if has_rows or len(shown) == 4 else _COLUMNS)
    rows = math.ceil(len(shown) / columns)
    head = f"{parts.escape(name)} " if name else ""
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[parts.wrapped(f"{head}{_text(value)}", 38 if columns < 3 else 26) for value in shown],
        shared_yaxes="all",
        shared_xaxes="all",
        horizontal_spacing=0.035 if columns > 1 else 0,
        vertical_spacing=min(0.16, 0.3 / rows),
    )
    names: set[str] = set()
    looks = {
        trace.name: trace
        for trace in whole.data
        if trace.type == "scatter" and trace.name and trace.showlegend is not False
    }
    for index, piece in enumerate(pieces):
        _look_alike(piece, looks)
        _place(figure, piece, index // columns + 1, index % columns + 1, names)
    left_out = len(values) - len(shown)
    title = str(whole.layout.title.text) + (f" (the first {len(shown)} of {len(values)})" if left_out else "")
    highest_px = max(piece.layout.height for piece in pieces)
    height_px = highest_px if has_rows else max(int(highest_px * 0.8), 260)
    parts.finish(figure, title, height_px=60 + height_px * rows)
    figure.update_layout(
        margin={"t": 84},
        barmode=whole.layout.barmode,
        bargap=whole.layout.bargap,
        uniformtext=whole.layout.uniformtext,
    )
    for annotation in figure.layout.annotations[: len(shown)]:
        annotation.font.size = 13
    figure.update_xaxes(**_shared(whole, pieces, "xaxis"))
    figure.update_yaxes(**_shared(whole, pieces, "yaxis"))
    x_title, y_title = whole.layout.xaxis.title.text, whole.layout.yaxis.title.text
    for column in range(1, columns + 1):
        last = max(index // columns + 1 for index in range(len(shown)) if index % columns + 1 == column)
        figure.update_xaxes(title=x_title, showticklabels=True, row=last, col=column)
    if y_title:
        figure.update_yaxes(title=y_title, col=1)
    if whole.layout.showlegend or any(note.name == parts.DIRECT_LABEL for note in whole.layout.annotations):
        parts.legend(figure, hover=False)
    return figure


def _in_order(column: pd.Series) -> list[Hashable]:
    values: list[Any] = list(column.dropna().drop_duplicates())
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    return values + [None] * bool(column.isna().any())


def _text(value: Hashable) -> str:
    if pd.isna(value):
        return "not set"
    return f"{value:.6g}" if isinstance(value, float) else parts.escape(value)


def _look_alike(piece: go.Figure, looks: Mapping[str, go.Scatter]) -> None:
    """Give each name the colour, symbol and dash that it has in the chart of everything."""
    for trace in piece.data:
        like = looks.get(trace.name) if trace.type == "scatter" else None
        if like is None:
            continue
        trace.marker.color = like.marker.color
        if trace.showlegend is not False:
            trace.marker.symbol, trace.line = like.marker.symbol, like.line
            for bar, colour in ((trace.error_x, like.error_x.color), (trace.error_y, like.error_y.color)):
                if bar.array is not None:
                    bar.color = colour


def _place(figure: go.Figure, piece: go.Figure, row: int, column: int, names: set[str]) -> None:
    """Put a chart's traces, lines and notes into one panel; each name is in the legend once."""
    for trace in piece.data:
        is_named = trace.name is not None and trace.showlegend is not False
        if is_named:
            trace.update(legendgroup=trace.legendgroup or trace.name, showlegend=trace.name not in names)
            names.add(trace.name)
        figure.add_trace(trace, row=row, col=column)
    for shape in piece.layout.shapes:
        figure.add_shape(shape, row=row, col=column, exclude_empty_subplots=False)
    for note in piece.layout.annotations:
        if note.name != parts.DIRECT_LABEL:
            figure.add_annotation(note, row=row, col=column, exclude_empty_subplots=False)


def _shared(whole: go.Figure, pieces: list[go.Figure], axis: str) -> dict[str, object]:
    """One axis for all panels: of the whole where that is logarithmic or of names, else of the farthest reaching."""
    of_whole = whole.layout[axis]
    chosen = of_whole
    is_farthest = of_whole.type not in ("log", "category") and of_whole.range is not None
    if is_farthest:
        chosen = max((piece.layout[axis] for piece in pieces), key=lambda found: found.range[1])
    settings = {key: chosen[key] for key in _AXIS if chosen[key] is not None}
    if is_farthest:
        settings["range"] = [min(piece.layout[axis].range[0] for piece in pieces), chosen.range[1]]
        settings["type"] = of_whole.type
    return settings
