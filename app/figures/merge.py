"""The peak of a merge, in bytes and in multiples of the largest adapted weight W, beside each other."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app import formatting
from app.figures import parts

_SIDES = (("bytes", "in bytes"), ("W", "in W, the largest adapted weight"))


def merge_peak(
    frame: pd.DataFrame, colours: Mapping[str, str], *, title: str, baseline: str | None = None
) -> go.Figure:
    """Peak extra memory as bars, in bytes on the left and in W on the right, a row per group.

    A hollow diamond marks what is still held after the merge, where that is more than nothing.

    Args:
        frame: one line per group with ``group`` (row, in order of first appearance), ``adapter`` (colour key),
            ``peak_bytes``, ``retained_bytes`` and ``weight_bytes`` (W); any of the last two may be missing.
        colours: adapter -> colour; adapters that are missing are grey.
        title: metric; the direction is added.
        baseline: group whose peak is a dashed line through all rows.
    """
    rows = frame[frame["peak_bytes"].notna()].assign(group=lambda found: found["group"].map(parts.escape))
    rows["weight_bytes"] = rows["weight_bytes"].where(rows["weight_bytes"] > 0)
    labels = list(dict.fromkeys(rows["group"]))
    sides = _SIDES if rows["weight_bytes"].notna().any() else _SIDES[:1]
    figure = make_subplots(
        1, len(sides), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=[head for _, head in sides]
    )
    for column, (unit, _) in enumerate(sides, start=1):
        by = 1.0 if unit == "bytes" else rows["weight_bytes"]
        side = rows.assign(peak=rows["peak_bytes"] / by, kept=rows["retained_bytes"] / by)
        base = side["peak"][side["group"] == (parts.escape(baseline) if baseline is not None else None)].dropna()
        middle = float(base.iloc[0]) if len(base) else None
        _bars(figure, side, colours, unit, column, middle)
        if middle is not None:
            line = {"dash": "dash", "width": 1.5, "color": formatting.GREY}
            figure.add_vline(x=middle, line=line, layer="below", row=1, col=column)
    parts.finish(figure, f"{title}{parts.direction('lower')}", height_px=140 + parts.rows_px(len(labels)))
    figure.update_layout(bargap=0.4, margin={"t": 84})
    for note in figure.layout.annotations:
        note.font.size = 13
    parts.name_axis(figure, labels)
    if (rows["retained_bytes"] > 0).any():
        parts.legend(figure, hover=False)
    return figure


def _bars(
    figure: go.Figure, rows: pd.DataFrame, colours: Mapping[str, str], unit: str, column: int, middle: float | None
) -> None:
    """One side: bars with their values at the end, and what is kept."""
    rows = rows[rows["peak"].notna()]
    kept = rows[rows["kept"] > 0]
    far = rows[["peak", "kept"]].max(axis=1)
    figure.add_bar(
        x=rows["peak"],
        y=rows["group"],
        orientation="h",
        name="peak",
        showlegend=False,
        marker={"color": [colours.get(str(adapter), formatting.GREY) for adapter in rows["adapter"]]},
        customdata=[formatting.measured(float(value), unit) for value in rows["peak"]],
        hovertemplate="%{y}<br>peak %{customdata}<extra></extra>",
        row=1,
        col=column,
    )
    figure.add_scatter(
        x=[parts.text_start(float(end), middle, float(far.max())) for end in far],
        y=rows["group"],
        mode="text",
        text=[f"\u2002<b>{formatting.measured(float(value), unit)}</b>" for value in rows["peak"]],
        textfont={"size": 13},
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=column,
    )
    if len(kept):
        figure.add_scatter(
            x=kept["kept"],
            y=kept["group"],
            name="still held after the merge",
            mode="markers",
            marker={"symbol": "diamond-open", "size": 12, "color": "#D55E00", "line": {"width": 2}},
            customdata=[formatting.measured(float(value), unit) for value in kept["kept"]],
            hovertemplate="%{y}<br>still held %{customdata}<extra></extra>",
            showlegend=column == 1,
            row=1,
            col=column,
        )
    high = float(far.max()) if len(far) else 0.0
    axis = parts.value_axis(0.0, high, unit, is_log=False)
    ticks, texts = parts.linear_ticks(high * 1.08, unit, number=4)
    left, right = axis["range"]
    figure.update_xaxes(
        type="linear", range=[left, right * 1.4], tickvals=ticks, ticktext=texts, zeroline=False, row=1, col=column
    )
