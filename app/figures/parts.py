"""What every chart shares: title, size, legend, and axes whose ticks carry units. Draws no data.

Figures hold stored units (seconds, bytes); ticks and labels show them as ``app.formatting`` says. Text and background
colours are left to the theme of the page, so every figure works in light and dark.
"""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from app import formatting

ROW_HEIGHT_PX = 46
PANEL_HEIGHT_PX = 320


def finish(figure: go.Figure, title: str, *, height_px: int) -> None:
    """Title on the left, no legend, narrow margins."""
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


def legend(figure: go.Figure, *, hover: bool) -> None:
    """A legend below the plot, where it may take several lines without reaching the title."""
    figure.update_layout(
        showlegend=True,
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "xref": "container",
            "x": 0,
            "xanchor": "left",
            "traceorder": "normal",
        },
        hovermode="x unified" if hover else "closest",
        margin={"b": 70},
    )


def text_on(colour: str) -> str:
    """The colour of text that reads well on a filled part: white or near black."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "#1c2733"


def direction(better: formatting.Better | None) -> str:
    """The end of a title: ", lower is better"."""
    return f", {better} is better" if better else ""


def scale(unit: str, high: float) -> tuple[str, float]:
    """The unit in which values up to ``high`` read best on an axis, and how many stored units it is."""
    if unit == "s":
        return ("ms", 1e-3) if high < 0.9995 else ("s", 1.0)
    if unit == "bytes":
        return formatting.byte_unit(high)
    return {"ratio": "×", "W": "W"}.get(unit, ""), 1.0


def linear_ticks(high: float, unit: str, number: int = 6) -> tuple[list[float], list[str]]:
    """At most ``number`` ticks from 0 to ``high`` at round numbers of the unit that reads best, in stored units."""
    name, size = scale(unit, high)
    top = high / size
    if not top > 0:
        return [0.0], ["0"]
    power = 10.0 ** math.floor(math.log10(top / number))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if top / (power * factor) <= number - 1)
    positions = [index * step for index in range(int(top / step + 1e-9) + 1)]
    gap = "" if name == "×" else " "
    return [value * size for value in positions], [f"{value:.6g}{gap}{name}".strip() for value in positions]


def time_axis_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Tick positions 1-2-5 (or powers of ten over three decades) and their texts for a logarithmic axis in seconds."""
    values = _log_positions(low, high)
    texts = [f"{value * 1000:g} ms" if value < 1 else f"{value:g} s" for value in values]
    return values, texts


def log_ticks(low: float, high: float, unit: str) -> tuple[list[float], list[str]]:
    """Ticks of a logarithmic axis in any unit."""
    if unit == "s":
        return time_axis_ticks(low, high)
    if unit == "bytes":
        values = [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
        values = values[:: max(1, len(values) // 6)]
        return values, [formatting.size(value) for value in values]
    values = _log_positions(low, high)
    gap = "" if unit == "ratio" else " "
    return values, [f"{value:g}{gap}{scale(unit, high)[0]}".strip() for value in values]


def _log_positions(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) <= 2.2 else (1,)
    values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [value for value in values if low <= value <= high]


def needs_log_axis(values: pd.Series) -> bool:
    """Whether positive values spread over more than one decade, so that a linear axis would hide the small ones."""
    positive = values[values > 0]
    return len(positive) > 0 and len(positive) == len(values) and float(positive.max() / positive.min()) > 10
