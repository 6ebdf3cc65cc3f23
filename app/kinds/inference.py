"""Inference on the pages: tokens per second by variant, prefill, overhead against the base in the same run."""

from __future__ import annotations

import pandas as pd

from app import figures, formatting
from app.kinds import comparing
from app.widgets import labels
from app.widgets.metrics import Card, Chart, Metrics
from db.runs import RunDetail, RunRow

QUESTION = "How fast a prompt is read and tokens are written with and without the adapter, and what it costs."
COLUMNS = {
    "decode_tokens_per_s": "decode_tokens_per_s",
    "prefill_s": "prefill_time_s",
    "peak_bytes": "peak_bytes",
}
# The column that says most, with the word before its value where kinds are listed together.
HEADLINE = ("decode_tokens_per_s", "")
COMPARED = "decode_tokens_per_s"
NAMES = (*COLUMNS.values(), "overhead_ratio", "request_time_s")
BASE = "base"
# Fields that a chart of several runs may have along its x axis, the most telling first.
ALONG = ("adapter.rank", "inference.batch_size", "inference.adapters", "inference.prompt_tokens")
#: The order in which variants are read; a strategy's own comes after stock PEFT.
PLACES = {"base": 0, "adapter_disabled": 1, "adapter": 2, "mixed_batch": 4, "merged": 5}


def main_variant(row: RunRow) -> str | None:
    """The variant that the run is about: the base alone without an adapter, its own strategy, else stock PEFT."""
    if row.adapter is None:
        return BASE
    return row.strategy if row.strategy not in (None, "stock") else "adapter"


def variant_label(variant: str, adapter: str | None) -> str:
    """What a variant is called in charts: "Base model", "LoRA · Fused", "LoRA · Merged"."""
    if variant == BASE:
        return labels.BASE
    way = {
        "adapter_disabled": "Disabled",
        "adapter": labels.strategy_label("inference", "stock"),
        "merged": "Merged",
        "mixed_batch": "Several in one batch",
    }.get(variant) or labels.strategy_label("inference", variant)
    return f"{adapter or 'Adapter'} · {way}"


def key_numbers(run: RunDetail, metrics: Metrics) -> list[Card]:
    """Speed of base and adapter, overhead, prefill and request time."""
    main = _main(run, metrics)
    has_base = BASE in metrics.variants(COMPARED)
    found = []
    if has_base:
        found.append(_card("Base model", COMPARED, BASE, metrics, metrics.evidence(COMPARED, BASE)))
    if main != BASE:
        name = variant_label(main, run.adapter)
        found.append(_card(name, COMPARED, main, metrics, metrics.evidence(COMPARED, main)))
        if metrics.median("overhead_ratio", main) is not None:
            found.append(_card("Overhead", "overhead_ratio", main, metrics, "per token, against base", is_main=True))
    for name, label in (("prefill_time_s", "Prefill"), ("request_time_s", "Request")):
        if metrics.median(name, main) is not None:
            note = f"base {metrics.text(name, BASE)}" if main != BASE and has_base else metrics.evidence(name, main)
            found.append(_card(label, name, main, metrics, note))
    for name, label, variant, note in (
        ("compile_time_s", "Compile time", main, "once, apart"),
        ("adapter_swap_time_s", "Adapter swap", "adapter", metrics.evidence("adapter_swap_time_s", "adapter")),
    ):
        if metrics.median(name, variant) is not None:
            found.append(_card(label, name, variant, metrics, note))
    return found


def _card(label: str, name: str, variant: str, metrics: Metrics, note: str, *, is_main: bool = False) -> Card:
    is_good = is_main and (metrics.median(name, variant) or 2.0) <= 1.02
    return Card(label, metrics.text(name, variant), note, metrics.spread(name, variant), is_good)


def _main(run: RunDetail, metrics: Metrics) -> str:
    """The main variant, or the first that was measured where it was left out."""
    wanted = main_variant(run) or BASE
    measured = [variant for variant in metrics.variants(COMPARED) if variant is not None]
    return wanted if wanted in measured or not measured else measured[-1]


def charts(run: RunDetail, metrics: Metrics, samples: pd.DataFrame) -> list[Chart]:
    """Tokens per second, prefill, time against base and request time by variant."""
    drawn = []
    for name, title in (
        (COMPARED, "Tokens written per second"),
        ("prefill_time_s", "Seconds to read the prompt"),
        ("overhead_ratio", "Time per token against the base model"),
        ("request_time_s", "Seconds of a whole request"),
    ):
        rows = _by_variant(metrics.frame[metrics.frame["name"] == name].assign(run_id=run.id), run.adapter)
        if len(rows):
            figure = figures.spread(
                rows,
                labels.adapter_colours(),
                title=title,
                unit=str(rows["unit"].iloc[0]),
                better=formatting.better(name),
                baseline=labels.BASE,
            )
            drawn.append(Chart(figure, f"{name}_chart", f"{title} by variant, {formatting.better(name)} is better"))
    return drawn


def _by_variant(rows: pd.DataFrame, adapter: str | None) -> pd.DataFrame:
    """Rows with ``label`` and ``adapter`` by variant, base first; grey where the adapter does not act."""
    rows = rows[rows["variant"].notna()]
    shown = rows.assign(
        label=[variant_label(variant, adapter) for variant in rows["variant"]],
        adapter=[adapter if variant not in (BASE, "adapter_disabled") else "" for variant in rows["variant"]],
        place=[PLACES.get(variant, 3) for variant in rows["variant"]],
    )
    return shown.sort_values("place", kind="stable")


def compare_charts(
    frame: pd.DataFrame, fields: pd.DataFrame, *, baseline: str | None = None, facet: str | None = None
) -> list[Chart]:
    """Tokens per second, time against the base and prefill by variant, along rank, batch or adapters where those vary.

    Where two of them vary and no panels were asked for, the second has a panel per value.

    Args:
        frame: one line per value (see :mod:`app.kinds.comparing`); variants are groups of their own.
        fields: one line per run.
        baseline: group that is drawn dashed.
        facet: field that has a panel per value.
    """
    vary = comparing.varying(fields, ALONG, without=facet)
    if facet is None and len(vary) > 1:
        facet = vary[1]
    return [
        chart
        for name, title, reference in (
            (COMPARED, "Tokens written per second", None),
            ("overhead_ratio", "Time per token against the base model", 1.0),
            ("prefill_time_s", "Seconds to read the prompt", None),
        )
        for chart in comparing.metric_chart(
            frame,
            fields,
            name,
            title=title,
            key=f"compare_{name}",
            along=ALONG,
            baseline=baseline,
            facet=facet,
            variants=True,
            reference=reference,
        )
    ]
