"""Plans of what fits, on pages: the last one made for a form, one that is being made, and asking for one.

Planning takes the predictor about a minute, so it is asked for by a button and kept with the request's run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app import people, state
from app.widgets import acting, launching, predictions, progress
from db import runs
from db.runs import RunRow
from engine.spec import THIS_MACHINE, Measured, PlanSpec, parse_spec, prediction_key, spec_hash

_LOOKED_AT = 100
_WAITING = ("queued", "running")


def latest(spec: PlanSpec) -> RunRow | None:
    """The request for this plan that was made last, None where there was none."""
    wanted = spec_hash(spec)
    with state.database().reading() as session:
        rows = runs.list_runs(session, kinds=["plan"], include_archived=True, limit=_LOOKED_AT)
    return next((row for row in rows if row.spec_hash == wanted and row.state != "cancelled"), None)


def is_waiting(row: RunRow) -> bool:
    """Whether a plan is being made or waits for it."""
    return row.state in _WAITING


@people.told
def ask(spec: PlanSpec) -> None:
    """Queue the plan, unless it is being made already."""
    row = latest(spec)
    if row is None or not is_waiting(row):
        launching.launch([spec])


def answer(row: RunRow) -> Mapping[str, Any] | None:
    """The plan that a request came to, None without one."""
    with state.database().reading() as session:
        found = runs.get_run(session, row.id)
    return None if found is None else found.inspection


def follow(row: RunRow) -> None:
    """A bar while a plan is being made; runs the page anew when it is there."""
    st.fragment(_look, run_every=predictions.look_every_s())(row.id)


def _look(run_id: int) -> None:
    with state.database().reading() as session:
        rows = runs.get_rows(session, [run_id])
    if not rows or not is_waiting(rows[0]):
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        done = progress.fraction_done(rows[0], state.now_s())
        what = "Waiting for a worker" if rows[0].state == "queued" else progress.phase_text(rows[0], state.now_s())
        st.progress(done, what, width=420)
        progress.supervisor_badge()
        acting.button("Stop", icon=":material/stop:", type="tertiary", on_click=progress.cancel, args=([run_id],))


def measured_step_s(plan: Mapping[str, Any]) -> dict[tuple[int, str], float]:
    """Median seconds of a step that runs measured here took, by method and place (this machine only)."""
    if not any(place["id"] == THIS_MACHINE for place in plan["places"]):
        return {}
    methods: dict[str, int] = {}
    for number, method in enumerate(plan["methods"]):
        spec = parse_spec({**method["spec"], "device": "cpu"})
        assert isinstance(spec, Measured)
        methods[prediction_key(spec)] = number
    with state.database().reading() as session:
        rows: Sequence[RunRow] = [
            row
            for row in runs.list_runs(session, kinds=["train"], models=[plan["model"]], states=["succeeded"], limit=500)
            if row.origin == "local"
        ]
        found = {run: methods[key] for run, key in predictions.keys_of_runs(rows).items() if key in methods}
        values = runs.metric_values(session, list(found), ["step_time_s"])
    times: dict[int, list[float]] = {}
    for value in values:
        if value.variant is None:
            times.setdefault(found[value.run_id], []).append(value.value)
    return {(number, THIS_MACHINE): statistics.median(seconds) for number, seconds in times.items()}
