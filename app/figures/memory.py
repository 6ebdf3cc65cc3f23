"""Charts of memory and time over parts: live tensors and process over a run, and stacked rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from app import formatting
from app.figures import parts

# Categories of tensors that were there before the adapter.
BARE_MODEL = ("base parameters", "buffers")
# What memory is for, in the order in which it is stacked; the same colours on every page.
CATEGORY_COLOURS = {
    "parameters": formatting.GREY,
    "base parameters": formatting.GREY,
    "buffers": "#b9c0c7",
    "adapter parameters": "#0072B2",
    "gradients": "#009E73",
    "optimizer state": "#CC79A7",
    "activations": "#56B4E9",
    "cache": "#009E73",
    "tokens": "#D55E00",
    "temporary": "#E69F00",
    # What a device counts and no tensor is: its allocator, libraries and driver.
    "beside tensors": "#F0E442",
}
UNATTRIBUTED = "unattributed"
STEP_COLOURS = {"forward": "#0072B2", "backward": "#56B4E9", "optimizer": "#CC79A7"}


def tensor_memory(frame: pd.DataFrame, *, title: str, on_top: bool = True) -> go.Figure:
    """Live tensor bytes over time, stacked by category, so that the top edge is their total.

    With ``on_top`` the bare model, which does not change while an adapter is attached or merged and would dwarf what
    does, is in the title, and the stack shows what comes on top of it.

    Args:
        frame: ``time_s``, ``category``, ``bytes``; one line per category and moment.
        title: what happened meanwhile; unit and direction are added.
        on_top: leave the bare model out where it does not change.
    """
    figure = go.Figure()
    table = frame.pivot_table(index="time_s", columns="category", values="bytes", aggfunc="max").ffill().fillna(0)
    if on_top:
        table, model_bytes = _on_top_of_the_model(table)
        title = f"{title}, on top of the model's {formatting.size(model_bytes)}" if model_bytes else title
    high = float(table.sum(axis=1).max())
    # The steadiest category lies at the bottom, so that what moves is seen moving.
    order = sorted(table.columns, key=lambda name: float(table[name].std(ddof=0) / (table[name].mean() or 1)))
    for position, name in enumerate(order):
        colour = CATEGORY_COLOURS.get(str(name), formatting.PALETTE[position % len(formatting.PALETTE)])
        figure.add_scatter(
            x=table.index,
            y=table[name],
            customdata=[formatting.size(value) for value in table[name]],
            name=str(name),
            mode="lines",
            line={"width": 0.5, "color": colour, "shape": "hv"},
            fillcolor=colour,
            stackgroup="tensors",
            hovertemplate=f"{name} %{{customdata}}<extra></extra>",
        )
    parts.finish(figure, f"{title}, lower is better", height_px=parts.PANEL_HEIGHT_PX)
    _over_time(figure, high)
    return figure


def _on_top_of_the_model(table: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """What comes on top of the bare model from the moment on at which all of it was counted, and the model's bytes.

    The tracker first counts the model's tensors one by one. A weight that is replaced is there twice for a moment:
    that moment's extra stays in the table. Where the model shrinks, nothing is taken away, and its size is given as 0.
    """
    bare = [name for name in table.columns if name in BARE_MODEL]
    if not bare or len(bare) == len(table.columns):
        return table, 0.0
    if all(_settles(table[name]) for name in bare):
        start = max(table[name].idxmax() for name in bare)
    elif "temporary" in table and (table["temporary"] > 0).any():
        start = table.index[max(int((table["temporary"] > 0).to_numpy().argmax()) - 1, 0)]
    else:
        return table, 0.0
    later = table.loc[start:]
    extra = later[bare] - later[bare].iloc[0]
    if (extra < 0).any(axis=None):
        return table, 0.0
    return later.drop(columns=bare).join(extra.loc[:, (extra > 0).any()]), float(later[bare].iloc[0].sum())


def _settles(series: pd.Series) -> bool:
    """Whether a category reaches its most and stays there."""
    return bool(series.loc[series.idxmax() :].nunique() == 1)


def process_memory(frame: pd.DataFrame, *, title: str = "Memory of the process") -> go.Figure:
    """The process's memory over the run as seen from outside, one line per kind; hovering tells the phase.

    Args:
        frame: ``time_s``, ``phase``, ``category``, ``bytes``.
        title: direction is added.
    """
    figure = go.Figure()
    dashes: Sequence[str] = ("solid", "dash", "dot", "dashdot")
    for position, (name, rows) in enumerate(frame.groupby("category", sort=True)):
        rows = rows.sort_values("time_s")
        figure.add_scatter(
            x=rows["time_s"],
            y=rows["bytes"],
            customdata=[
                [phase, formatting.size(value)] for phase, value in zip(rows["phase"], rows["bytes"], strict=True)
            ],
            name=str(name),
            mode="lines+markers" if len(rows) < 3 else "lines",
            line={
                "width": 2,
                "dash": dashes[position % len(dashes)],
                "color": formatting.PALETTE[position % len(formatting.PALETTE)],
            },
            hovertemplate=f"{name} %{{customdata[1]}} (%{{customdata[0]}})<extra></extra>",
        )
    high = float(frame["bytes"].max())
    parts.finish(figure, f"{title}, lower is better", height_px=parts.PANEL_HEIGHT_PX)
    _over_time(figure, high)
    return figure


def _over_time(figure: go.Figure, high: float) -> None:
    """Seconds along, bytes up from zero."""
    parts.legend(figure, hover=True)
    ticks, texts = parts.linear_ticks(high * 1.05, "bytes")
    figure.update_xaxes(title="seconds", showgrid=False)
    figure.update_yaxes(range=[0, high * 1.08 or 1], tickvals=ticks, ticktext=texts)


def stacked(
    frame: pd.DataFrame,
    colours: Mapping[str, str],
    *,
    title: str,
    unit: str,
    better: formatting.Better | None = "lower",
    limit: tuple[str, float] | None = None,
) -> go.Figure:
    """One row per label, stacked by part, with the total at its end.

    Args:
        frame: ``label`` (row, in order of first appearance), ``part``, ``value`` in ``unit``; an optional ``note`` of a
            row follows its total.
        colours: part -> colour, in the order in which parts are stacked; other parts follow in grey.
        title: metric; the direction is added.
        unit: of ``value``, as metrics store it.
        better: which way the total is better.
        limit: name and value of what the totals must stay under, drawn as a line where it is near enough to be seen.
    """
    figure = go.Figure()
    frame = frame.assign(label=frame["label"].map(parts.escape))
    labels = list(dict.fromkeys(frame["label"]))
    known = [name for name in colours if (frame["part"] == name).any()]
    for part in [*known, *(name for name in dict.fromkeys(frame["part"]) if name not in colours)]:
        rows = frame[frame["part"] == part].groupby("label", sort=False)["value"].sum()
        texts = [formatting.measured(float(value), unit) for value in rows]
        figure.add_bar(
            x=rows,
            y=list(rows.index),
            name=part,
            orientation="h",
            marker=filling(part, colours.get(part, formatting.GREY)),
            text=texts if part != UNATTRIBUTED else None,
            insidetextfont={"color": parts.text_on(colours.get(part, formatting.GREY))},
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            customdata=texts,
            hovertemplate=f"%{{y}}<br>{part} %{{customdata}}<extra></extra>",
        )
    totals = frame.groupby("label", sort=False)["value"].sum()
    high = float(totals.max())
    notes = frame.groupby("label", sort=False)["note"].first().to_dict() if "note" in frame else {}
    near = limit is not None and limit[1] < high * 3
    figure.add_scatter(
        x=[parts.text_start(float(end), limit[1] if near and limit else None, high) for end in totals],
        y=list(totals.index),
        mode="text",
        text=[
            f"\u2002<b>{formatting.measured(float(value), unit)}</b>\u2002{notes.get(label) or ''}"
            if value or not notes.get(label)
            else f"\u2002{notes[label]}"
            for label, value in totals.items()
        ],
        textfont={"size": 13},
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    parts.finish(figure, f"{title}{parts.direction(better)}", height_px=150 + parts.rows_px(len(labels)))
    parts.legend(figure, hover=False)
    figure.update_layout(barmode="stack", bargap=0.35, uniformtext={"minsize": 11, "mode": "hide"})
    parts.name_axis(figure, labels)
    top = max(high * 1.4, limit[1] * 1.3) if near and limit else high * 1.4
    ticks, texts = parts.linear_ticks(max(high, top / 1.3) * 1.02, unit)
    figure.update_xaxes(range=[0, top or 1], tickvals=ticks, ticktext=texts)
    if near and limit:
        figure.add_vline(
            x=limit[1],
            line={"width": 1.5, "color": "#D55E00"},
            annotation={"text": parts.escape(limit[0]), "font": {"size": 12}},
            annotation_position="bottom left",
        )
    return figure


def filling(part: str, colour: str) -> dict[str, object]:
    """The fill of one part of a stack: plain colour; what no category explains is hatched."""
    if part != UNATTRIBUTED:
        return {"color": colour, "line": {"width": 0}}
    hatch = {"shape": "/", "fgcolor": formatting.GREY, "bgcolor": "rgba(0,0,0,0)", "size": 7, "solidity": 0.25}
    return {"pattern": hatch, "color": formatting.GREY, "line": {"width": 1, "color": formatting.GREY}}


def hatching(part: str, colour: str) -> dict[str, object]:
    """The fill of one part of a stack that is predicted: stripes of its colour in an outline."""
    if part == UNATTRIBUTED:
        return filling(part, colour)
    stripes = {"shape": "/", "fgcolor": colour, "bgcolor": "rgba(0,0,0,0)", "size": 5, "solidity": 0.55}
    return {"pattern": stripes, "color": colour, "line": {"width": 1, "color": colour}}


def drift(frame: pd.DataFrame, colours: Mapping[str, str], *, title: str) -> go.Figure:
    """How an error grows over rounds, one line per series.

    Args:
        frame: ``round``, ``series``, ``value`` (a share of the adapter's effect).
        colours: series -> colour; grey where missing.
        title: what drifts; the direction is added.
    """
    figure = go.Figure()
    for name, rows in frame.groupby("series", sort=False):
        rows = rows.sort_values("round")
        figure.add_scatter(
            x=rows["round"],
            y=rows["value"] * 100,
            name=str(name),
            mode="lines+markers",
            line={"width": 2, "color": colours.get(str(name), formatting.GREY)},
            customdata=[formatting.percent(value) for value in rows["value"]],
            hovertemplate=f"{name}, round %{{x}}: %{{customdata}}<extra></extra>",
        )
    parts.finish(figure, f"{title}, % of the adapter's effect, lower is better", height_px=parts.PANEL_HEIGHT_PX)
    if frame["series"].nunique() > 1:
        parts.legend(figure, hover=False)
    figure.update_xaxes(title="round", showgrid=False, dtick=1 if frame["round"].max() <= 20 else None)
    high = float(frame["value"].max()) * 100
    figure.update_yaxes(range=[0, high * 1.15 or 1], ticksuffix=" %", exponentformat="none")
    return figure
