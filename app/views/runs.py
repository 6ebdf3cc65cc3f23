"""Runs: every stored run in one table, with filters kept in the address, and what to do with the selected ones."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st

from app import formatting, state
from app.kinds import KINDS
from app.widgets import frames, labels
from app.widgets.downloads import table_downloads
from app.widgets.metrics import draw
from db import runs
from db.runs import RunRow
from engine.result import STATES

LIMIT = 1000
COMPARED = 12


def several(label: str, options: list[str], key: str, **kwargs: object) -> list[str] | None:
    """A filter for one column, kept in the address; None where everything passes."""
    chosen = st.multiselect(label, options, key=key, bind="query-params", placeholder="Any", width=190, **kwargs)  # type: ignore[call-overload]
    return list(chosen) or None


def table(frame: pd.DataFrame) -> list[int]:
    """The runs; returns the ids of the selected ones."""
    is_mixed = frame["kind_id"].nunique() > 1
    shown = (frames.headlines(frame) if is_mixed else frame).assign(
        state=[[formatting.state_text(name)] for name in frame["state"]],
        strategy=[
            labels.strategy_label(kind, name) if name else None
            for kind, name in zip(frame["kind_id"], frame["strategy"], strict=True)
        ],
        when=pd.to_datetime(frame["when"], unit="s", utc=True),
    )
    units = {}
    for name in ("peak_extra_bytes", "peak_bytes"):
        if name in shown:
            peak = shown[name].max()
            units[name], unit_bytes = formatting.byte_unit(float(peak) if pd.notna(peak) else 0.0)
            shown[name] = shown[name] / unit_bytes
    empty = [name for name in ("tags", "name", "problem", "work") if not frame[name].map(bool).any()]
    shown = shown.drop(columns=["kind_id", *empty, *([] if is_mixed else ["kind"])])
    states = [formatting.state_text(name) for name in STATES]
    event = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key="runs_table",
        height=min(38 + 35 * max(len(shown), 1), 480),
        placeholder="",
        alt="Stored runs, newest first; select rows to open, compare or download them",
        column_config={
            "id": st.column_config.NumberColumn("Run", width="small", pinned=True, format="%d"),
            "state": st.column_config.MultiselectColumn(
                "State",
                options=states,
                color=[formatting.state_colour(name) for name in STATES],
                width=130,
            ),
            "model": "Model",
            "adapter": "Adapter",
            "strategy": "Strategy",
            "targets": "Targets",
            "dtype": "Dtype",
            "device": "Device",
            "kind": "Kind",
            "work": st.column_config.TextColumn("Work", help="What each step or request was asked to do."),
            "result": st.column_config.TextColumn("Result", alignment="right", help="The median of the repeats."),
            "peak": st.column_config.TextColumn(
                "Peak memory", alignment="right", help="With a plus: on top of what the model takes."
            ),
            "init_s": st.column_config.NumberColumn("Init median", format="%.3g s"),
            "merge_s": st.column_config.NumberColumn("Merge median", format="%.3g s"),
            "step_s": st.column_config.NumberColumn("Step median", format="%.3g s"),
            "train_tokens_per_s": st.column_config.NumberColumn("Trained tokens/s", format="%.3g"),
            "decode_tokens_per_s": st.column_config.NumberColumn("Written tokens/s", format="%.3g"),
            "prefill_s": st.column_config.NumberColumn("Prefill median", format="%.3g s"),
            "peak_extra_bytes": st.column_config.NumberColumn(
                f"Peak extra, {units.get('peak_extra_bytes')}", format="%.3g", help="Above what the model takes."
            ),
            "peak_bytes": st.column_config.NumberColumn(
                f"Peak, {units.get('peak_bytes')}", format="%.3g", help="Of all tensors together."
            ),
            "when": st.column_config.DatetimeColumn("When", format="distance"),
            "tags": st.column_config.ListColumn("Tags", width=160),
            "name": "Name",
            "problem": st.column_config.TextColumn("What went wrong", width="large"),
        },
    )
    return [int(frame["id"].iloc[row]) for row in event.selection.rows if row < len(frame)]


def actions(selected: list[RunRow]) -> None:
    """What can be done with the selected runs."""
    ids = [row.id for row in selected]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{formatting.plural(len(ids), 'run')} selected**", width="content")
        if len(ids) == 1 and st.button("Open", icon=":material/open_in_new:", type="primary"):
            st.switch_page("views/run.py", query_params={"id": str(ids[0])})
        st.download_button(
            "Result JSON",
            data=lambda: export(ids),
            file_name="runs.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            help="Everything that was measured, as python -m engine export prints it.",
        )
        if any(row.archived_at is None for row in selected):
            st.button("Archive", icon=":material/archive:", on_click=archive, args=(ids,))
        if any(row.archived_at is not None for row in selected):
            st.button("Restore", icon=":material/unarchive:", on_click=restore, args=(ids,))
    for row in selected[:COMPARED]:
        if problem := frames.problem_sentence(row):
            st.markdown(
                f":{formatting.state_colour(row.state)}[{formatting.state_icon(row.state)}] Run {row.id}: "
                f"{formatting.plain(formatting.sentence(problem))}"
            )


def export(ids: list[int]) -> str:
    """The result documents of these runs as JSON text: one object, or a list of several."""
    with state.database().reading() as session:
        documents = [runs.export_document(session, run_id) for run_id in ids]
    return json.dumps(documents[0] if len(documents) == 1 else documents, indent=1)


def archive(ids: list[int]) -> None:
    """Hide runs from lists and charts."""
    with state.database().writing() as session:
        runs.archive(session, ids)


def restore(ids: list[int]) -> None:
    """Show archived runs again."""
    with state.database().writing() as session:
        runs.restore(session, ids)


def compare(selected: list[RunRow]) -> None:
    """The charts of the selected runs' kind, one row for each run."""
    by_id = {row.id: row for row in sorted(selected[:COMPARED], key=lambda row: row.id)}
    kinds = {row.kind for row in by_id.values()}
    if len(kinds) > 1:
        st.caption("Select runs of one kind to compare them in a chart.")
        return
    view = KINDS.get(kinds.pop())
    if view is None:
        return
    with state.database().reading() as session:
        values = runs.metric_values(session, run_ids=by_id, names=view.NAMES)
    values = [value for value in values if value.variant == view.main_variant(by_id[value.run_id])]
    charts = view.comparison(frames.metric_frame(values, by_id, frames.run_label))
    if not charts:
        st.caption("The selected runs hold no numbers to compare.")
        return
    draw(charts)
    settings = {labels.setting_label(row.spec) for row in by_id.values()}
    if len(settings) > 1:
        st.caption(
            f":material/warning: These runs differ in their setting: {formatting.plain('; '.join(sorted(settings)))}."
        )
    if len(selected) > COMPARED:
        st.caption(f"The first {COMPARED} of {len(selected)} selected runs.")


