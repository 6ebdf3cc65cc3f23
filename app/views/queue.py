"""Queue: what runs now, what waits, what just ended. Everything on it comes from the database at every tick."""

from __future__ import annotations

import streamlit as st

from app import formatting, places, state
from app.widgets import acting, frames, progress
from app.widgets.estimates import Estimator
from db import runs
from db.runs import RunRow

RECENT = 8
# Each waiting run has a button, and all of them are drawn anew every second.
WAITING_SHOWN = 25


def waiting_list(rows: list[RunRow]) -> None:
    """Queued runs in the order in which they will start."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader(f"{formatting.plural(len(rows), 'run')} waiting", anchor=False)
        if len(rows) > 1:
            acting.button(
                "Cancel all waiting",
                key="cancel_all",
                icon=":material/cancel:",
                on_click=progress.cancel,
                args=([row.id for row in rows],),
            )
    with st.container(border=True, gap="xsmall", height=420 if len(rows) > 8 else "content"):
        for row in rows[:WAITING_SHOWN]:
            with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
                waits_for = places.waits_for(row.spec, state.nodes())
                said = [text for text in (places.asked_for(row.spec), row.sweep_name, waits_for) if text]
                more = "".join(f" :gray[· {formatting.plain(text)}]" for text in said)
                st.markdown(f":gray[{row.id}] {progress.run_name(row)}{more}", width="content")
                acting.button(
                    "Cancel",
                    key=f"cancel_{row.id}",
                    type="tertiary",
                    icon=":material/close:",
                    on_click=progress.cancel,
                    args=([row.id],),
                )

        if len(rows) > WAITING_SHOWN:
            st.caption(f"and {formatting.plural(len(rows) - WAITING_SHOWN, 'more run')}")


def recent_list(rows: list[RunRow]) -> None:
    """The runs that ended last, each with why where it is no success."""
    st.subheader("Recently ended", anchor=False)
    with st.container(border=True, gap="xsmall"):
        for row in rows:
            progress.ended_line(row)
            if problem := frames.problem_sentence(row):
                st.caption(formatting.plain(formatting.sentence(problem)))


@st.fragment(run_every=state.LIVE_EVERY_S)
def live() -> None:
    """The whole page below the title, kept up to date."""
    with state.database().reading() as session:
        active = runs.queued_and_running(session)
        ended = runs.recent(session, limit=RECENT)
        estimator = Estimator(runs.durations(session, limit=500)) if active else Estimator([])
    running = [row for row in active if row.state == "running"]
    queued = [row for row in active if row.state == "queued"]
    progress.supervisor_badge()
    if not active:
        with st.container(border=True, horizontal_alignment="center"):
            st.markdown("Nothing runs and nothing waits; choose what to measure next.", text_alignment="center")
            if st.button("Launch a run", key="to_launch", type="primary", icon=":material/rocket_launch:"):
                st.switch_page("views/launch.py")
    progress.again_problem()
    for row in running:
        progress.running_card(row, progress.expected_s(row, estimator))
    if queued:
        waiting_list(queued)
    if ended:
        recent_list(ended)


st.title("Queue")
live()
