"""The metrics of one run, by name and variant, and what a page shows of them: numbers on cards, and charts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app import figures, formatting
from app.widgets import presenting
from db.runs import MetricRow


@dataclass(frozen=True, slots=True)
class Card:
    """One number with what it stands on. ``help`` says more on hovering."""

    label: str
    value: str
    note: str = ""
    help: str | None = None
    is_good: bool = False
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure, its key on the page, and what it shows for those who cannot see it."""

    figure: go.Figure
    key: str
    alt: str
    is_wide: bool = False


class Metrics:
    """One run's metrics. Medians are over the repeats; None where there is no such metric.

    ``predicted`` has what was predicted of the same metrics, by name and variant.
    """

    def __init__(
        self, rows: Iterable[MetricRow], predicted: Mapping[tuple[str, str | None], float] | None = None
    ) -> None:
        self.frame = pd.DataFrame(rows, columns=list(MetricRow._fields))
        self.predicted = predicted or {}

    def rows(self, name: str, variant: str | None = None) -> pd.DataFrame:
        """The lines of one metric of one variant, by repeat."""
        frame = self.frame[self.frame["name"] == name]
        chosen = frame[frame["variant"].isna()] if variant is None else frame[frame["variant"] == variant]
        return chosen.sort_values("repeat")

    def variants(self, name: str) -> list[str | None]:
        """The variants that a metric was taken on, in measured order."""
        found = self.frame[self.frame["name"] == name]["variant"]
        return [variant if isinstance(variant, str) else None for variant in dict.fromkeys(found)]

    def median(self, name: str, variant: str | None = None) -> float | None:
        """The median in the stored unit."""
        values = self.rows(name, variant)["value"]
        return float(values.median()) if len(values) else None

    def text(self, name: str, variant: str | None = None) -> str:
        """The median as text."""
        rows = self.rows(name, variant)
        return (
            formatting.metric_text(name, self.median(name, variant), rows["unit"].iloc[0])
            if len(rows)
            else formatting.DASH
        )

    def evidence(self, name: str, variant: str | None = None) -> str:
        """ "5 repeats", "1 run"."""
        number = len(self.rows(name, variant))
        return "1 run" if number == 1 else formatting.plural(number, "repeat")

    def spread(self, name: str, variant: str | None = None) -> str | None:
        """The interquartile range in one sentence, None for a single value."""
        rows = self.rows(name, variant)
        if len(rows) < 2:
            return None
        low, high = (float(rows["value"].quantile(share)) for share in (0.25, 0.75))
        unit = rows["unit"].iloc[0]
        return (
            f"Median; interquartile range {formatting.metric_text(name, low, unit)} to "
            f"{formatting.metric_text(name, high, unit)}."
        )


def cards(numbers: Sequence[Card]) -> None:
    """A row of numbers, each with what it stands on."""
    has_notes = any(number.note for number in numbers)
    with st.grid(max(len(numbers), 1), min_column_width=150):
        for number in numbers:
            st.metric(
                number.label,
                number.value,
                delta=(number.note or "\u2003") if has_notes else None,
                delta_arrow="off",
                delta_color="green" if number.is_good else "red" if number.is_bad else "off",
                border=True,
                height="stretch",
                help=number.help,
            )


def draw(charts: Sequence[Chart], *, columns: int = 1) -> None:
    """Charts below each other, or as many beside each other as the page has room for.

    Wide ones, and one that would be alone in its row, take the whole width.
    """
    for is_wide, group in itertools.groupby(charts, key=lambda chart: chart.is_wide or columns == 1):
        row = list(group)
        paired = 0 if is_wide else len(row) - len(row) % columns
        if paired:
            with st.grid(columns, min_column_width=440):
                for chart in row[:paired]:
                    _draw_one(chart)
        for chart in row[paired:]:
            _draw_one(chart)


def _draw_one(chart: Chart) -> None:
    figure = figures.present(chart.figure) if presenting.is_on() else chart.figure
    st.plotly_chart(figure, key=chart.key, alt=chart.alt, config={"displaylogo": False})
