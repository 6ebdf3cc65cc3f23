"""Predicted bytes beside measured ones: each pair against the diagonal, and the errors in rows. Predicts nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts

# Errors smaller than this would be drawn as wide as errors that matter.
_LEAST_RANGE = 0.005


def predicted_measured(frame: pd.DataFrame, colours: Mapping[str, str], *, title: str) -> go.Figure:
    """Predicted bytes up, measured bytes along, both on logarithmic axes of the same range, with the diagonal dashed.

    Args:
        frame: one line per pair: ``measured`` and ``predicted`` (bytes), ``error`` (share of what was measured),
            ``adapter`` (colour key), ``text`` (what was run, for hovering). Pairs with nothing on one side have no
            place on a logarithmic axis and are left out.
        colours: adapter -> colour; adapters that are missing are grey.
        title: of the chart.
    """
    shown = frame[(frame["measured"] > 0) & (frame["predicted"] > 0)]
    figure = go.Figure()
    both = pd.concat([shown["measured"], shown["predicted"]])
    low, high = (float(both.min()), float(both.max())) if len(both) else (1.0, 2.0**30)
    axis = parts.value_axis(low, high, "bytes", is_log=True)
    ends = [10**edge for edge in axis["range"]]
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        name="equal",
        line={"dash": "dash", "width": 1.5, "color": formatting.GREY},
        hoverinfo="skip",
        showlegend=False,
    )
    for adapter, rows in shown.groupby("adapter", sort=False):
        figure.add_scatter(
            x=rows["measured"],
            y=rows["predicted"],
            name=parts.escape(adapter),
            mode="markers",
            marker={"size": 9, "color": colours.get(str(adapter), formatting.GREY), "opacity": 0.6},
            customdata=[
                [
                    parts.escape(line.text),
                    formatting.size(line.predicted),
                    formatting.size(line.measured),
                    formatting.error(line.error),
                ]
                for line in rows.itertuples()
            ],
            hovertemplate="%{customdata[0]}<br>predicted %{customdata[1]}, measured %{customdata[2]}"
            "<br>%{customdata[3]}<extra></extra>",
        )
    parts.finish(figure, title, height_px=parts.PANEL_HEIGHT_PX + 120)
    parts.legend(figure, hover=False)
    figure.update_xaxes(title="measured", **axis)
    figure.update_yaxes(title="predicted", **axis)
    return figure


def errors(frame: pd.DataFrame, colours: Mapping[str, str], *, title: str) -> go.Figure:
    """The error of every prediction as a point in the row of its label, with the number of runs and the worst error.

    Args:
        frame: one line per pair: ``label`` (row, in order of first appearance), ``error`` (share of what was measured;
            infinite where nothing was), ``adapter`` (colour key), ``text`` (for hovering).
        colours: adapter -> colour; adapters that are missing are grey.
        title: of the chart.
    """
    rows = frame[frame["error"].map(math.isfinite)].assign(label=lambda found: found["label"].map(parts.escape))
    labels = list(dict.fromkeys(rows["label"]))
    reach = max(float(rows["error"].abs().max()) if len(rows) else 0.0, _LEAST_RANGE) * 1.08
    figure = go.Figure()
    for adapter, found in rows.groupby("adapter", sort=False):
        figure.add_scatter(
            x=found["error"],
            y=found["label"],
            mode="markers",
            marker={"size": 10, "color": colours.get(str(adapter), formatting.GREY), "opacity": 0.5},
            customdata=[[parts.escape(line.text), formatting.error(line.error)] for line in found.itertuples()],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
        )
    worst = rows.groupby("label", sort=False)["error"].agg(lambda values: values.loc[values.abs().idxmax()])
    numbers = rows.groupby("label", sort=False)["error"].size()
    figure.add_scatter(
        x=[reach] * len(labels),
        y=labels,
        mode="text",
        text=[_row_text(float(worst[label]), int(numbers[label])) for label in labels],
        textposition="middle right",
        textfont={"size": 13},
        cliponaxis=False,
        hoverinfo="skip",
    )
    parts.finish(figure, title, height_px=104 + parts.rows_px(len(labels)))
    parts.name_axis(figure, labels)
    figure.add_vline(x=0, line={"dash": "dash", "width": 1.5, "color": formatting.GREY}, layer="below")
    figure.update_xaxes(range=[-reach, reach * 2.1], **_error_ticks(reach))
    return figure


def _row_text(worst: float, number: int) -> str:
    """ "+2.00 % worst of 15", "exact, 15 peaks"."""
    if worst == 0:
        return f"\u2002<b>exact</b>, {formatting.plural(number, 'peak')}"
    return f"\u2002<b>{formatting.error(worst)}</b>" + (f" worst of {number}" if number > 1 else "")


def _error_ticks(reach: float) -> dict[str, object]:
    """Ticks on both sides of nothing, in per cent."""
    above, _ = parts.linear_ticks(reach * 100, "", 4)
    values = [-value for value in above[:0:-1]] + above
    return {
        "tickvals": [value / 100 for value in values],
        "ticktext": ["0" if value == 0 else f"{value:+.6g} %".replace("-", "−") for value in values],
    }
