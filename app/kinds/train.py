"""Train on the pages: memory by category at the peak, step time and its parts, tokens per second."""

from __future__ import annotations

import pandas as pd

from app import figures, formatting
from app.kinds import train_comparing
from app.kinds.train_comparing import AT_PEAK, PARTS
from app.widgets import labels
from app.widgets.metrics import Card, Chart, Metrics
from db.runs import RunDetail, RunRow

QUESTION = "What one training step takes: memory by category at its peak, and time forward, backward and optimizer."
COLUMNS = {"step_s": "step_time_s", "train_tokens_per_s": "train_tokens_per_s", "peak_bytes": "peak_bytes"}
# The column that says most, with the word before its value where kinds are listed together.
HEADLINE = ("step_s", "Step")
COMPARED = "step_time_s"
STOCK = "stock"
NAMES = (*COLUMNS.values(), *AT_PEAK, "peak_rss_bytes", "trainable_parameters")
compare_charts = train_comparing.compare_charts
_SIDES = ((None, "As specified"), (STOCK, "Plain stock"))


def main_variant(row: RunRow) -> str | None:
    """What was specified; the stock side is a variant."""
    return None


def key_numbers(run: RunDetail, metrics: Metrics) -> list[Card]:
    """Step time, speed, peak, trainable parameters and the split, each beside plain stock where that was measured."""
    found = []
    if metrics.median("step_time_s") is not None:
        found.append(_beside_stock("Step time", "step_time_s", metrics))
    if metrics.median("train_tokens_per_s") is not None:
        found.append(_beside_stock("Training speed", "train_tokens_per_s", metrics))
    if metrics.median("peak_bytes") is not None:
        found.append(_beside_stock("Peak memory", "peak_bytes", metrics, "of tensors"))
    trainable, total = metrics.median("trainable_parameters"), metrics.median("total_parameters")
    if trainable is not None:
        note = f"{formatting.percent(trainable / total)} of {formatting.count(total)}" if total else ""
        found.append(Card("Trainable parameters", formatting.count(trainable), note))
    split = [metrics.median(name) for name in PARTS]
    if all(value is not None for value in split) and sum(split) > 0:  # type: ignore[arg-type]
        shares = [f"{value / sum(split) * 100:.0f}" for value in split]  # type: ignore[operator,arg-type]
        found.append(
            Card("Step split", f"{' / '.join(shares)} %", "forward / backward / optimizer", "Shares of the step time.")
        )
    return found


def _beside_stock(label: str, name: str, metrics: Metrics, note: str | None = None) -> Card:
    ours, stock = metrics.median(name), metrics.median(name, STOCK)
    if stock is None:
        return Card(label, metrics.text(name), note or metrics.evidence(name), metrics.spread(name))
    is_better = (ours or 0) > stock if formatting.better(name) == "higher" else (ours or 0) < stock
    return Card(label, metrics.text(name), f"stock {metrics.text(name, STOCK)}", metrics.spread(name), is_better)


def charts(run: RunDetail, metrics: Metrics, samples: pd.DataFrame) -> list[Chart]:
    """Memory at the peak and over time, the step's parts, its repeats."""
    drawn = []
    at_peak = _memory_at_peak(metrics)
    if len(at_peak):
        figure = figures.stacked(
            at_peak, figures.CATEGORY_COLOURS, title="Memory at the peak of a training step", unit="bytes"
        )
        alt = "Memory at the peak of a training step by category, and of the process with what is unattributed"
        drawn.append(Chart(figure, "peak_chart", alt, is_wide=True))
    split = _split(metrics)
    if len(split):
        figure = figures.stacked(split, figures.STEP_COLOURS, title="Seconds of a training step by part", unit="s")
        drawn.append(Chart(figure, "split_chart", "Seconds of forward, backward and optimizer in a training step"))
    times = _sides(metrics, "step_time_s")
    if len(times):
        times = times.assign(adapter=[run.adapter if side == "As specified" else "" for side in times["label"]])
        figure = figures.spread(times.assign(run_id=run.id), labels.adapter_colours(), title="Seconds of each step")
        drawn.append(Chart(figure, "repeats_chart", "Seconds of each training step"))
    tensors = samples[samples["source"] == "tensors"]
    if len(tensors):
        figure = figures.tensor_memory(tensors, title="Live tensors over the measured steps", on_top=False)
        drawn.append(Chart(figure, "tensor_chart", "Live tensor bytes over time by category"))
    return drawn


def _sides(metrics: Metrics, name: str) -> pd.DataFrame:
    found = [metrics.rows(name, variant).assign(label=label) for variant, label in _SIDES]
    return pd.concat([rows for rows in found if len(rows)] or [found[0]])


def _memory_at_peak(metrics: Metrics) -> pd.DataFrame:
    """Rows of the stacked chart: tensors at the peak as predicted and as measured, and the process with the rest."""
    lines = [
        {"label": "Predicted: tensors", "part": part, "value": value}
        for name, part in AT_PEAK.items()
        if (value := metrics.predicted.get((name, None)))
    ]
    for variant, label in _SIDES:
        rows = [
            {"label": f"{label}: tensors", "part": part, "value": value}
            for name, part in AT_PEAK.items()
            if (value := metrics.median(name, variant))
        ]
        lines += rows
        rss = metrics.median("peak_rss_bytes", variant)
        tensors = sum(row["value"] for row in rows)  # type: ignore[misc]
        if rss is not None and rows:
            lines += [{**row, "label": f"{label}: process", "value": row["value"]} for row in rows]
            rest = max(rss - tensors, 0.0)
            lines.append({"label": f"{label}: process", "part": "unattributed", "value": rest})
    return pd.DataFrame(lines, columns=["label", "part", "value"])


def _split(metrics: Metrics) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"label": label, "part": part, "value": value}
            for variant, label in _SIDES
            for name, part in PARTS.items()
            if (value := metrics.median(name, variant)) is not None
        ],
        columns=["label", "part", "value"],
    )
