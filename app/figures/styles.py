"""How groups are told apart: one colour per adapter, shades and symbols within it, the baseline dashed."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from app import formatting

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")


@dataclass(frozen=True, slots=True)
class Style:
    """Colour (hex), marker symbol and line dash of one group."""

    colour: str
    symbol: str
    dash: str


def of_groups(frame: pd.DataFrame, colours: Mapping[str, str], baseline: str | None = None) -> dict[str, Style]:
    """The style of each ``group`` of the frame, by its ``adapter``, in order of first appearance.

    Groups of one adapter share its hue: their shades go from dark to light, their symbols differ.

    Args:
        frame: ``group`` and ``adapter``.
        colours: adapter -> hex colour; grey where missing.
        baseline: the group whose line is dashed.
    """
    adapters = frame.drop_duplicates("group").set_index("group")["adapter"]
    found = {}
    for adapter in dict.fromkeys(adapters):
        groups = list(adapters.index[adapters == adapter])
        colour = colours.get(str(adapter), formatting.GREY)
        for place, group in enumerate(groups):
            found[group] = Style(
                _shade(colour, place, len(groups)),
                _SYMBOLS[place % len(_SYMBOLS)],
                "dash" if group == baseline else "solid",
            )
    return {group: found[group] for group in adapters.index}


def _shade(colour: str, place: int, number: int) -> str:
    """The colour itself where it is alone, else one of ``number`` shades around it that stay visible on any page."""
    if number == 1:
        return colour
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    low, high = max(lightness - 0.06, 0.34), min(lightness + 0.3, 0.74)
    shaded = colorsys.hls_to_rgb(hue, low + (high - low) * place / (number - 1), saturation)
    return "#" + "".join(f"{round(part * 255):02x}" for part in shaded)
