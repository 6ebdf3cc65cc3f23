"""Download buttons that belong to every table: the same rows as CSV and as JSON."""

from __future__ import annotations

import re

import pandas as pd
import streamlit as st

# Letters and digits of any alphabet would be allowed too, but not by every file system.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")


def table_downloads(frame: pd.DataFrame, name: str) -> None:
    """Two small buttons for the rows of ``frame``, in stored units (seconds, bytes).

    Args:
        frame: what the table shows, with stored column names.
        name: file name without ending; also keeps the buttons' keys apart.
    """
    name = file_name(name)
    with st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        st.download_button(
            "CSV",
            # Written when it is asked for: most pages are only looked at.
            data=lambda: frame.to_csv(index=False),
            file_name=f"{name}.csv",
            mime="text/csv",
            icon=":material/download:",
            type="tertiary",
            on_click="ignore",
            key=f"csv_{name}",
            help="These rows as CSV, times in seconds and memory in bytes.",
        )
        st.download_button(
            "JSON",
            data=lambda: frame.to_json(orient="records", indent=2),
            file_name=f"{name}.json",
            mime="application/json",
            icon=":material/download:",
            type="tertiary",
            on_click="ignore",
            key=f"json_{name}",
            help="These rows as JSON, times in seconds and memory in bytes.",
        )


def file_name(text: str) -> str:
    """What can be the name of a file everywhere: no dots, separators, spaces or controls, and not too long."""
    return _NOT_IN_A_NAME.sub("_", text).strip("_")[:80] or "table"
