"""Measured ratios beside published ones. Compares no absolute numbers and judges nothing."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts

MEASURED_COLOUR = "#0072B2"
MEASURED, PUBLISHED = "measured here", "published"


def ratios(frame: pd.DataFrame, *, title: str) -> go.Figure:
    """Measured ratios with their range beside published ones, a row per ratio.

    Args:
        frame: ``label``, ``measured``, ``low``, ``high``, ``published``, as the fields of ``engine.cases``' Ratio; any
            number may be missing (not measured yet, nothing published). ``low`` to ``high`` is drawn as a range.
        title: what is divided by what.
    """
    rows = frame.assign(label=[parts.escape(label) for label in frame["label"]])
    for column in ("measured", "low", "high", "published"):
        rows[column] = pd.to_numeric(rows[column], errors="coerce")
    numbers = rows[["measured", "low", "high", "published"]].stack().dropna()
    is_log = parts.needs_log_axis(numbers)
    figure = go.Figure()
    for line in rows.itertuples():
        if pd.notna(line.low) and pd.notna(line.high) and line.low < line.high:
            figure.add_scatter(
                x=[line.low, line.high],
                y=[line.label, line.label],
                mode="lines",
                line={"width": 7, "color": MEASURED_COLOUR},
                opacity=0.45,
                showlegend=False,
                hovertemplate=f"{formatting.ratio(line.low)} to {formatting.ratio(line.high)}<extra></extra>",
            )
    for name, column, marker in (
        (PUBLISHED, "published", {"symbol": "diamond-open", "color": formatting.GREY, "line": {"width": 2.5}}),
        (MEASURED, "measured", {"symbol": "circle", "color": MEASURED_COLOUR}),
    ):
        found = rows[rows[column].notna()]
        figure.add_scatter(
            x=found[column],
            y=found["label"],
            name=name,
            mode="markers",
            marker={"size": 12, **marker},
            customdata=[formatting.ratio(value) for value in found[column]],
            hovertemplate=f"%{{y}}<br>{name} %{{customdata}}<extra></extra>",
        )
    far = rows[["measured", "high", "published"]].max(axis=1)
    shown = rows[far.notna()]
    figure.add_scatter(
        x=far[far.notna()],
        y=shown["label"],
        mode="text",
        text=[_text(line.measured, line.published) for line in shown.itertuples()],
        textposition="middle right",
        textfont={"size": 13},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    labels = list(dict.fromkeys(rows["label"]))
    head = f"{parts.escape(title)}, log scale" if is_log else parts.escape(title)
    parts.finish(figure, head, height_px=150 + parts.ROW_HEIGHT_PX * max(len(labels), 1))
    parts.legend(figure, hover=False)
    parts.name_axis(figure, labels)
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    axis = parts.value_axis(min(low, 1.0), max(high, 1.0), "ratio", is_log=is_log)
    left, right = axis["range"]
    # Room on the right for the numbers.
    figure.update_xaxes(**{**axis, "range": [left, right + (right - left) * 0.5]})
    figure.add_vline(x=1, line={"dash": "dash", "width": 1.5, "color": formatting.GREY}, layer="below")
    return figure


def _text(measured: float, published: float) -> str:
    known = [f"<b>{formatting.ratio(measured)}</b>"] if math.isfinite(measured) else []
    known += [f"published {formatting.ratio(published)}"] if math.isfinite(published) else []
    return "\u2003" + " · ".join(known)
