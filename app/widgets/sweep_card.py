"""How far runs that were launched together are: one bar for all of them, what runs now, and a button to cancel."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import formatting, state
from app.widgets import acting, case_runs, frames, labels, presenting, progress
from db.runs import RunRow

# More lines than this push what was measured off the screen.
LINES = 6


def sweep_card(title: str, rows: Sequence[RunRow], *, key: str) -> None:
    """The card of a sweep under way.

    Args:
        title: what is measured; Markdown.
        rows: its runs in their order; a few get a line each, of many only the running one.
        key: of the button that cancels what has not ended.
    """
    now_s = state.now_s()
    ended = sum(row.state not in case_runs.ACTIVE for row in rows)
    # What a run has done of building its model is left out: its first guess of what is left would take it back.
    measuring = [row for row in rows if row.state == "running" and (row.progress or {}).get("eta_s") is not None]
    share = (ended + sum(progress.fraction_done(row, now_s) for row in measuring)) / len(rows)
    text = f"{ended} of {formatting.plural(len(rows), 'run')} measured"
    left_s = case_runs.time_left_s(rows, now_s)
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{title}**", width="content")
            with st.container(horizontal=True, vertical_alignment="center", width="content"):
                progress.supervisor_badge()
                if not presenting.is_on():
                    acting.button(
                        "Cancel",
                        key=key,
                        icon=":material/cancel:",
                        on_click=progress.cancel,
                        args=([row.id for row in rows if row.state in case_runs.ACTIVE],),
                    )
        st.progress(min(share, 1.0), text=text + (f", about {formatting.duration(left_s)} left" if left_s else ""))
        shown = rows if len(rows) <= LINES else [row for row in rows if row.state == "running"]
        ways = [labels.variant_label(row) for row in rows]
        is_enough = len(set(ways)) == len(ways)
        with st.container(gap="xsmall"):
            for row in shown:
                way = labels.variant_label(row)
                _line(row, way if is_enough else f"{way}, {labels.setting_label(row.spec)}", now_s)


def _line(row: RunRow, name: str, now_s: float) -> None:
    """One run, with what it does now while it runs."""
    name = formatting.plain(name)
    line = f"{formatting.state_icon(row.state)} {name}"
    if row.state == "running":
        st.markdown(f"{line} · :gray[{progress.phase_text(row, now_s)}]")
    elif row.state == "queued":
        st.markdown(f":gray[{line}]")
    else:
        st.markdown(f":{formatting.state_colour(row.state)}[{formatting.state_icon(row.state)}] {name}")


def unsuccessful_notes(rows: Sequence[RunRow]) -> None:
    """One sentence for each run without a result."""
    for row in rows:
        reason = frames.problem_sentence(row) or formatting.state_text(row.state)
        st.warning(
            f"{progress.run_name(row)} ended as {formatting.state_text(row.state).lower()}: {formatting.plain(reason)}",
            icon=formatting.state_icon(row.state),
        )
