"""Charts as pure functions: a DataFrame in, a Plotly figure out. Reads no database, knows no page, needs no browser.

Frames hold stored units (seconds, bytes); axes and labels show them as ``app.formatting`` says. Text and background
colours are left to the theme of the page, so every figure works in light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from app import formatting

ROW_HEIGHT_PX = 46
# Categories of tensors that were there before the adapter.
BARE_MODEL = ("base parameters", "buffers")
_CATEGORY_COLOURS = {
    "base parameters": formatting.GREY,
    "buffers": "#b9c0c7",
    "adapter parameters": "#0072B2",
    "temporary": "#E69F00",
}


def time_axis_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Tick positions 1-2-5 (or powers of ten over three decades) and their texts for a logarithmic axis in seconds."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) <= 2.2 else (1,)
    values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    values = [value for value in values if low <= value <= high]
    texts = [f"{value * 1000:g} ms" if value < 1 else f"{value:g} s" for value in values]
    return values, texts


def needs_log_axis(values: pd.Series) -> bool:
    """Whether positive values spread over more than one decade, so that a linear axis would hide the small ones."""
    positive = values[values > 0]
    return len(positive) > 0 and len(positive) == len(values) and float(positive.max() / positive.min()) > 10


def init_seconds(
    frame: pd.DataFrame,
    colours: Mapping[str, str],
    *,
    title: str = "Seconds to attach the adapter",
    baseline: str | None = None,
) -> go.Figure:
    """Repeats, median and interquartile range of a time, one row per label, lower is better.

    Args:
        frame: one line per repeat with ``label`` (row, in order of first appearance), ``adapter`` (colour key),
            ``seconds`` and ``run_id``.
        colours: adapter -> colour; adapters that are missing are grey.
        title: metric; unit and direction are added.
        baseline: label of the row whose median is drawn as a dashed line through all rows.
    """
    figure = go.Figure()
    labels = list(dict.fromkeys(frame["label"]))
    log = needs_log_axis(frame["seconds"])
    high = float(frame["seconds"].max())
    low = float(frame["seconds"].min())
    for label in labels:
        rows = frame[frame["label"] == label]
        values = rows["seconds"]
        colour = colours.get(str(rows["adapter"].iloc[0]), formatting.GREY)
        median = float(values.median())
        figure.add_scatter(
            x=values,
            y=[label] * len(values),
            mode="markers",
            marker={"size": 9, "color": colour, "opacity": 0.4, "line": {"width": 0}},
            customdata=[[run, formatting.seconds(value)] for run, value in zip(rows["run_id"], values, strict=True)],
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
                hovertemplate=f"interquartile range {formatting.seconds(lower)} to {formatting.seconds(upper)}"
                "<extra></extra>",
            )
        figure.add_scatter(
            x=[median],
            y=[label],
            mode="markers",
            marker={"symbol": "line-ns", "size": 22, "line": {"width": 3, "color": colour}},
            hovertemplate=f"{label}<br>median {formatting.seconds(median)}<extra></extra>",
        )
        figure.add_scatter(
            x=[float(values.max())],
            y=[label],
            mode="text",
            # Em spaces, as ordinary ones at the start of a line are dropped.
            text=[f"\u2003<b>{formatting.seconds(median)}</b>\u2002{_evidence(rows)}"],
            textfont={"size": 13},
            textposition="middle right",
            cliponaxis=False,
            hoverinfo="skip",
        )
    if baseline in labels:
        middle = float(frame.loc[frame["label"] == baseline, "seconds"].median())
        figure.add_vline(x=middle, line={"dash": "dash", "width": 1.5, "color": formatting.GREY}, layer="below")
    scale = ", log scale" if log else ""
    _finish(figure, f"{title}{scale}, lower is better", height_px=120 + ROW_HEIGHT_PX * len(labels))
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], showgrid=False, title=None)
    figure.update_yaxes(tickfont={"size": 13})
    if log:
        # Room on the right for the direct labels, which are as long as a decade or so is wide.
        left, right = low / 1.6, high * (high / low) ** 0.45 * 1.5
        ticks, texts = time_axis_ticks(left, high * 2)
        figure.update_xaxes(type="log", range=[math.log10(left), math.log10(right)], tickvals=ticks, ticktext=texts)
    else:
        figure.update_xaxes(range=[0, high * 1.5 or 1], ticksuffix=" s", nticks=7)
    return figure


def repeats(frame: pd.DataFrame, colour: str, *, title: str = "Each repeat") -> go.Figure:
    """Every repeat of one run in order, with the median dashed; the first attach is hollow, as it is no repeat.

    Args:
        frame: ``repeat`` (from 0; -1 for the first attach of the process) and ``seconds``.
        colour: of the adapter.
    """
    figure = go.Figure()
    first, rest = frame[frame["repeat"] < 0], frame[frame["repeat"] >= 0].sort_values("repeat")
    names = [str(int(number) + 1) for number in rest["repeat"]]
    for rows, xs, symbol in ((first, ["first"] * len(first), "circle-open"), (rest, names, "circle")):
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
    _finish(figure, f"{title}, seconds, lower is better", height_px=320)
    figure.update_layout(margin={"t": 76, "r": 110})
    figure.update_xaxes(type="category", title="repeat", showgrid=False)
    figure.update_yaxes(rangemode="tozero", range=[0, float(frame["seconds"].max()) * 1.2 or 1], ticksuffix=" s")
    return figure


def tensor_memory(frame: pd.DataFrame, *, title: str = "Live tensors while attaching") -> go.Figure:
    """Live tensor bytes over time, stacked by category, so that the top edge is their total.

    The bare model does not change while an adapter is attached and would dwarf what does: its size is in the title, and
    the stack shows what comes on top of it.

    Args:
        frame: ``time_s``, ``category``, ``bytes``; one line per category and moment.
    """
    figure = go.Figure()
    table = frame.pivot_table(index="time_s", columns="category", values="bytes", aggfunc="max").ffill().fillna(0)
    still = [name for name in table.columns if name in BARE_MODEL and _settles(table[name])]
    if 0 < len(still) < len(table.columns):
        # The tracker first counts the model's tensors one by one; attaching begins when it has them all.
        table = table.loc[max(table[name].idxmax() for name in still) :]
        title = f"{title}, on top of the model's {formatting.size(float(table[still].iloc[0].sum()))}"
        table = table.drop(columns=still)
    unit, unit_bytes = formatting.byte_unit(float(table.sum(axis=1).max()))
    # The steadiest category lies at the bottom, so that what moves is seen moving.
    order = sorted(table.columns, key=lambda name: float(table[name].std(ddof=0) / (table[name].mean() or 1)))
    for position, name in enumerate(order):
        colour = _CATEGORY_COLOURS.get(str(name), formatting.PALETTE[position % len(formatting.PALETTE)])
        figure.add_scatter(
            x=table.index,
            y=table[name] / unit_bytes,
            name=str(name),
            mode="lines",
            line={"width": 0.5, "color": colour, "shape": "hv"},
            fillcolor=colour,
            stackgroup="tensors",
            hovertemplate=f"{name} %{{y:.3~g}} {unit}<extra></extra>",
        )
    _finish(figure, f"{title}, lower is better", height_px=320)
    _legend(figure, hover=True)
    figure.update_xaxes(title="seconds", showgrid=False)
    figure.update_yaxes(rangemode="tozero", ticksuffix=f" {unit}")
    return figure


def _settles(series: pd.Series) -> bool:
    """Whether a category reaches its most and stays there."""
    return bool(series.loc[series.idxmax() :].nunique() == 1)


def process_memory(frame: pd.DataFrame, *, title: str = "Memory of the process") -> go.Figure:
    """The process's memory over the run as seen from outside, one line per kind; hovering tells the phase.

    Args:
        frame: ``time_s``, ``phase``, ``category``, ``bytes``.
    """
    figure = go.Figure()
    unit, unit_bytes = formatting.byte_unit(float(frame["bytes"].max()))
    dashes: Sequence[str] = ("solid", "dash", "dot", "dashdot")
    for position, (name, rows) in enumerate(frame.groupby("category", sort=True)):
        rows = rows.sort_values("time_s")
        figure.add_scatter(
            x=rows["time_s"],
            y=rows["bytes"] / unit_bytes,
            customdata=rows["phase"],
            name=str(name),
            mode="lines+markers" if len(rows) < 3 else "lines",
            line={
                "width": 2,
                "dash": dashes[position % len(dashes)],
                "color": formatting.PALETTE[position % len(formatting.PALETTE)],
            },
            hovertemplate=f"{name} %{{y:.3~g}} {unit} (%{{customdata}})<extra></extra>",
        )
    _finish(figure, f"{title}, {unit}, lower is better", height_px=320)
    _legend(figure, hover=True)
    figure.update_xaxes(title="seconds", showgrid=False)
    figure.update_yaxes(rangemode="tozero", ticksuffix=f" {unit}")
    return figure


def _evidence(rows: pd.DataFrame) -> str:
    return formatting.evidence(len(rows), rows["run_id"].nunique())


def _finish(figure: go.Figure, title: str, *, height_px: int) -> None:
    figure.update_layout(
        title={
            "text": title,
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 14},
            "font": {"size": 15},
        },
        height=height_px,
        margin={"l": 8, "r": 16, "t": 52, "b": 40},
        showlegend=False,
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(zeroline=False, automargin=True)


def _legend(figure: go.Figure, *, hover: bool) -> None:
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        hovermode="x unified" if hover else "closest",
        margin={"t": 76},
    )
