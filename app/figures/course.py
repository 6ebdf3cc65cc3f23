"""The predicted course of memory over a job's changes, stacked by category. Predicts nothing."""

from __future__ import annotations

import itertools

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts
from app.figures.memory import CATEGORY_COLOURS

# A part shorter than this share of the width has no room for its name.
_NAMED_SHARE = 0.06


def course(frame: pd.DataFrame, *, title: str) -> go.Figure:
    """Live bytes after each change, stacked by category, with the parts of the job marked and the highest moment.

    Args:
        frame: ``number`` (of the change), ``part`` of the job, ``category``, ``bytes``; a category that is missing at a
            moment has none.
        title: what goes on meanwhile; unit and direction are added.
    """
    figure = go.Figure()
    table = frame.pivot_table(index="number", columns="category", values="bytes", aggfunc="max").fillna(0)
    totals = table.sum(axis=1)
    known = [name for name in CATEGORY_COLOURS if name in table]
    for name in [*known, *(str(name) for name in table if name not in CATEGORY_COLOURS)]:
        colour = CATEGORY_COLOURS.get(name, formatting.GREY)
        figure.add_scatter(
            x=table.index,
            y=table[name],
            customdata=[formatting.size(value) for value in table[name]],
            name=name,
            mode="lines",
            line={"width": 0.5, "color": colour, "shape": "hv"},
            fillcolor=colour,
            stackgroup="tensors",
            hovertemplate=f"{name} %{{customdata}}<extra></extra>",
        )
    high, top_at = float(totals.max()), int(totals.idxmax())
    parts.finish(figure, f"{title}{parts.direction('lower')}", height_px=parts.PANEL_HEIGHT_PX + 20)
    parts.legend(figure, hover=True)
    ticks, texts = parts.linear_ticks(high * 1.05, "bytes")
    first, last = int(table.index[0]), int(table.index[-1])
    figure.update_xaxes(title="changes of memory, in their order", showgrid=False, showticklabels=False)
    figure.update_yaxes(range=[0, high * 1.22 or 1], tickvals=ticks, ticktext=texts)
    _parts(figure, frame, first, last)
    figure.add_annotation(
        x=top_at,
        y=high,
        text=f"peak {formatting.size(high)}",
        arrowhead=0,
        ax=0,
        ay=-18,
        font={"size": 12},
    )
    return figure


def _parts(figure: go.Figure, frame: pd.DataFrame, first: int, last: int) -> None:
    """A line where each part of the job begins, and its name above where there is room."""
    starts = frame.drop_duplicates("number").sort_values("number")
    begins = [(int(number), part) for number, part in zip(starts["number"], starts["part"], strict=True)]
    changes = [begins[0], *(after for before, after in itertools.pairwise(begins) if before[1] != after[1])]
    ends = [*(number for number, _ in changes[1:]), last]
    for (number, part), end in zip(changes, ends, strict=True):
        if number > first:
            figure.add_vline(x=number, line={"width": 1, "dash": "dot", "color": formatting.GREY})
        if end - number >= _NAMED_SHARE * max(last - first, 1):
            figure.add_annotation(
                x=(number + end) / 2,
                y=1,
                yref="paper",
                yanchor="top",
                text=parts.escape(part),
                showarrow=False,
                font={"size": 12},
            )
