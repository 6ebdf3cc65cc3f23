"""Merge files: a LoRA or DoRA checkpoint into a model's checkpoint, from disk to disk, through the queue."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import formatting, people, state
from app.widgets import acting, frames, launching, progress
from db import runs
from db.runs import RunRow
from engine.catalog import folders, requirements
from engine.spec import MergeFilesSpec, SpecError, canonical_json, parse_spec

RECENT = 5
FIELDS = (
    ("base", "Base model", "Folder with config.json and safetensors", "The model as transformers saved it."),
    ("adapter", "Adapter", "Folder with adapter_config.json", "LoRA or DoRA as PEFT saved it."),
    ("out", "Output", "Folder that will be made", "Takes as much space on the disk as the base model."),
)


def text_of(field: str) -> str:
    """What was typed into a field; a path pasted from a terminal may have quotes around it."""
    return str(st.session_state.get(f"merge_{field}") or "").strip().strip("'\"")


@st.cache_data(ttl=5, max_entries=50, show_spinner="Looking at the folders")
def problem(spec_json: str) -> str | None:
    """Why a merge cannot run, as one sentence; kept for a moment, as it reads the headers of all shards."""
    found = requirements.problems(parse_spec(spec_json), (), None)
    return str(found[0]) if found else None


def wanted() -> tuple[MergeFilesSpec | None, str | None]:
    """The merge that the form asks for, and what is wrong with it; nothing of either while fields are empty."""
    values = {field: text_of(field) for field, *_ in FIELDS}
    if not all(values.values()):
        return None, None
    for field, value in values.items():
        if not Path(folders.expanded(value)).is_absolute():
            return None, f"{field}: give the whole path, from the root or from ~, not {value[:80]}"
    try:
        spec = parse_spec({"kind": "merge_files", **values})
        assert isinstance(spec, MergeFilesSpec)
        return spec, problem(canonical_json(spec))
    except SpecError as error:
        return None, str(error)


def merges(limit: int) -> list[RunRow]:
    """The latest merges in any state, newest first."""
    with state.database().reading() as session:
        return list(runs.list_runs(session, kinds=["merge_files"], limit=limit))


def is_active(row: RunRow) -> bool:
    """Whether a merge waits or runs."""
    return row.state in ("queued", "running")


@people.told
def launch(spec: MergeFilesSpec) -> None:
    """Queue the merge; callback of the button."""
    launching.launch([spec])


def form() -> None:
    """Three folders and a button."""
    with st.grid(3, min_column_width=260):
        for field, label, placeholder, help_text in FIELDS:
            st.text_input(label, key=f"merge_{field}", placeholder=placeholder, help=help_text, persist_state="session")
    spec, sentence = wanted()
    busy = spec is not None and any(is_active(row) and row.spec.get("out") == spec.out for row in merges(limit=50))
    with st.container(border=True, horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        if sentence is not None and not busy:
            st.markdown(f":red[:material/error:] {formatting.plain(formatting.sentence(sentence))}", width="content")
        elif spec is None:
            st.markdown("Name three folders to go on.", width="content")
        else:
            st.markdown(summary(spec, busy), width="content")
        st.button(
            "Merge",
            key="merge_button",
            type="primary",
            icon=":material/merge:",
            disabled=spec is None or sentence is not None or busy,
            on_click=launch,
            args=(spec,),
        )


def summary(spec: MergeFilesSpec, busy: bool) -> str:
    """What pressing the button will do."""
    if busy:
        return "This merge is in the queue; it is shown below."
    if Path(f"{spec.out}.partial").is_dir():
        return "An earlier merge into this folder was interrupted; if the files are the same, it goes on from there."
    size_bytes = sum(path.stat().st_size for path in Path(spec.base).glob("*.safetensors"))
    return f"Writes **{formatting.size(size_bytes)}** to {formatting.plain(spec.out)}"


def waiting(row: RunRow) -> None:
    """A merge that waits for its turn."""
    with st.container(border=True, horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{progress.run_name(row)}** :gray[· waits for its turn]", width="content")
        acting.button(
            "Cancel", key=f"cancel_{row.id}", icon=":material/cancel:", on_click=progress.cancel, args=([row.id],)
        )


def ended(row: RunRow) -> None:
    """A merge that ended: where its model is, or why there is none."""
    with st.container(border=True):
        progress.ended_line(row)
        if row.state == "succeeded":
            st.code(f"AutoModelForCausalLM.from_pretrained({str(row.spec.get('out'))!r})", language="python")
            return
        sentence = frames.problem_sentence(row) or formatting.state_text(row.state)
        kept = " What was written is kept, and the same merge goes on from there." if row.started_at else ""
        st.caption(formatting.plain(formatting.sentence(sentence)) + (kept if row.state != "failed" else ""))


@st.fragment(run_every=state.LIVE_EVERY_S)
def live(shown_active: tuple[int, ...]) -> None:
    """The merges under way and those that just ended, kept up to date."""
    rows = merges(limit=RECENT + 20)
    active = [row for row in rows if is_active(row)]
    if tuple(row.id for row in active) != shown_active:
        # The form above depends on what is under way.
        st.rerun()
    if active:
        progress.supervisor_badge()
    for row in reversed(active):
        if row.state == "running":
            progress.running_card(row)
        else:
            waiting(row)
    for row in [row for row in rows if not is_active(row)][:RECENT]:
        ended(row)


st.title("Merge files")
st.caption(
    "Merges a LoRA or DoRA checkpoint into a model's files tensor by tensor, so that a model that does not fit into "
    "memory can be merged."
)
if not acting.is_refused():
    form()
live(tuple(row.id for row in merges(limit=RECENT + 20) if is_active(row)))
