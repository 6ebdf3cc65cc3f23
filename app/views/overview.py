"""Overview: five questions, each with its key number on this machine, a small chart and the verdict on the claim."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app import figures, formatting, state
from app.widgets import acting, case_parts, case_runs, first_sweep, presenting, samples, sweep_card
from app.widgets.case_runs import CaseRuns, Origin
from app.widgets.metrics import Chart, draw
from db import runs
from engine import cases

SMALL_ROWS = 4
LEGEND = ":blue[●] measured, ◇ published, dashed line: no difference"


@st.fragment(run_every=state.LIVE_EVERY_S)
def live_first_sweep(ended: int) -> None:
    """The first sweep while it runs, read from the database at every tick; each run that ends redraws the chart."""
    with state.database().reading() as session:
        current = first_sweep.latest(session)
    if current is None or not current.is_active or current.ended != ended:
        st.rerun()
    else:
        first_sweep.progress_card(current)


@st.fragment(run_every=state.LIVE_EVERY_S)
def live_cases(active: frozenset[str]) -> None:
    """The sweeps of the cases while they run. The cards are drawn anew only when one of them has ended."""
    with state.database().reading() as session:
        rows = case_runs.batch(case_runs.listed(session, case_runs.HERE))
    now_active = {
        case.id
        for case, size in case_runs.HERE
        if {row.spec_hash for row in rows if row.state in case_runs.ACTIVE} & set(case_runs.hashes(case.id, size))
    }
    if now_active != active:
        st.rerun()
    else:
        sweep_card.sweep_card(sweep_title(active), rows, key="cancel_cases")


def sweep_title(active: frozenset[str]) -> str:
    """Which questions are being answered."""
    names = [case_parts.short_name(case) for case in cases.cases() if case.id in active]
    return f"Measuring {formatting.listing(names)}"


def card(found: CaseRuns, origin: Origin, *, with_button: bool) -> None:
    """One question with its answer, as far as there is one."""
    case = found.case
    with st.container(border=True, height="stretch", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.caption(f"{case.number} · {case_parts.short_name(case)}", width="content")
            if found.is_active:
                is_running = any(row.state == "running" for row in found.rows)
                st.badge("Measuring" if is_running else "Waiting", icon=":material/hourglass_top:", color="blue")
            elif found.is_measured:
                case_parts.verdict_badge(found.verdict, origin)
        presenting.words(f"**{case.question}**")
        if found.is_measured:
            answer(found)
            st.caption(f"The claim: {case.title}.")
        elif not found.is_active:
            not_measured(found, origin, with_button=with_button)
        st.page_link(
            "views/case.py",
            label="Numbers and what to do",
            icon=":material/arrow_forward:",
            icon_position="right",
            query_params=case_parts.link(origin, id=case.id),
        )


def answer(found: CaseRuns) -> None:
    """The key number and the chart of ratios."""
    case_parts.key_number(found)
    frame = case_parts.ratio_frame(found.verdict.ratios[:SMALL_ROWS])
    if frame["measured"].notna().any():
        figure = figures.ratios(frame, title="", is_small=True)
        draw([Chart(figure, f"ratios_{found.case.id}", f"Measured beside published: {found.case.title}")])


def not_measured(found: CaseRuns, origin: Origin, *, with_button: bool) -> None:
    """That there is no number yet, and the button that gets it."""
    published = case_parts.published_text(found.verdict)
    missing = "Not measured here yet" if origin == "local" else "Not in the sample data"
    st.caption(f"{missing}{f'; {published}' if published else ''}.")
    if with_button:
        st.caption(case_runs.refusal(found.sweep, state.devices()) or case_runs.minutes_text(found))
        case_parts.measure_button(found, state.devices(), "Measure", key=f"measure_{found.case.id}", is_primary=False)


def rest(found: Sequence[CaseRuns]) -> None:
    """The button for every question without an answer, as the sixth card."""
    left = [
        one
        for one in found
        if not one.is_measured and not one.is_active and case_runs.refusal(one.sweep, state.devices()) is None
    ]
    if len(left) < 2:
        return
    minutes = sum(one.sweep.minutes or 0 for one in left)
    with st.container(border=True, height="stretch", horizontal_alignment="center", vertical_alignment="center"):
        acting.button(
            "Measure all five" if len(left) == len(found) else f"Measure the missing {len(left)}",
            key="measure_all",
            type="primary",
            icon=":material/playlist_play:",
            on_click=case_runs.start,
            args=([(one.case, one.size) for one in left],),
        )
        st.caption(f"about {formatting.duration(minutes * 60)} on two cores", text_alignment="center")


def grid(found: Sequence[CaseRuns], origin: Origin, *, with_buttons: bool) -> None:
    """The five cards, and the button for what is missing."""
    with st.grid(3, min_column_width=330, gap="small"):
        for one in found:
            card(one, origin, with_button=with_buttons)
        if with_buttons:
            rest(found)


def header() -> None:
    """The title, and the way to the projector."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.title("What adapters cost", anchor=False, width="content")
        presenting.button()


header()
devices = state.devices()
with state.database().reading() as session:
    found = case_runs.load(session, case_runs.HERE, devices)
    sweep = first_sweep.latest(session)
    first = first_sweep.result(session, sweep) if sweep is not None else None
    is_new = not runs.measured_hashes(session)
origin = case_parts.chosen_origin(has_local=not is_new)
if origin == "sample":
    if presenting.is_on():
        samples.badge()
    else:
        samples.remove_offer()
    st.caption(LEGEND)
    with state.database().reading() as session:
        found = case_runs.load(session, case_runs.HERE, devices, origin)
    grid(found, origin, with_buttons=False)
    presenting.way_back()
    st.stop()

machine = formatting.plain(f"{devices[0].name}, {formatting.size(devices[0].memory_bytes)}")
st.caption(f"{machine} · {LEGEND}" if any(one.is_measured for one in found) else machine)
active = frozenset(one.case.id for one in found if one.is_active)
if sweep is not None and sweep.is_active:
    live_first_sweep(sweep.ended)
elif is_new and not active and not presenting.is_on():
    first_sweep.empty_state(sweep)
    samples.offer()
if active:
    live_cases(active)
# The page of the first case says the same with more runs behind it.
if sweep is not None and first is not None and len(first) and found[0].verdict.word == "not enough data yet":
    first_sweep.show(sweep, first)
    if not sweep.is_active:
        sweep_card.unsuccessful_notes(sweep.unsuccessful)
grid(found, origin, with_buttons=not is_new and not presenting.is_on())
presenting.way_back()
