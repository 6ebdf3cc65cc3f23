"""Cases: the published claims, each with its verdict on this machine and the way to its page."""

from __future__ import annotations

import streamlit as st

from app import state
from app.widgets import case_parts, case_runs
from app.widgets.case_runs import CaseRuns, Origin


def line(found: CaseRuns, origin: Origin) -> None:
    """One claim: what was said, what was found here."""
    case = found.case
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{case.number} · {case.title}**", width="content")
            case_parts.verdict_badge(found.verdict, origin)
        st.markdown(case.claim)
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            first = case.sources[0]
            st.caption(f"[{first.label}]({first.url})", width="content")
            st.page_link(
                "views/case.py",
                label="Open",
                icon=":material/arrow_forward:",
                icon_position="right",
                query_params=case_parts.link(origin, id=case.id),
            )


st.title("Cases", anchor=False)
st.markdown("Five published claims on what adapters cost, and what this machine says of them.")
devices = state.devices()
with state.database().reading() as session:
    loaded = case_runs.load(session, case_runs.HERE, devices)
origin = case_parts.chosen_origin(has_local=any(one.is_measured for one in loaded))
if origin == "sample":
    with state.database().reading() as session:
        loaded = case_runs.load(session, case_runs.HERE, devices, origin)
for one in loaded:
    line(one, origin)
