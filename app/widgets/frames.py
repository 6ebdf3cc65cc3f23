"""Stored rows as DataFrames for charts and tables. Values stay in stored units (seconds, bytes). Draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from app.widgets import labels
from db.runs import MetricValue, RunRow
from engine.cases import DISTURBED_SHARE

_COLUMNS = [
    "run_id",
    "label",
    "adapter",
    "strategy",
    "failed_checks",
    "name",
    "unit",
    "variant",
    "x",
    "repeat",
    "value",
]


def metric_frame(
    values: Iterable[MetricValue], runs: Mapping[int, RunRow], label: Callable[[RunRow], str]
) -> pd.DataFrame:
    """One line per metric of the runs given, with the label of its run."""
    names = {run_id: label(row) for run_id, row in runs.items()}
    rows = [
        (
            value.run_id,
            names[value.run_id],
            runs[value.run_id].adapter or "",
            runs[value.run_id].strategy or "",
            runs[value.run_id].failed_checks or 0,
            value.name,
            value.unit,
            value.variant,
            value.x,
            value.repeat,
            value.value,
        )
        for value in values
        if value.run_id in runs
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def way_label(row: RunRow) -> str:
    """What is compared: adapter and strategy. Runs with a failed check are rows of their own, as they prove nothing."""
    return labels.variant_label(row) + (", check failed" if row.failed_checks else "")


def in_order(frame: pd.DataFrame, compared: str) -> pd.DataFrame:
    """The frame with its labels in the order in which they read as a comparison.

    Runs without an adapter come first, then LoRA, then each adapter with stock before its other strategies; among
    those the larger median of the metric ``compared`` comes first.
    """
    if frame.empty:
        return frame
    known = ["", labels.FULL, *labels.adapter_colours()]
    rank = {name: known.index(name) if name in known else len(known) for name in frame["adapter"].unique()}
    medians = frame[frame["name"] == compared].groupby("label")["value"].median()
    keys = pd.DataFrame(
        {
            "adapter_rank": frame["adapter"].map(rank),
            "adapter": frame["adapter"],
            "is_other": frame["strategy"] != "stock",
            "median": frame["label"].map(medians),
        }
    )
    order = keys.sort_values(
        ["adapter_rank", "adapter", "is_other", "median"], ascending=[True, True, True, False], kind="stable"
    )
    return frame.loc[order.index].reset_index(drop=True)


def problem_sentence(row: RunRow) -> str | None:
    """Why a run is not a plain success, as one sentence; None where there is nothing to say."""
    if row.error_text:
        return row.error_text
    if row.failed_checks:
        return f"{row.failed_checks} of its checks did not pass"
    if row.background_cpu_share is not None and row.background_cpu_share > DISTURBED_SHARE:
        return f"Disturbed: other processes used {row.background_cpu_share * 100:.0f} % of the CPU meanwhile"
    return None
