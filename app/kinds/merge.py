"""Merge on the pages: extra memory in multiples of the largest adapted weight W, time, error and drift."""

from __future__ import annotations

import dataclasses
import functools

import pandas as pd

from app import figures, formatting
from app.kinds import comparing, tables
from app.widgets import labels
from app.widgets.metrics import Card, Chart, Metrics
from db.runs import RunDetail, RunRow

QUESTION = "What merging an adapter into its base weights takes in time and memory, and what it does to the weights."
COLUMNS = {"merge_s": "merge_time_s", "peak_extra_bytes": "merge_peak_extra_bytes"}
# The column that says most, with the word before its value where kinds are listed together.
HEADLINE = ("merge_s", "Merge")
COMPARED = "merge_peak_extra_bytes"
_ERRORS = ("relative_weight_error", "relative_logit_error")
NAMES = (*COLUMNS.values(), "merge_retained_extra_bytes", "largest_weight_bytes", *_ERRORS)


def main_variant(row: RunRow) -> str | None:
    """Merge measures the spec's own strategy only."""
    return None


def in_weights(value: float | None, weight_bytes: float | None) -> str:
    """Bytes as multiples of the largest adapted weight W; empty where either is not known."""
    return "" if value is None or not weight_bytes else formatting.weights(value / weight_bytes)


def key_numbers(run: RunDetail, metrics: Metrics) -> list[Card]:
    """Time, peak and retained memory in bytes and in W, errors."""
    found = []
    weight = metrics.median("largest_weight_bytes")
    if metrics.median("merge_time_s") is not None:
        found.append(
            Card(
                "Merge time",
                metrics.text("merge_time_s"),
                metrics.evidence("merge_time_s"),
                metrics.spread("merge_time_s"),
            )
        )
    for name, label in (
        ("merge_peak_extra_bytes", "Peak extra memory"),
        ("merge_retained_extra_bytes", "Retained afterwards"),
    ):
        value = metrics.median(name)
        if value is not None:
            text = f"W is the largest adapted weight, {formatting.size(weight)}." if weight else None
            found.append(Card(label, formatting.size(value), in_weights(value, weight), text))
    for name in _ERRORS:
        if metrics.median(name) is not None:
            found.append(
                Card(
                    formatting.metric_title(name),
                    metrics.text(name),
                    "of the adapter's effect",
                    "Against the same merge in float64.",
                )
            )
    return found


def charts(run: RunDetail, metrics: Metrics, samples: pd.DataFrame) -> list[Chart]:
    """Merge and unmerge times, live tensors over time, drift over rounds."""
    drawn = []
    colours = labels.adapter_colours()
    times = pd.concat(
        [metrics.rows(name).assign(label=formatting.metric_title(name)) for name in ("merge_time_s", "unmerge_time_s")]
    )
    if len(times):
        times = times.assign(adapter=run.adapter or "", run_id=run.id)
        figure = figures.spread(times, colours, title="Seconds to merge and to unmerge")
        drawn.append(Chart(figure, "repeats_chart", "Seconds of each merge and unmerge"))
    rounds = metrics.rows("merge_drift").dropna(subset="x")
    if len(rounds):
        rounds = rounds.assign(round=rounds["x"], series=run.adapter)
        figure = figures.drift(rounds, colours, title="Drift over merge and unmerge rounds")
        drawn.append(
            Chart(
                figure,
                "drift_chart",
                "How far the weights are from the start after each round of merging and unmerging",
            )
        )
    tensors = samples[samples["source"] == "tensors"]
    if len(tensors):
        figure = figures.tensor_memory(tensors, title="Live tensors while merging")
        drawn.append(Chart(figure, "tensor_chart", "Live tensor bytes over time by category"))
    return drawn


def compare_charts(
    frame: pd.DataFrame, fields: pd.DataFrame, *, baseline: str | None = None, facet: str | None = None
) -> list[Chart]:
    """Peak extra memory in bytes and in W beside each other, and seconds; along rank where that varies.

    Args:
        frame: one line per value (see :mod:`app.kinds.comparing`).
        fields: one line per run.
        baseline: group that is drawn dashed.
        facet: field that has a panel per value.
    """
    facet = comparing.known(fields, facet)
    by_metric = functools.partial(
        comparing.metric_chart, frame, fields, along=("adapter.rank",), baseline=baseline, facet=facet
    )
    peaks = by_metric(COMPARED, title="Peak extra memory of a merge", key="compare_merge_peak")
    is_in_bytes = frame.loc[frame["name"] == COMPARED, "unit"].eq("bytes").all()
    is_in_rows = facet is None and not comparing.varying(fields, ("adapter.rank",))
    # Only the chart of one metric has a marker for what ran out of memory.
    has_all = not fields["state"].eq(comparing.OUT_OF_MEMORY).any()
    if peaks and is_in_bytes and is_in_rows and has_all:
        title, table = comparing.first_rows("Peak extra memory of a merge", _peaks_by_group(frame), facet)
        figure = figures.merge_peak(table, labels.adapter_colours(), title=title, baseline=baseline)
        peaks = [dataclasses.replace(peaks[0], figure=figure)]
    return peaks + by_metric("merge_time_s", title="Seconds to merge", key="compare_merge_time")


def _peaks_by_group(frame: pd.DataFrame) -> pd.DataFrame:
    """One line per group: medians of the peak, of what is kept, and of W, in bytes."""
    found = {
        column: tables.of(frame, name).groupby("group", sort=False)["value"].median()
        for column, name in (
            ("peak_bytes", COMPARED),
            ("retained_bytes", "merge_retained_extra_bytes"),
            ("weight_bytes", "largest_weight_bytes"),
        )
    }
    adapters = frame.drop_duplicates("group").set_index("group")["adapter"]
    return pd.DataFrame({"adapter": adapters, **found}).loc[adapters.index].reset_index(names="group")