st.title("Runs")
with state.database().reading() as session:
    known = runs.filter_values(session)
if not known.states:
    with st.container(border=True, horizontal_alignment="center"):
        st.markdown("No run is stored yet; launch one or measure LoRA against DoRA.", text_alignment="center")
        if st.button("Launch a run", type="primary", icon=":material/rocket_launch:"):
            st.switch_page("views/launch.py")
    st.stop()

with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
    search = st.text_input(
        "Search",
        type="search",
        key="q",
        bind="query-params",
        placeholder="Name, note, model, error",
        width=240,
        icon=":material/search:",
    )
    states = several("State", list(known.states), "state", format_func=formatting.state_text)
    kinds = several("Kind", list(known.kinds), "kind", format_func=labels.kind_label) if len(known.kinds) > 1 else None
    models = several("Model", list(known.models), "model", format_func=labels.model_label)
    adapters = several("Adapter", list(known.adapters), "adapter")
    devices = several("Device", list(known.devices), "device") if len(known.devices) > 1 else None
    tags = several("Tag", list(known.tags), "tag") if known.tags else None
    archived = st.toggle("Archived too", key="archived", bind="query-params")

with state.database().reading() as session:
    rows = runs.list_runs(
        session,
        states=states,
        kinds=kinds,
        models=models,
        adapters=adapters,
        devices=devices,
        tags=tags,
        search=search,
        include_archived=archived,
        limit=LIMIT,
    )
    shown_ids = [row.id for row in rows]
    medians = frames.medians(runs.metric_values(session, run_ids=shown_ids, names=frames.listed_metrics()))
if not rows:
    st.info("No run passes these filters; take one away.", icon=":material/filter_alt_off:")
    st.stop()
frame = frames.runs_frame(rows, medians)
st.caption(
    f"The newest {LIMIT} runs; filter for older ones."
    if len(rows) == LIMIT
    else f"{formatting.plural(len(rows), 'run')}."
)
selected_ids = table(frame)
by_id = {row.id: row for row in rows}
selected = [by_id[run_id] for run_id in selected_ids]
if selected:
    actions(selected)
    compare(selected)
table_downloads(frame if not selected else frame[frame["id"].isin(selected_ids)], "runs")
