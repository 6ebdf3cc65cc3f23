"""Predicted peaks beside measured ones: which of them can be compared, and how far they are apart.

Pure functions on stored rows and predicted numbers. Predicts nothing, reads no database.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from app import formatting
from app.kinds import KINDS
from app.widgets import labels
from db.runs import MetricValue, RunRow

#: The metrics that are both measured and predicted.
PEAKS = (
    "peak_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "init_peak_extra_bytes",
    "merge_peak_extra_bytes",
)
#: The packages whose code a prediction runs: other versions take other memory.
PACKAGES = ("torch", "transformers", "peft")
COLUMNS = (
    "run_id",
    "spec_hash",
    "kind",
    "label",
    "text",
    "adapter",
    "model",
    "metric",
    "variant",
    "predicted",
    "measured",
    "error",
)
#: A metric's bytes by its name and variant.
Peaks = Mapping[tuple[str, str | None], float]


@dataclass(frozen=True, slots=True)
class Pair:
    """One peak as it was predicted and as it was measured, in bytes."""

    metric: str
    variant: str | None
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """How much more was predicted, as a share of what was measured; infinite where nothing was measured."""
        if self.predicted == self.measured:
            return 0.0
        return self.predicted / self.measured - 1 if self.measured else math.inf


@dataclass(frozen=True, slots=True)
class Summary:
    """How good predictions are: sizes of the errors as shares, how many are exact, and how many pairs of runs."""

    median: float
    worst: float
    exact: int
    pairs: int
    runs: int


def pairs(measured: Peaks, predicted: Peaks) -> list[Pair]:
    """The peaks that a run has on both sides, in the order of :data:`PEAKS` and of the measured variants."""
    return [
        Pair(name, variant, predicted[name, variant], value)
        for metric in PEAKS
        for (name, variant), value in measured.items()
        if name == metric and (name, variant) in predicted
    ]


def is_of_these_versions(environment: Mapping[str, Any] | None, installed: Mapping[str, str]) -> bool:
    """Whether a run was measured with the packages that predictions are made with here.

    Args:
        environment: of the run, as it was stored.
        installed: version by package.
    """
    recorded = (environment or {}).get("packages") or {}
    # A build's own mark ("+cpu") is not part of the version that a distribution is installed as.
    return all(_release(recorded.get(name)) == _release(installed.get(name)) for name in PACKAGES)


def _release(version: object) -> str | None:
    return None if version is None else str(version).partition("+")[0]


def comparable(
    rows: Iterable[RunRow], environments: Mapping[int, Mapping[str, Any]], installed: Mapping[str, str]
) -> tuple[list[RunRow], int]:
    """The runs whose peaks a prediction made here can be held against, and how many were measured with other versions.

    What ended without a result is neither.
    """
    ended = [row for row in rows if row.kind in KINDS and row.state == "succeeded"]
    found = [row for row in ended if is_of_these_versions(environments.get(row.id), installed)]
    return found, len(ended) - len(found)


def frame(rows: Iterable[RunRow], values: Iterable[MetricValue], predicted: Mapping[str, Peaks]) -> pd.DataFrame:
    """One line per pair (:data:`COLUMNS`), in the order of the runs; ``label`` is kind and adapter.

    Args:
        rows: the runs.
        values: their metrics.
        predicted: the predicted peaks by spec hash.
    """
    measured: dict[int, dict[tuple[str, str | None], list[float]]] = {}
    for value in values:
        if value.name in PEAKS and value.x is None:
            measured.setdefault(value.run_id, {}).setdefault((value.name, value.variant), []).append(value.value)
    lines = []
    for row in rows:
        medians = {key: statistics.median(found) for key, found in measured.get(row.id, {}).items()}
        adapter = row.adapter or labels.bare_label(row.kind)
        for pair in pairs(medians, predicted.get(row.spec_hash, {})):
            view = f", {pair.variant.replace('_', ' ')}" if pair.variant else ""
            lines.append(
                (
                    row.id,
                    row.spec_hash,
                    row.kind,
                    f"{labels.kind_label(row.kind)}: {adapter}",
                    f"{labels.run_title(row)}, {labels.setting_label(row.spec)}{view} · run {row.id}",
                    adapter,
                    row.model,
                    pair.metric,
                    pair.variant,
                    pair.predicted,
                    pair.measured,
                    pair.error,
                )
            )
    return pd.DataFrame(lines, columns=list(COLUMNS))


def summary(found: pd.DataFrame) -> Summary | None:
    """The errors of these pairs in a few numbers, None where there is no pair."""
    if found.empty:
        return None
    sizes = found["error"].abs()
    return Summary(
        float(sizes.median()), float(sizes.max()), int((sizes == 0).sum()), len(found), found["run_id"].nunique()
    )


def by_label(found: pd.DataFrame) -> pd.DataFrame:
    """``label runs pairs exact median worst`` (errors as shares, without sign), the worst first."""
    lines = [
        {"label": label, "runs": part.runs, "pairs": part.pairs, "exact": part.exact}
        | {"median": part.median, "worst": part.worst}
        for label, rows in found.groupby("label", sort=False)
        if (part := summary(rows)) is not None
    ]
    columns = ["label", "runs", "pairs", "exact", "median", "worst"]
    return pd.DataFrame(lines, columns=columns).sort_values("worst", ascending=False, kind="stable", ignore_index=True)


def worst_first(found: pd.DataFrame) -> pd.DataFrame:
    """The pairs by the size of their error, the largest first; replicas that took the same are one line, with
    ``runs`` of them."""
    keys = ["spec_hash", "metric", "variant", "measured"]
    runs = found.groupby(keys, dropna=False)["run_id"].transform("nunique")
    sized = found.assign(runs=runs, size=found["error"].abs()).drop_duplicates(keys)
    return sized.sort_values("size", ascending=False, kind="stable", ignore_index=True).drop(columns="size")


def shown(pair: Pair) -> str:
    """ "Peak memory, adapter: predicted 2.10 GiB, exact"."""
    view = f", {pair.variant.replace('_', ' ')}" if pair.variant else ""
    size, error = formatting.size(pair.predicted), formatting.error(pair.error)
    return f"{formatting.metric_title(pair.metric)}{view}: predicted {size}, {error}"


def missing(rows: Iterable[RunRow], predicted: Collection[str]) -> list[RunRow]:
    """Those of the runs whose spec has no prediction yet, one run per spec."""
    first: dict[str, RunRow] = {}
    for row in rows:
        if row.spec_hash not in predicted:
            first.setdefault(row.spec_hash, row)
    return list(first.values())
