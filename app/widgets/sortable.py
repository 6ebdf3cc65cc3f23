"""Tables whose cells read as text, with units and three digits, and sort as the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from app import formatting


def sortable(shown: pd.DataFrame, numbers: Mapping[str, Sequence[float | None]]) -> Styler | pd.DataFrame:
    """The table for ``st.dataframe``: texts of these columns stand on numbers.

    Args:
        shown: every cell as people read it.
        numbers: column -> the number behind each of its cells, None where there is none.
    """
    if shown.empty:
        return shown
    columns = {name: pd.Series(values, index=shown.index, dtype="float64") for name, values in numbers.items()}
    texts = {name: dict(zip(column, shown[name], strict=True)).__getitem__ for name, column in columns.items()}
    return shown.assign(**columns).style.format(texts, na_rep=formatting.DASH)
