"""Charts of several compared train runs: memory by category, speed, and the parts of a step.

Pure functions on the frames that :mod:`app.kinds.comparing` describes; the plain stock side is a group of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from app import figures, formatting
from app.figures.memory import UNATTRIBUTED
from app.kinds import comparing
from app.widgets.metrics import Chart

#: Metric -> what it is called in the stack.
AT_PEAK = {
    "parameters_bytes": "parameters",
    "buffers_bytes": "buffers",
    "gradients_bytes": "gradients",
    "optimizer_state_bytes": "optimizer state",
    "activations_bytes": "activations",
    "temporary_bytes": "temporary",
}
PARTS = {"forward_time_s": "forward", "backward_time_s": "backward", "optimizer_time_s": "optimizer"}
CONTEXT = "train.context_length"
# What decides how much one step does.
_WORK = (CONTEXT, "train.batch_size", "train.accumulation")
_ALONG = (CONTEXT, "train.batch_size", "adapter.rank", "train.loss_chunks", "train.sequence_tiles")
_PEAK_TITLE = "Peak memory of a training step"
# A smaller rest is rounding.
_REST_SHARE = 0.01


def compare_charts(
    frame: pd.DataFrame, fields: pd.DataFrame, *, baseline: str | None = None, facet: str | None = None
) -> list[Chart]:
    """Memory by category (against context length where that varies), seconds or tokens per second, the step's parts.

    Args:
        frame: one line per value.
        fields: one line per run.
        baseline: group that is drawn dashed.
        facet: field that has a panel per value; where lengths vary, one for each value and way to train.
    """
    facet = comparing.known(fields, facet)
    by_metric = functools.partial(
        comparing.metric_chart, frame, fields, along=_ALONG, baseline=baseline, facet=facet, variants=True
    )
    # Seconds of steps over more tokens cannot be compared, tokens per second can.
    speed = ("train_tokens_per_s", "Tokens trained per second")
    if not comparing.varying(fields, _WORK):
        speed = ("step_time_s", "Seconds of a training step")
    memory = _memory(frame, fields, facet)
    return [
        *(memory or by_metric("peak_bytes", title=_PEAK_TITLE, key="compare_memory")),
        *by_metric(speed[0], title=speed[1], key="compare_speed"),
        *_split(frame, fields, facet),
    ]


def _memory(frame: pd.DataFrame, fields: pd.DataFrame, facet: str | None) -> list[Chart]:
    """The stack of categories, none where values are not bytes or not split up."""
    at_peak = frame[frame["name"].isin(AT_PEAK) & frame["unit"].eq("bytes")]
    if at_peak.empty:
        return []
    peaks = comparing.lines_of(frame, fields, "peak_bytes", variants=True)
    medians = peaks.groupby("group", sort=False)["value"].median().to_dict()
    alt = figures.alt_text(f"{_PEAK_TITLE} by category", medians, "bytes", "lower")
    limits = _capacities(fields)
    if comparing.varying(fields, (CONTEXT,)):
        along = functools.partial(_along_context, fields=fields, facet=facet if facet != CONTEXT else None)
        rows = _stacks(along(at_peak), along(peaks), ["group", "x"])
        points = _predicted_points(fields, along)
        figure = figures.context_memory(rows, title=_PEAK_TITLE, limits=limits, points=points)
        said = ", predicted peaks as points" if len(points) else ""
        return [Chart(figure, "compare_memory", f"{alt}, against context length{said}", is_wide=True)]
    keys = ["group", "run_id"] if facet else ["group"]
    stacks = _stacks(at_peak, peaks, keys)
    predicted = stacks["group"].map(_predicted_notes(peaks, fields))
    stacks["note"] = stacks["note"].where(stacks["note"].ne(""), predicted.fillna(""))
    title, rows = comparing.first_rows(_PEAK_TITLE, stacks, facet)
    draw = functools.partial(
        figures.stacked,
        colours=figures.CATEGORY_COLOURS,
        title=title,
        unit="bytes",
        limit=next(iter(limits.items())) if len(limits) == 1 else None,
    )
    return [Chart(_rows(rows, fields, facet, draw), "compare_memory", alt, is_wide=True)]


def _along_context(rows: pd.DataFrame, fields: pd.DataFrame, facet: str | None) -> pd.DataFrame:
    """The rows by context length and way to train; with a facet its values come first, numbers in order."""
    lengths = pd.to_numeric(rows["run_id"].map(fields[CONTEXT]), errors="coerce")
    ways = comparing.series(rows, fields, [CONTEXT, *([facet] if facet else [])])
    if facet is None:
        return rows.assign(x=lengths, group=ways)
    values, name = comparing.panels_of(rows, fields, facet)
    head = f"{name} " if name else ""
    texts = values.map(lambda value: f"{head}{value:.6g}" if isinstance(value, float | int) else f"{head}{value}")
    named = texts.where(values.notna(), "not set")
    # A way to train that begins with the value need not say it twice.
    pairs = [way if way.startswith(text) else f"{text}, {way}" for text, way in zip(named, ways, strict=True)]
    grouped = rows.assign(x=lengths, group=pairs)
    if pd.api.types.is_numeric_dtype(values):
        return grouped.loc[values.sort_values(kind="stable").index]
    return grouped


def _predicted_points(fields: pd.DataFrame, along: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """``group x value`` of the predicted peaks, each with the runs that it is of."""
    if comparing.PREDICTED_PEAK not in fields:
        return pd.DataFrame({"group": [], "x": [], "value": []})
    known = fields[fields[comparing.PREDICTED_PEAK].notna()]
    rows = pd.DataFrame(
        {"run_id": known.index, "group": known["group"].to_numpy(), "value": known[comparing.PREDICTED_PEAK].to_numpy()}
    )
    return along(rows).groupby(["group", "x"], sort=False)["value"].median().reset_index()


def _predicted_notes(peaks: pd.DataFrame, fields: pd.DataFrame) -> dict[str, str]:
    """What was predicted of each group, and how far that is from what was measured: "predicted 2.10 GiB, exact"."""
    if comparing.PREDICTED_PEAK not in fields:
        return {}
    measured = peaks[peaks["state"].ne(comparing.OUT_OF_MEMORY)].groupby("group")["value"].median()
    notes = {}
    for group, value in fields.groupby("group")[comparing.PREDICTED_PEAK].median().dropna().items():
        peak = measured.get(group)
        error = f", {formatting.error(value / peak - 1)}" if peak else ""
        notes[str(group)] = f"predicted {formatting.size(float(value))}{error}"
    return notes


def _stacks(at_peak: pd.DataFrame, peaks: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """``part value state note`` by ``keys``: medians of the categories, what they leave of the peak, where runs ended.

    What a run out of memory had reached is not split up.
    """
    ended = peaks[peaks["state"].eq(comparing.OUT_OF_MEMORY)]
    at_peak = at_peak[~at_peak["run_id"].isin(ended["run_id"])]
    parts = at_peak.assign(part=at_peak["name"].map(AT_PEAK)).groupby([*keys, "part"], sort=False)["value"].median()
    whole = peaks[~peaks["run_id"].isin(ended["run_id"])].groupby(keys, sort=False)["value"].median()
    rest = (whole - parts.groupby(keys, sort=False).sum()).dropna()
    rest = rest[rest > whole.reindex(rest.index) * _REST_SHARE]
    reached = ended.groupby(keys, sort=False)["value"].max()
    return pd.concat(
        [
            parts.reset_index().assign(state="succeeded", note=""),
            rest.reset_index().assign(part=UNATTRIBUTED, state="succeeded", note=""),
            reached.reset_index().assign(part=UNATTRIBUTED, state=comparing.OUT_OF_MEMORY, note="out of memory"),
        ],
        ignore_index=True,
    )


def _capacities(fields: pd.DataFrame) -> dict[str, float]:
    """The memory of the devices that the runs were on, and what limits their specs set: name -> bytes."""
    is_gpu = fields["device"].astype(str).str.startswith("cuda")
    found = {}
    for column, rows in (
        ("environment.memory_bytes", fields[~is_gpu]),
        ("environment.gpu_memory_bytes", fields[is_gpu]),
        ("memory_limit_bytes", fields),
    ):
        if column not in fields:
            continue
        sizes = pd.to_numeric(rows[column], errors="coerce").dropna()
        for run_id, size in sizes.drop_duplicates().sort_values().items():
            name = "memory limit" if column == "memory_limit_bytes" else fields.at[run_id, "device"]
            found[f"{name}: {formatting.size(float(size))}"] = float(size)
    return found


def _split(frame: pd.DataFrame, fields: pd.DataFrame, facet: str | None) -> list[Chart]:
    """Seconds of forward, backward and optimizer, a row per group."""
    rows = frame[frame["name"].isin(PARTS) & frame["unit"].eq("s")]
    if rows.empty:
        return []
    title, rows = comparing.first_rows("Seconds of a training step by part", rows, facet)
    keys = ["group", "run_id", "part"] if facet else ["group", "part"]
    medians = rows.assign(part=rows["name"].map(PARTS)).groupby(keys, sort=False)["value"].median().reset_index()
    draw = functools.partial(figures.stacked, colours=figures.STEP_COLOURS, title=title, unit="s")
    totals = medians.groupby("group", sort=False)["value"].sum().to_dict()
    alt = figures.alt_text("Seconds of forward, backward and optimizer in a training step", totals, "s", "lower")
    return [Chart(_rows(medians, fields, facet, draw), "compare_split", alt, is_wide=True)]


def _rows(
    rows: pd.DataFrame, fields: pd.DataFrame, facet: str | None, draw: Callable[[pd.DataFrame], go.Figure]
) -> go.Figure:
    """A row per group; in panels a row per group of the panel, the median of its runs."""
    if facet is None:
        return draw(rows.assign(label=rows["group"]))
    named = rows.assign(label=comparing.series(rows, fields, [facet]))

    def panel(found: pd.DataFrame) -> go.Figure:
        keys = [key for key in ("label", "part", "note") if key in found]
        return draw(found.groupby(keys, sort=False)["value"].median().reset_index())

    return comparing.in_panels(named, fields, facet, panel)
