"""How a running or waiting run is shown while it changes: bar, phase, time left, cancel."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import formatting, people, places, state
from app.widgets import acting, labels, launching
from app.widgets.estimates import Estimator
from db import queue
from db.runs import RunRow
from engine.spec import SpecError, parse_spec

_SUPERVISOR_LINES = {
    "running": (":material/check_circle:", "green", "Worker ready"),
    "starting": (":material/hourglass_top:", "orange", "Worker starting, a few seconds"),
    "stopped": (":material/error:", "red", "Worker did not start"),
}
_TROUBLE_LINE = (":material/pause_circle:", "orange", "Worker waits")


def supervisor_badge() -> None:
    """Whether someone works on the queue, and what keeps them from it; starts a supervisor where none is."""
    supervisor = state.ensure_supervisor()
    trouble = state.supervisor_trouble() if supervisor == "running" else ""
    icon, colour, text = _TROUBLE_LINE if trouble else _SUPERVISOR_LINES[supervisor]
    if supervisor == "stopped" and (reason := state.supervisor_last_words()):
        text = f"{text}: {formatting.plain_badge(reason)}"
    st.badge(text, icon=icon, color=colour)  # type: ignore[arg-type]
    if trouble:
        st.caption(formatting.plain(formatting.sentence(trouble)))


def fraction_done(row: RunRow, now_s: float) -> float:
    """How much of a running run is done, from 0 to 1: by the job's guess of what is left, before that by phase."""
    progress = row.progress or {}
    left_s, started_at = progress.get("eta_s"), row.started_at or row.claimed_at
    if left_s is not None and started_at is not None:
        elapsed_s = max(now_s - started_at, 0.0)
        return elapsed_s / (elapsed_s + left_s) if elapsed_s + left_s > 0 else 0.0
    total = progress.get("total") or 0
    return min(max(progress.get("done", 0) / total, 0.0), 1.0) if total else 0.0


def expected_s(row: RunRow, estimator: Estimator) -> float | None:
    """How long this run takes as a whole, from earlier runs alike; None where there were none."""
    expectation = estimator.expect(
        kind=row.kind,
        model=row.model,
        adapter=row.adapter,
        strategy=row.strategy,
        dtype=row.dtype,
        device=row.device,
        spec=row.spec,
        parameters=None,
    )
    return expectation.seconds if expectation else None


def phase_text(row: RunRow, now_s: float, expected_s: float | None = None) -> str:
    """What a running run does now: phase, steps, time so far, time left.

    The time left is the job's own guess, else what is left of ``expected_s`` for the whole run.
    """
    progress = row.progress or {}
    parts = [formatting.plain(str(progress.get("phase") or "Starting").capitalize())]
    if progress.get("total"):
        parts.append(f"{progress.get('done', 0)} of {progress['total']}")
    started_at = row.started_at or row.claimed_at
    if started_at is not None:
        elapsed_s = max(now_s - started_at, 0)
        parts.append(f"{formatting.duration(elapsed_s)} so far")
        if progress.get("eta_s") is not None:
            left_s: float | None = float(progress["eta_s"])
        else:
            left_s = expected_s - elapsed_s if expected_s is not None and expected_s > elapsed_s else None
        if left_s is not None:
            parts.append("almost done" if left_s < 1 else f"about {formatting.duration(left_s)} left")
    if row.cancel_requested:
        parts.append("being cancelled")
    return " · ".join(parts)


def run_name(row: RunRow) -> str:
    """A run's title, safe inside Markdown."""
    return formatting.plain(labels.run_title(row))


def place_text(row: RunRow) -> str | None:
    """Where a running run is: "cpu on north", or what it asked for where there is one machine only."""
    node = (row.progress or {}).get("node")
    return f"{row.device} on {node}" if node else places.asked_for(row.spec)


def running_card(row: RunRow, expected_s: float | None = None) -> None:
    """One running run with its bar, what it does now, the end of its log, and a button to cancel it."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            where = f" :gray[· {formatting.plain(place)}]" if (place := place_text(row)) else ""
            st.markdown(f"**{run_name(row)}**{where}", width="content")
            with st.container(horizontal=True, vertical_alignment="center", width="content"):
                st.page_link(
                    "views/run.py",
                    label=f"Run {row.id}",
                    icon=":material/open_in_new:",
                    query_params={"id": str(row.id)},
                )
                acting.button(
                    "Cancel",
                    key=f"cancel_{row.id}",
                    icon=":material/cancel:",
                    disabled=row.cancel_requested,
                    on_click=cancel,
                    args=([row.id],),
                )
        st.progress(fraction_done(row, state.now_s()), text=phase_text(row, state.now_s(), expected_s))
        log = state.log_tail(Path(row.run_folder) / "log.txt", lines=6) if row.run_folder else ""
        if log:
            st.code(log, language=None, wrap_lines=True)


@people.told
def cancel(run_ids: list[int]) -> None:
    """Cancel these runs: queued ones at once, running ones as soon as the supervisor sees it."""
    with people.acting("cancel") as act:
        if queue.request_cancel(act.session, run_ids):
            act.run_ids = run_ids


@people.told
def again(row: RunRow) -> None:
    """Queue a run's spec once more; why that cannot be is shown by ``again_problem``."""
    try:
        launching.launch_again(parse_spec(row.spec))
    except SpecError as error:
        st.session_state["again_problem"] = f"Run {row.id} cannot run again: {error}"


def again_problem() -> None:
    """Why the run that somebody asked for could not be queued again, once."""
    if text := st.session_state.pop("again_problem", None):
        st.error(formatting.plain(formatting.sentence(text)), icon=":material/error:")


def ended_line(row: RunRow) -> None:
    """One line on a run that ended: its state, name, how long it took and when, and the way to its page.

    One that was lost can be started again: nothing is known against it.
    """
    icon, colour = formatting.state_icon(row.state), formatting.state_colour(row.state)
    took_s = (row.finished_at or 0) - (row.started_at or row.finished_at or 0)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(
            f":{colour}[{icon}] {run_name(row)} "
            f":gray[· {formatting.duration(took_s)} · {formatting.ago(row.finished_at, state.now_s())}]",
            width="content",
        )
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            if row.state == "lost":
                acting.button("Run again", key=f"again_{row.id}", icon=":material/replay:", on_click=again, args=(row,))
            st.page_link(
                "views/run.py",
                label=f"Run {row.id}",
                icon=":material/arrow_forward:",
                icon_position="right",
                query_params={"id": str(row.id)},
            )
