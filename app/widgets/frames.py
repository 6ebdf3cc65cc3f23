"""Stored rows as DataFrames for charts and tables. Values stay in stored units (seconds, bytes). Draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from app import formatting
from app.kinds import KINDS
from app.widgets import labels
from db.runs import MetricValue, RunRow

# Runs disturbed beyond this share of the CPU are marked.
DISTURBED_SHARE = 0.1
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
            value.adapter or "",
            value.strategy or "",
            value.failed_checks or 0,
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
    return labels.variant_label(row, row.spec) + (", check failed" if row.failed_checks else "")


def run_label(row: RunRow) -> str:
    """One run among others of its kind."""
    name = row.name or f"{labels.variant_label(row, row.spec)} on {labels.model_label(row.model)}"
    return f"{row.id}: {name}"


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


def medians(values: Iterable[MetricValue]) -> dict[tuple[int, str, str | None], float]:
    """Median of each metric of each run, by (run id, metric name, variant)."""
    frame = pd.DataFrame(
        [(value.run_id, value.name, value.variant or "", value.value) for value in values],
        columns=["run_id", "name", "variant", "value"],
    )
    if frame.empty:
        return {}
    grouped = frame.groupby(["run_id", "name", "variant"])["value"].median()
    return {
        (int(run_id), str(name), str(variant) or None): float(value)
        for (run_id, name, variant), value in grouped.items()
    }


def listed_metrics() -> tuple[str, ...]:
    """The metrics that the table of runs shows."""
    return tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.COLUMNS.values()))


def runs_frame(rows: Sequence[RunRow], values: Mapping[tuple[int, str, str | None], float]) -> pd.DataFrame:
    """The table of runs: one line per run, times in seconds, memory in bytes, moments in epoch seconds.

    Each kind has columns of its own for its time or speed and its peak memory; a kind without runs here has none.
    """
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    columns = dict.fromkeys(column for kind in kinds for column in KINDS[kind].COLUMNS)
    return pd.DataFrame([_line(row, values, list(columns)) for row in rows])


def headlines(frame: pd.DataFrame) -> pd.DataFrame:
    """The table of runs of several kinds with one text for each run's time or speed, and one for its peak memory."""
    results, peaks = [], []
    for _, line in frame.iterrows():
        kind = KINDS.get(line["kind_id"])
        name, word = kind.HEADLINE if kind else ("", "")
        value = line.get(name)
        unit = "tokens/s" if name.endswith("tokens_per_s") else "s"
        results.append("" if value is None or pd.isna(value) else f"{word} {formatting.measured(value, unit)}".strip())
        extra, peak = line.get("peak_extra_bytes"), line.get("peak_bytes")
        if extra is not None and pd.notna(extra):
            peaks.append(f"+{formatting.size(extra)}")
        else:
            peaks.append("" if peak is None or pd.isna(peak) else formatting.size(peak))
    columns = {name for kind in KINDS.values() for name in kind.COLUMNS}
    shown = frame.drop(columns=[name for name in frame.columns if name in columns])
    place = list(shown.columns).index("device") + 1
    shown.insert(place, "result", results)
    shown.insert(place + 1, "peak", peaks)
    return shown


def _line(
    row: RunRow, values: Mapping[tuple[int, str, str | None], float], columns: Sequence[str]
) -> dict[str, object]:
    kind = KINDS.get(row.kind)
    metrics = kind.COLUMNS if kind else {}
    variant = kind.main_variant(row) if kind else None
    return {
        "id": row.id,
        "kind_id": row.kind,
        "kind": labels.kind_label(row.kind),
        "state": row.state,
        "name": row.name or (None if kind else labels.run_title(row)),
        "model": labels.model_label(row.model),
        "adapter": row.adapter or (labels.bare_label(row.kind) if kind else None),
        "strategy": row.strategy,
        "targets": labels.targets_label(row.spec) if kind else None,
        "work": ", ".join([*labels.work_parts(row.spec), *labels.savings(row.spec)]),
        "dtype": row.dtype,
        "device": row.device,
        **{name: values.get((row.id, metrics[name], variant)) if name in metrics else None for name in columns},
        "when": row.finished_at or row.started_at or row.created_at,
        "problem": problem_sentence(row),
        "tags": list(row.tags),
    }


def problem_sentence(row: RunRow) -> str | None:
    """Why a run is not a plain success, as one sentence; None where there is nothing to say."""
    if row.error_text:
        return row.error_text
    if row.failed_checks:
        return f"{row.failed_checks} of its checks did not pass"
    if row.background_cpu_share is not None and row.background_cpu_share > DISTURBED_SHARE:
        return f"Disturbed: other processes used {row.background_cpu_share * 100:.0f} % of the CPU meanwhile"
    return None
