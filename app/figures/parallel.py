"""Several fields and metrics of several runs at once, a line per run through upright axes. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts, styles

#: More upright axes than this do not fit beside each other.
MAX_DIMENSIONS = 9
_MAX_NAMES = 12
_LEGEND = 12
# The height of a line of values.
_LINE_PX = 15


@dataclass(frozen=True, slots=True)
class Dimension:
    """One upright axis: a column of the table, what it is called, its stored unit and which way it is better."""

    column: str
    title: str
    unit: str = ""
    better: formatting.Better | None = None


def parallel(
    table: pd.DataFrame, colours: Mapping[str, str], *, dimensions: Sequence[Dimension], title: str
) -> go.Figure:
    """A line per run through an upright axis for each dimension in which the runs differ.

    Numbers lie from their smallest to their largest, logarithmically where they span decades; words lie one above the
    other. A line is interrupted where its run has no value.

    Args:
        table: one line per run, with ``group`` (name in the legend), ``adapter`` (colour key) and the dimensions'
            columns; its index is the runs' ids.
        colours: adapter -> colour; adapters that are missing are grey.
        dimensions: from left to right; those with one value in all runs are left out, and so are those beyond
            ``MAX_DIMENSIONS``, as the title says.
        title: of the chart.
    """
    varying = [dimension for dimension in dimensions if table[dimension.column].dropna().astype(str).nunique() > 1]
    shown = varying[:MAX_DIMENSIONS]
    rows = table.assign(group=table["group"].map(parts.escape))
    figure = go.Figure()
    axes = [_Axis(rows[dimension.column], dimension) for dimension in shown]
    heights = pd.DataFrame({place: axis.places for place, axis in enumerate(axes)}, index=rows.index)
    looks = styles.of_groups(rows, colours)
    named: set[str] = set()
    for run_id, line in rows.iterrows():
        style = looks[line["group"]]
        facts = "<br>".join(
            f"{parts.escape(dimension.title)}: {_text(line[dimension.column], dimension)}" for dimension in shown
        )
        figure.add_scatter(
            x=list(range(len(axes))),
            y=list(heights.loc[run_id]) if axes else [],
            name=line["group"],
            legendgroup=line["group"],
            showlegend=line["group"] not in named,
            mode="lines+markers",
            opacity=0.8,
            line={"width": 2, "color": style.colour},
            marker={"size": 7, "symbol": style.symbol, "color": style.colour},
            customdata=[f"<b>{line['group']}</b>, run {run_id}<br>{facts}"] * len(axes),
            hovertemplate="%{customdata}<extra></extra>",
        )
        named.add(line["group"])
    left_out = len(varying) - len(shown)
    head = f"{parts.escape(title)} (the first {len(shown)} of {len(varying)} that differ)" if left_out else title
    parts.finish(figure, head, height_px=parts.PANEL_HEIGHT_PX + 160)
    if 1 < len(looks) <= _LEGEND:
        parts.legend(figure, hover=False)
    above_px = 10 + _LINE_PX * max((axis.lines_on_top for axis in axes), default=0)
    figure.update_layout(margin={"t": 104 + above_px, "l": 24, "r": 24})
    figure.update_xaxes(range=[-0.4, len(axes) - 0.6], showgrid=False, showticklabels=False, zeroline=False)
    figure.update_yaxes(range=[-0.1, 1.05], showgrid=False, showticklabels=False, zeroline=False)
    for place, axis in enumerate(axes):
        _upright(figure, place, axis, above_px)
    return figure


class _Axis:
    """Where each value lies between 0 and 1, and which values are written beside the axis."""

    def __init__(self, column: pd.Series, dimension: Dimension) -> None:
        self.dimension = dimension
        known = column.dropna()
        self.is_number = all(isinstance(value, Real) and not isinstance(value, bool) for value in known)
        self.is_log = False
        if self.is_number:
            numbers = known.astype(float)
            self.is_log = parts.needs_log_axis(numbers)
            low, high = self._scaled(float(numbers.min())), self._scaled(float(numbers.max()))
            self.places = column.map(
                lambda value: math.nan if pd.isna(value) else (self._scaled(float(value)) - low) / (high - low)
            )
            written = sorted(set(numbers)) if numbers.nunique() <= 4 else [float(numbers.min()), float(numbers.max())]
            self.written = {(self._scaled(value) - low) / (high - low): _text(value, dimension) for value in written}
        else:
            words = list(dict.fromkeys(str(value) for value in known))
            steps = {word: index / max(len(words) - 1, 1) for index, word in enumerate(words)}
            self.places = column.map(lambda value: math.nan if pd.isna(value) else steps[str(value)])
            self.written = {steps[word]: parts.wrapped(_text(word, dimension), 14) for word in words[:_MAX_NAMES]}

    @property
    def lines_on_top(self) -> int:
        """How many lines the value at the upper end is written on."""
        return self.written[max(self.written)].count("<br>") + 1

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def _text(value: object, dimension: Dimension) -> str:
    if value is None or pd.isna(value):
        return formatting.DASH
    if isinstance(value, Real) and not isinstance(value, bool):
        if dimension.unit:
            return formatting.metric_text(dimension.column.partition("@")[0], float(value), dimension.unit)
        return f"{float(value):.6g}"
    return parts.escape({"True": "yes", "False": "no"}.get(str(value), str(value)))


def _upright(figure: go.Figure, place: int, axis: _Axis, above_px: int) -> None:
    """One axis: its line, its name above its uppermost value, its values beside it."""
    figure.add_shape(
        type="line", x0=place, x1=place, y0=0, y1=1, layer="below", line={"width": 1.5, "color": formatting.GREY}
    )
    notes = [", log scale"] * axis.is_log + [f", {axis.dimension.better} is better"] * bool(axis.dimension.better)
    figure.add_annotation(
        x=place,
        y=1,
        yanchor="bottom",
        yshift=above_px,
        text=f"<b>{parts.wrapped(parts.escape(axis.dimension.title), 16)}</b>"
        + "".join(f"<br>{note[2:]}" for note in notes),
        showarrow=False,
        font={"size": 12},
    )
    for height, text in axis.written.items():
        # Beyond the ends of the axis no line crosses a value.
        is_end = height in (0.0, 1.0)
        figure.add_annotation(
            x=place,
            y=height,
            xanchor="center" if is_end else "left",
            yanchor="top" if height == 0.0 else "bottom",
            xshift=0 if is_end else 5,
            yshift={0.0: -4, 1.0: 4}.get(height, 0),
            text=text,
            showarrow=False,
            align="center" if is_end else "left",
            font={"size": 11},
        )
