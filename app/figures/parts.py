"""What every chart shares: title, size, legend, safe labels, and axes whose ticks carry units. Draws no data.

Figures hold stored units (seconds, bytes); ticks and labels show them as ``app.formatting`` says. Text and background
colours are left to the theme of the page, so every figure works in light and dark. Plotly reads text as markup: what
came from outside goes through :func:`escape` first.
"""

from __future__ import annotations

import html
import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from app import formatting

ROW_HEIGHT_PX = 46
_CLOSE_ROW_HEIGHT_PX = 28
_ROOMY_ROWS = 12
PANEL_HEIGHT_PX = 320
#: The state of a run whose marker is hollow.
OUT_OF_MEMORY = "out_of_memory"
#: Name of annotations that stand in for a legend.
DIRECT_LABEL = "direct label"


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


def escape(text: object) -> str:
    """Text from outside as Plotly shows it letter by letter: no tag, entity or line break of it acts.

    It belongs in names, texts and ``customdata``, not in a ``hovertemplate``, where ``%{`` acts, too.
    """
    return html.escape(" ".join(str(text).split()), quote=False)


def length(text: str) -> int:
    """How many characters of an escaped text are seen."""
    return len(html.unescape(text))


def wrapped(text: str, width: int = 30, lines: int = 2) -> str:
    """A label on at most ``lines`` lines of ``width`` characters, cut with an ellipsis; escaped before or after alike.

    Args:
        text: a label that was escaped already.
        width: characters on a line.
        lines: how many lines at most.
    """
    rows = textwrap.wrap(html.unescape(text), width, max_lines=lines, placeholder=" …") or [""]
    return "<br>".join(html.escape(row, quote=False) for row in rows)


def wrapped_apart(labels: Sequence[str], width: int = 30, lines: int = 2) -> list[str]:
    """Each label as :func:`wrapped` has it; of those that would read alike what tells them apart comes before the rest.

    Args:
        labels: escaped labels, each of parts joined by ", ".
        width: characters on a line.
        lines: how many lines at most.
    """
    texts = {label: wrapped(label, width, lines) for label in labels}
    times = Counter(texts.values())
    for label in (label for label, text in texts.items() if times[text] > 1):
        of_label = _parts(label)
        others = [parts for parts in map(_parts, texts) if parts != of_label and parts[0] == of_label[0]]
        if own := _enough(of_label, others):
            # After as many of the parts before it as there is room for.
            told = [wrapped(_kept(of_label, [*range(first), *own]), width, lines) for first in range(own[0], 0, -1)]
            texts[label] = next((text for text in told if not text.endswith("…")), told[-1])
    return [texts[label] for label in labels]


def _parts(label: str) -> list[str]:
    return label.split(", ")


def _enough(parts: Sequence[str], others: Sequence[Collection[str]]) -> list[int]:
    """Places of few parts that no other label has together, the first not among them; all that may help if none do.

    In each step the one that fewest of the remaining labels have: not always the fewest, but soon found.
    """
    own = [at for at in range(1, len(parts)) if any(parts[at] not in other for other in others)]
    chosen, left = [], others
    while left:
        best = max(own, key=lambda at: sum(parts[at] not in other for other in left), default=0)
        still = [other for other in left if parts[best] in other]
        if len(still) == len(left):
            return own
        chosen.append(best)
        left = still
    return sorted(chosen)


def _kept(parts: Sequence[str], places: Sequence[int]) -> str:
    """The parts at these places, with an ellipsis where some between them are left out."""
    gaps = (", " if at == before + 1 else " … " for before, at in itertools.pairwise(places))
    return parts[places[0]] + "".join(gap + parts[at] for gap, at in zip(gaps, places[1:], strict=True))


def value_axis(low: float, high: float, unit: str, *, is_log: bool, room: float = 1.08) -> dict[str, Any]:
    """Range and ticks of an axis of measured values, for ``update_xaxes`` or ``update_yaxes``.

    Args:
        low: smallest value; a linear axis starts at 0 unless this is below.
        high: largest value.
        unit: as metrics store it.
        is_log: decades instead of equal steps; both ends must be positive.
        room: how far the axis reaches beyond the largest value.
    """
    if is_log:
        edges = [math.log10(low / 1.35), math.log10(high * 1.35 * room)]
        ticks, texts = log_ticks(10 ** edges[0], 10 ** edges[1], unit)
        return {"type": "log", "range": edges, "tickvals": ticks, "ticktext": texts}
    ticks, texts = linear_ticks(max(high, 0.0) * room, unit)
    bottom = 0.0
    if low < 0:
        bottom = low * room
        below, below_texts = linear_ticks(-bottom, unit)
        ticks = [-value for value in below[:0:-1]] + ticks
        texts = [f"−{text}" for text in below_texts[:0:-1]] + texts
    top = max(high, 0.0) * room
    return {"type": "linear", "range": [bottom, top if top > bottom else 1.0], "tickvals": ticks, "ticktext": texts}


