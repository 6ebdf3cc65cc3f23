"""Larger type for a projector. Changes how a figure looks, nothing of what it says."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

_TYPE = 1.45
_HEIGHT = 1.3
_PLAIN_SIZE_PX = 12


def present(figure: go.Figure) -> go.Figure:
    """A copy with larger type, markers and lines, and the room that they need."""
    document = figure.to_plotly_json()
    larger = go.Figure(_larger(document))
    layout = larger.layout
    larger.update_layout(
        font={"size": round((figure.layout.font.size or _PLAIN_SIZE_PX) * _TYPE)},
        height=round(figure.layout.height * _HEIGHT) if figure.layout.height else None,
        margin={
            side: round(size * _TYPE) for side in ("l", "r", "t", "b") if (size := layout.margin[side]) is not None
        },
    )
    # The page's theme sets these by itself where a figure does not.
    plain = round(_PLAIN_SIZE_PX * _TYPE)
    for axis in [*larger.select_xaxes(), *larger.select_yaxes()]:
        axis.tickfont.size = axis.tickfont.size or plain
        axis.title.font.size = axis.title.font.size or plain
    larger.update_layout(legend={"font": {"size": plain}})
    return larger


def _larger(part: Any, inside: str = "") -> Any:
    """Every size of type, marker and line inside, larger."""
    if isinstance(part, dict):
        return {key: _scaled(key, value, inside) for key, value in part.items() if key != "template"}
    if isinstance(part, list | tuple):
        return [_larger(item, inside) for item in part]
    return part


def _scaled(key: str, value: Any, inside: str) -> Any:
    is_size = key == "size" and (inside.endswith("font") or inside == "marker")
    if (is_size or (key == "width" and inside == "line")) and isinstance(value, int | float):
        return value * _TYPE
    if key in ("xshift", "yshift") and isinstance(value, int | float):
        return value * _TYPE
    return _larger(value, key)
