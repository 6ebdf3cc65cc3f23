"""Init on the pages: seconds to attach, extra memory while attaching."""

from __future__ import annotations

import pandas as pd

from app import figures, formatting
from app.kinds import comparing, tables
from app.widgets import labels
from app.widgets.metrics import Card, Chart, Metrics
from db.runs import RunDetail, RunRow

QUESTION = "How long attaching an adapter takes, and how much memory it needs."
COLUMNS = {"init_s": "init_time_s", "peak_extra_bytes": "init_peak_extra_bytes"}
NAMES = tuple(COLUMNS.values())
# The column that says most, with the word before its value where kinds are listed together.
HEADLINE = ("init_s", "Attach")
COMPARED = "init_time_s"


def main_variant(row: RunRow) -> str | None:
    """Init measures the spec's own strategy only."""
    return None


def key_numbers(run: RunDetail, metrics: Metrics) -> list[Card]:
    """Median, spread and count of the init time, then what it cost."""
    found = []
    rows = metrics.rows("init_time_s")
    if len(rows):
        low, high = (float(rows["value"].quantile(share)) for share in (0.25, 0.75))
        spread = formatting.seconds(high - low) if len(rows) > 1 else formatting.DASH
        found.append(Card("Init time", metrics.text("init_time_s"), help="Median of the repeats."))
        found.append(
            Card(
                "Interquartile range",
                spread,
                help=f"From {formatting.seconds(low)} to {formatting.seconds(high)}.",
            )
        )
        found.append(Card("Repeats", "1 run" if len(rows) == 1 else str(len(rows))))
    for name in ("init_peak_extra_bytes", "adapter_parameters", "adapted_modules"):
        if metrics.median(name) is not None:
            found.append(Card(formatting.metric_title(name), metrics.text(name)))
    return found


def charts(run: RunDetail, metrics: Metrics, samples: pd.DataFrame) -> list[Chart]:
    """Repeats, and live tensors over time."""
    times = metrics.rows("init_time_s")[["repeat", "value"]].rename(columns={"value": "seconds"})
    first = metrics.median("first_attach_time_s")
    if first is not None:
        times = pd.concat([pd.DataFrame({"repeat": [-1], "seconds": [first]}), times])
    drawn = []
    if len(times):
        figure = figures.repeats(times, labels.adapter_colour(run.adapter), title="Each attach")
        drawn.append(Chart(figure, "repeats_chart", "Seconds of each repeat"))
    tensors = samples[samples["source"] == "tensors"]
    if len(tensors):
        figure = figures.tensor_memory(tensors, title="Live tensors while attaching")
        drawn.append(Chart(figure, "tensor_chart", "Live tensor bytes over time by category"))
    return drawn


def comparison(frame: pd.DataFrame, *, baseline: str | None = None) -> list[Chart]:
    """Seconds to attach, a row per label."""
    rows = tables.of(frame, COMPARED)
    if rows.empty:
        return []
    figure = figures.spread(
        rows, labels.adapter_colours(), title="Seconds to attach the adapter", unit="s", baseline=baseline
    )
    alt = "Seconds to attach the adapter by adapter and strategy, lower is better; the table below has the numbers"
    return [Chart(figure, "init_chart", alt)]


def compare_charts(
    frame: pd.DataFrame, fields: pd.DataFrame, *, baseline: str | None = None, facet: str | None = None
) -> list[Chart]:
    """Seconds to attach and extra memory: in rows by adapter and strategy, or along rank where that varies.

    Args:
        frame: one line per value (see :mod:`app.kinds.comparing`).
        fields: one line per run.
        baseline: group that is drawn dashed.
        facet: field that has a panel per value.
    """
    return [
        chart
        for name, title in (
            (COMPARED, "Seconds to attach the adapter"),
            (COLUMNS["peak_extra_bytes"], "Peak extra memory while attaching"),
        )
        for chart in comparing.metric_chart(
            frame,
            fields,
            name,
            title=title,
            key=f"compare_{name}",
            along=("adapter.rank",),
            baseline=baseline,
            facet=facet,
        )
    ]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per row of the chart: median, quartiles, count, times LoRA, peak extra memory, in stored units."""
    times = tables.of(frame, COMPARED)
    lora = times[(times["adapter"] == "LoRA") & (times["strategy"] == "stock")]["value"].median()
    table = tables.medians(times, "s")
    table["times_lora"] = table["median_s"] / lora if lora > 0 else None
    peaks = tables.of(frame, COLUMNS["peak_extra_bytes"]).groupby("label")["value"].max()
    table["peak_extra_bytes"] = table["variant"].map(peaks)
    return table


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as people read it."""
    return pd.DataFrame(
        {
            "Adapter and strategy": summary["variant"],
            "Median": tables.texts(summary["median_s"], "s"),
            "Interquartile range": tables.ranges(summary, "s", "s"),
            "Measured": tables.evidence(summary),
            "Times LoRA": tables.texts(summary["times_lora"], "ratio"),
            "Peak extra memory": tables.texts(summary["peak_extra_bytes"], "bytes"),
        }
    )
