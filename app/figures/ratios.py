"""Measured ratios beside published and predicted ones. Compares no absolute numbers and judges nothing."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts

MEASURED_COLOUR = "#0072B2"
MEASURED, PUBLISHED, PREDICTED = "measured", "published", "predicted"


def ratios(frame: pd.DataFrame, *, title: str, is_small: bool = False) -> go.Figure:
    """Measured ratios with their range beside published and predicted ones, a row per ratio.

    Args:
        frame: ``label``, ``measured``, ``low``, ``high``, ``published``, as the fields of ``engine.cases``' Ratio, and
            optionally ``predicted``; any number may be missing (not measured yet, nothing published). ``low`` to
            ``high`` is drawn as a range.
        title: what is divided by what.
        is_small: for a card: no title, legend or axis, each label above its row; what is published is a marker only.
    """
    rows = frame.assign(label=[parts.escape(label) for label in frame["label"]])
    for column in ("measured", "low", "high", "published", "predicted"):
        rows[column] = pd.to_numeric(rows[column], errors="coerce") if column in rows else math.nan
    numbers = rows[["measured", "low", "high", "published", "predicted"]].stack().dropna()
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
        # Last and wider, as it mostly lies around what was measured.
        (PREDICTED, "predicted", {"symbol": "square-open", "color": MEASURED_COLOUR, "size": 17, "line": {"width": 2}}),
    ):
        found = rows[rows[column].notna()]
        if found.empty and column == "predicted":
            continue
        figure.add_scatter(
            x=found[column],
            y=found["label"],
            name=name,
            mode="markers",
            marker={"size": 12} | marker,
            customdata=[formatting.ratio(value) for value in found[column]],
            hovertemplate=f"%{{y}}<br>{name} %{{customdata}}<extra></extra>",
        )
    far = rows[["measured", "high", "published", "predicted"]].max(axis=1)
    shown = rows[far.notna()]
    figure.add_scatter(
        x=[parts.text_start(end, 1.0, float(far.max()), is_log=is_log) for end in far[far.notna()]],
        y=shown["label"],
        mode="text",
        text=[
            _text(line.measured, *((math.nan, math.nan) if is_small else (line.published, line.predicted)))
            for line in shown.itertuples()
        ],
        textposition="middle right",
        textfont={"size": 13},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    labels = list(dict.fromkeys(rows["label"]))
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    axis = parts.value_axis(min(low, 1.0), max(high, 1.0), "ratio", is_log=is_log)
    left, right = axis["range"]
    # Room on the right for the numbers.
    axis["range"] = [left, right + (right - left) * (0.35 if is_small else 0.5)]
    figure.add_vline(x=1, line={"dash": "dash", "width": 1.5, "color": formatting.GREY}, layer="below")
    figure.update_xaxes(**axis)
    if is_small:
        _small(figure, labels)
        return figure
    head = f"{parts.escape(title)}, log scale" if is_log else parts.escape(title)
    parts.finish(figure, head, height_px=150 + parts.rows_px(len(labels)))
    parts.legend(figure, hover=False)
    parts.name_axis(figure, labels)
    return figure


def _small(figure: go.Figure, labels: list[str]) -> None:
    """As little as a card has room for."""
    figure.update_layout(
        height=44 * max(len(labels), 1) + 12, margin={"l": 0, "r": 0, "t": 6, "b": 0}, showlegend=False
    )
    figure.update_traces(textfont={"size": 12}, selector={"mode": "text"})
    figure.update_traces(marker={"size": 10}, selector={"mode": "markers"})
    figure.update_traces(line={"width": 6}, selector={"mode": "lines"})
    figure.update_shapes(line={"dash": "dot", "width": 1})
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=labels[::-1],
        range=[-0.4, len(labels) - 0.1],
        showticklabels=False,
        showgrid=False,
        zeroline=False,
    )
    for place, label in enumerate(reversed(labels)):
        figure.add_annotation(
            x=0,
            xref="paper",
            y=place + 0.44,
            xanchor="left",
            text=parts.wrapped(label, 52, lines=1),
            showarrow=False,
            font={"size": 12},
        )


def _text(measured: float, published: float, predicted: float) -> str:
    known = [f"<b>{formatting.ratio(measured)}</b>"] if math.isfinite(measured) else []
    # The markers show where both are the same.
    is_new = math.isfinite(predicted) and formatting.ratio(predicted) != formatting.ratio(measured)
    known += [f"{PREDICTED} {formatting.ratio(predicted)}"] if is_new else []
    known += [f"{PUBLISHED} {formatting.ratio(published)}"] if math.isfinite(published) else []
    return "\u2003" + " · ".join(known)
