"""The box for a filter expression: what is typed, what is wrong with it and where, and help beside it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import streamlit as st

from app import formatting, state
from app.filtering import FilterError, Known, parse, pointed
from app.filtering.fields import columns, spec_fields
from db.conditions import Condition

_HELP = """
```text
kind = train AND step_time_s < 500ms
tag = paper OR (adapter = dora AND NOT state = failed)
train.context_length >= 1024 AND peak_bytes < 2GiB
adapter in (lora, dora) AND name ~ "before upgrade"
decode_tokens_per_s@merged > 10
environment.packages.peft != 0.21.2
finished >= 2026-03-01 AND quantization = none
```
`=` and `!=` compare in any case, `~` finds a text inside another, `in (…)` takes a list, `none` is a missing value.
A metric is its median over the repeats, of the variant that the run is about or of the one after `@`.
"""


def box(known: Known, *, on_change: Callable[[], None]) -> tuple[Condition | None, bool]:
    """The field for an expression, kept in the address as ``filter``, with its help.

    Returns:
        The condition, None where the field is empty; and whether what is in the field can be used at all. What is
        wrong is shown below it.
    """
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        text = st.text_input(
            "Filter",
            key="filter",
            bind="query-params",
            placeholder="kind = train AND step_time_s < 500ms",
            icon=":material/filter_alt:",
            on_change=on_change,
        )
        help_ = st.popover("Fields", icon=":material/help:", help="What a filter can say.", on_change="rerun")
    # The list is long, and few ask for it.
    if help_.open:
        with help_:
            st.markdown(_HELP)
            st.dataframe(_fields(known), hide_index=True, height=260, alt="The fields that a filter knows")
    # Always there: a widget that moves down the page when an error appears above it loses its place in the address.
    below = st.container()
    try:
        return parse(text or "", known, state.zone()), True
    except FilterError as error:
        below.error(formatting.plain(error.sentence), icon=":material/error:")
        below.code(pointed(text or "", error.position), language=None)
        return None, False


def _fields(known: Known) -> pd.DataFrame:
    groups = (
        ("run", columns()),
        ("metric", known.metrics),
        ("spec", spec_fields()),
        ("environment", known.environment),
    )
    return pd.DataFrame([(name, group) for group, names in groups for name in names], columns=["Field", "Belongs to"])