def field_axis(values: Iterable[float], unit: str = "", *, is_log: bool | None = None) -> dict[str, Any]:
    """Range and ticks of an axis of a numeric field (rank, context length, batch size), its real values as ticks.

    Args:
        values: what the field is in the runs shown.
        unit: of the field, empty for plain counts.
        is_log: None lets the axis be logarithmic where the field spans a decade or grows by factors.
    """
    found = sorted({float(value) for value in values if math.isfinite(value)}) or [0.0]
    low, high = found[0], found[-1]
    if is_log is None:
        is_log = _grows_by_factors(found)
    is_log = is_log and low > 0 and len(found) > 1
    if is_log:
        edges = [math.log10(low), math.log10(high)]
        pad = (edges[1] - edges[0]) * 0.07
        edges = [edges[0] - pad, edges[1] + pad]
        ticks, texts = (found, _texts(found, unit)) if len(found) <= 9 else log_ticks(low, high * 1.01, unit)
        return {"type": "log", "range": edges, "tickvals": ticks, "ticktext": texts}
    pad = (high - low) * 0.07 or abs(high) * 0.5 or 1.0
    if len(found) <= 9:
        ticks, texts = found, _texts(found, unit)
    else:
        ticks, texts = linear_ticks(high, unit)
    return {"type": "linear", "range": [low - pad, high + pad], "tickvals": ticks, "ticktext": texts}


def _texts(values: Sequence[float], unit: str) -> list[str]:
    return [formatting.measured(value, unit) if unit else f"{value:.6g}" for value in values]


def _grows_by_factors(values: Sequence[float]) -> bool:
    """Whether sorted values span a decade, or are three or more that at least grow by half each time."""
    if values[0] <= 0:
        return False
    steps = [after / before for before, after in itertools.pairwise(values)]
    return values[-1] / values[0] >= 10 or (len(values) > 2 and min(steps) >= 1.5)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places between 0 and 1, moved as little as needed so that neighbours are ``gap`` apart; order is kept."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [0.0] * len(places)
    below = -math.inf
    for index in order:
        below = moved[index] = max(places[index], below + gap)
    above = math.inf
    for index in reversed(order):
        above = moved[index] = min(moved[index], above - gap, 1.0 if above == math.inf else above)
    return moved


def text_start(end: float, line: float | None, high: float, *, is_log: bool = False) -> float:
    """Where the text of a row starts: at the row's end, or behind an upright line that would cross it.

    Args:
        end: of the row.
        line: the upright line, None without one.
        high: the largest value of the axis.
        is_log: whether the axis is logarithmic.
    """
    reach = end * 2.5 if is_log else end + 0.35 * high
    return line if line is not None and end < line < reach else end


def end_labels(figure: go.Figure, ends: dict[str, tuple[float, str]], *, is_log: bool) -> None:
    """Names right of the plot, each at the height of its line's end as far as names do not overlap.

    Args:
        figure: with its height, margins and the y axis' range set.
        ends: escaped name -> (value at the end, colour of the line).
        is_log: whether the y axis is logarithmic.
    """
    bottom, top = figure.layout.yaxis.range
    margin = figure.layout.margin
    inner_px = figure.layout.height - margin.t - margin.b
    places = [((math.log10(value) if is_log else value) - bottom) / (top - bottom) for value, _ in ends.values()]
    for (name, (_, colour)), place in zip(ends.items(), apart(places, 18 / inner_px), strict=True):
        figure.add_annotation(
            text=f'<span style="color:{colour}">━</span> {name}',
            name=DIRECT_LABEL,
            x=1,
            xref="paper",
            y=place,
            yref="paper",
            xanchor="left",
            yanchor="middle",
            showarrow=False,
            align="left",
            font={"size": 13},
        )
    longest = max(map(length, ends), default=0)
    figure.update_layout(margin={"r": 36 + round(7.4 * longest)})


def rows_px(number: int) -> int:
    """The height of so many rows: many lie closer to each other."""
    return max(number, 1) * (ROW_HEIGHT_PX if number <= _ROOMY_ROWS else _CLOSE_ROW_HEIGHT_PX)


def name_axis(figure: go.Figure, labels: Sequence[str]) -> None:
    """Rows with names on the y axis, the first on top, long names on two lines."""
    figure.update_yaxes(
        type="category",
        # Given, as a row may be cut off where panels share an axis of names.
        range=[-0.5, max(len(labels), 1) - 0.5],
        categoryorder="array",
        categoryarray=list(labels)[::-1],
        tickvals=list(labels),
        ticktext=wrapped_apart(labels) if len(labels) <= _ROOMY_ROWS else wrapped_apart(labels, 58, lines=1),
        tickfont={"size": 13},
        showgrid=False,
        title=None,
    )
