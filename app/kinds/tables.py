"""Tables beside the charts: medians by label in stored units, and the same as people read them."""

from __future__ import annotations

import pandas as pd

from app import formatting


def of(frame: pd.DataFrame, name: str, variant: str | None = None) -> pd.DataFrame:
    """The lines of one metric of one variant."""
    rows = frame[frame["name"] == name]
    return rows[rows["variant"].isna()] if variant is None else rows[rows["variant"] == variant]


def medians(rows: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """One line per label: ``variant median_<suffix> lower_quartile_<suffix> upper_quartile_<suffix> repeats runs
    failed_checks``; no quartiles for a single value."""
    lines = []
    for label, found in rows.groupby("label", sort=False):
        values = found["value"]
        lines.append(
            {
                "variant": label,
                f"median_{suffix}": float(values.median()),
                f"lower_quartile_{suffix}": float(values.quantile(0.25)) if len(values) > 1 else None,
                f"upper_quartile_{suffix}": float(values.quantile(0.75)) if len(values) > 1 else None,
                "repeats": len(values),
                "runs": int(found["run_id"].nunique()),
                "failed_checks": int(found["failed_checks"].max()),
            }
        )
    columns = ["variant", f"median_{suffix}", f"lower_quartile_{suffix}", f"upper_quartile_{suffix}"]
    return pd.DataFrame(lines, columns=[*columns, "repeats", "runs", "failed_checks"])


def ranges(table: pd.DataFrame, suffix: str, unit: str) -> list[str]:
    """The interquartile ranges of :func:`medians` as texts."""
    return [
        f"{formatting.measured(low, unit)} to {formatting.measured(high, unit)}" if pd.notna(low) else formatting.DASH
        for low, high in zip(table[f"lower_quartile_{suffix}"], table[f"upper_quartile_{suffix}"], strict=True)
    ]


def evidence(table: pd.DataFrame) -> list[str]:
    """What the medians stand on, as texts."""
    return [formatting.evidence(repeats, runs) for repeats, runs in zip(table["repeats"], table["runs"], strict=True)]


def texts(values: pd.Series, unit: str) -> list[str]:
    """Values of one unit as texts."""
    return [formatting.measured(None if pd.isna(value) else float(value), unit) for value in values]
