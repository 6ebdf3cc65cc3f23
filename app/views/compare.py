"""Compare: what several stored runs say beside each other, named by ``?ids=1,2,3`` in the address."""

from __future__ import annotations

import streamlit as st

from app import formatting, state
from app.comparison import selection
from app.widgets import labels
from db import runs

st.title("Compare", anchor=False)
asked = selection.parse_ids(st.query_params.get("ids", ""))
with state.database().reading() as session:
    rows = [row for row in runs.list_runs(session, include_archived=True) if row.id in asked.ids]
if sentence := selection.missing_sentence(asked, {row.id for row in rows}):
    st.warning(formatting.plain(sentence), icon=":material/link_off:")
if not rows:
    with st.container(border=True, horizontal_alignment="center"):
        st.markdown("Select two or more runs in the table of runs to compare them here.", text_alignment="center")
        if st.button("Choose runs", type="primary", icon=":material/table_rows:"):
            st.switch_page("views/runs.py")
    st.stop()
st.markdown("\n".join(f"- {formatting.plain(labels.run_title(row))}" for row in rows))
