"""Medians and quartiles of repeats, and what they stand on; for all rows of a chart at once, as that is fast."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def quartiles(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """``lower median upper most repeats runs`` of ``value`` by these columns, in order of first appearance.

    Args:
        rows: ``value``, ``run_id`` and the columns of ``by``; no value is missing.
        by: one or two columns.
    """
    grouped = rows.groupby(list(by), sort=False)
    sizes = grouped["value"].size()
    shares = grouped["value"].quantile([0.25, 0.5, 0.75]).unstack() if len(rows) else pd.DataFrame(columns=range(3))
    shares.columns = ["lower", "median", "upper"]
    return shares.reindex(sizes.index).assign(
        most=grouped["value"].max(), repeats=sizes, runs=grouped["run_id"].nunique()
    )
