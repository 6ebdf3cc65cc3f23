"""Cells that read as text and sort as numbers."""

from __future__ import annotations

import pandas as pd

from app.widgets.sortable import sortable


def test_a_column_of_texts_stands_on_its_numbers_and_still_reads_as_text() -> None:
    shown = pd.DataFrame({"Group": ["a", "b", "c"], "Median": ["9.00 ms", "1.20 s", "–"]})
    table = sortable(shown, {"Median": [0.009, 1.2, None]})
    assert list(table.data.sort_values("Median")["Group"]) == ["a", "b", "c"]
    html = table.to_html()
    assert "9.00 ms" in html
    assert "1.20 s" in html
    assert ">–<" in html


def test_other_columns_and_empty_tables_stay_as_they_are() -> None:
    table = sortable(pd.DataFrame({"Group": ["a"], "Median": ["1 s"]}), {"Median": [1.0]})
    assert list(table.data["Group"]) == ["a"]
    assert sortable(pd.DataFrame(columns=["Median"]), {"Median": []}).empty
