"""Stored rows as DataFrames for charts and tables. Values stay in stored units (seconds, bytes). Draws nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from app.widgets import labels
from db.runs import MetricValue, RunRow

INIT_TIME = "init_time_s"
PEAK_EXTRA = "init_peak_extra_bytes"
# Runs disturbed beyond this share of the CPU are marked.
DISTURBED_SHARE = 0.1
CHART_METRICS = (INIT_TIME, PEAK_EXTRA)


def init_frame(values: Iterable[MetricValue], runs: Mapping[int, RunRow]) -> pd.DataFrame:
    """One line per measured repeat of the runs given: ``label adapter strategy seconds run_id failed_checks``.

    Runs with a failed check are rows of their own, as their times prove nothing. LoRA comes
    first, then each adapter with stock before its faster strategies, so that rows read as a comparison.
    """
    rows = [
        {
            "label": labels.variant_label(value.kind, value.adapter, value.strategy)
            + (", check failed" if value.failed_checks else ""),
            "adapter": value.adapter or "",
            "strategy": value.strategy or "",
            "seconds": value.value,
            "run_id": value.run_id,
            "failed_checks": value.failed_checks or 0,
        }
        for value in values
        if value.name == INIT_TIME and value.variant is None and value.run_id in runs
    ]
    frame = pd.DataFrame(rows, columns=["label", "adapter", "strategy", "seconds", "run_id", "failed_checks"])
    if frame.empty:
        return frame
    known = list(labels.adapter_colours())
    rank = {name: known.index(name) if name in known else len(known) for name in frame["adapter"].unique()}
    medians = frame.groupby("label")["seconds"].median()
    keys = pd.DataFrame(
        {
            "adapter_rank": frame["adapter"].map(rank),
            "adapter": frame["adapter"],
            "is_faster": frame["strategy"] != "stock",
            "median": frame["label"].map(medians),
        }
    )
    order = keys.sort_values(["adapter_rank", "adapter", "is_faster", "median"], ascending=[True, True, True, False])
    return frame.loc[order.index].reset_index(drop=True)


def summary(frame: pd.DataFrame, peaks_bytes: Mapping[int, float]) -> pd.DataFrame:
    """The table below the chart: one line per variant with median, quartiles, count and peak extra memory.

    Args:
        frame: of :func:`init_frame`.
        peaks_bytes: peak extra memory by run id, in bytes.
    """
    lora = frame[(frame["adapter"] == "LoRA") & (frame["strategy"] == "stock")]["seconds"].median()
    lines = []
    for label, rows in frame.groupby("label", sort=False):
        seconds = rows["seconds"]
        peaks = [peaks_bytes[run] for run in rows["run_id"].unique() if run in peaks_bytes]
        lines.append(
            {
                "variant": label,
                "median_s": float(seconds.median()),
                "lower_quartile_s": float(seconds.quantile(0.25)) if len(seconds) > 1 else None,
                "upper_quartile_s": float(seconds.quantile(0.75)) if len(seconds) > 1 else None,
                "repeats": len(seconds),
                "runs": int(rows["run_id"].nunique()),
                "times_lora": float(seconds.median() / lora) if lora > 0 else None,
                "failed_checks": int(rows["failed_checks"].max()),
                "peak_extra_bytes": max(peaks) if peaks else None,
            }
        )
    return pd.DataFrame(lines)


def medians(values: Iterable[MetricValue]) -> dict[tuple[int, str], float]:
    """Median of each metric of each run, by (run id, metric name); variants such as a stage's time are left out."""
    frame = pd.DataFrame(
        [(value.run_id, value.name, value.value) for value in values if value.variant is None],
        columns=["run_id", "name", "value"],
    )
    if frame.empty:
        return {}
    grouped = frame.groupby(["run_id", "name"])["value"].median()
    return {(int(run_id), str(name)): float(value) for (run_id, name), value in grouped.items()}


def runs_frame(rows: Sequence[RunRow], values: Mapping[tuple[int, str], float]) -> pd.DataFrame:
    """The table of runs: one line per run, times in seconds, memory in bytes, moments in epoch seconds."""
    return pd.DataFrame(
        [
            {
                "id": row.id,
                "state": row.state,
                "name": row.name or (f"Inspect {labels.model_label(row.model)}" if row.kind == "inspect" else None),
                "model": labels.model_label(row.model),
                "adapter": row.adapter,
                "strategy": row.strategy,
                "targets": labels.targets_label(row.spec) if row.kind != "inspect" else None,
                "dtype": row.dtype,
                "device": row.device,
                "init_s": values.get((row.id, INIT_TIME)),
                "peak_extra_bytes": values.get((row.id, PEAK_EXTRA)),
                "when": row.finished_at or row.started_at or row.created_at,
                "problem": problem_sentence(row),
                "tags": list(row.tags),
            }
            for row in rows
        ]
    )


def problem_sentence(row: RunRow) -> str | None:
    """Why a run is not a plain success, as one sentence; None where there is nothing to say."""
    if row.error_text:
        return row.error_text
    if row.failed_checks:
        return f"{row.failed_checks} of its checks did not pass"
    if row.background_cpu_share is not None and row.background_cpu_share > DISTURBED_SHARE:
        return f"Disturbed: other processes used {row.background_cpu_share * 100:.0f} % of the CPU meanwhile"
    return None


def run_frame(values: Iterable[MetricValue], runs: Mapping[int, RunRow]) -> pd.DataFrame:
    """Like :func:`init_frame` with one row of the chart per run, for comparing runs that someone selected."""
    rows = [
        {
            "label": f"{value.run_id}: {labels.run_title(row.kind, row.model, row.adapter, row.strategy, row.name)}",
            "adapter": value.adapter or "",
            "strategy": value.strategy or "",
            "seconds": value.value,
            "run_id": value.run_id,
        }
        for value in values
        if value.name == INIT_TIME and value.variant is None and (row := runs.get(value.run_id)) is not None
    ]
    return pd.DataFrame(rows, columns=["label", "adapter", "strategy", "seconds", "run_id"])
