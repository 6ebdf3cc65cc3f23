"""Removing what old runs need least: their memory samples and their logs. Shows first what would go, and asks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from app import formatting, people, state
from app.widgets import acting
from db import pruning
from db.pruning import OldSamples
from db.session import home

SAMPLES, LOGS = "Memory samples", "Logs and files"
_DAY_S = 86_400
_DEFAULT_DAYS = 30
_MOST_DAYS = 3650


@dataclass(frozen=True, slots=True)
class OldFolders:
    """The folders of old runs, and what their files take together."""

    folders: tuple[Path, ...]
    size_bytes: int


def prune_section() -> None:
    """Choose age and kind, then preview."""
    st.subheader("Prune", anchor=False)
    st.caption(
        "Memory samples draw a run's memory over time, and its log says what it printed. Metrics, checks, notes and "
        "tags stay. Sample data is left alone."
    )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        days = st.number_input(
            "Of runs that ended more than this many days ago",
            min_value=0,
            max_value=_MOST_DAYS,
            value=_DEFAULT_DAYS,
            key="prune_days",
            width=340,
        )
        what = st.pills(
            "What", [SAMPLES, LOGS], selection_mode="multi", default=[SAMPLES, LOGS], key="prune_what", width="content"
        )
        if acting.button("Preview", key="prune_preview", icon=":material/preview:", disabled=not what):
            preview(state.now_s() - int(days) * _DAY_S, tuple(what))


@st.dialog("Prune for good?", icon=":material/auto_delete:")
@people.told
def preview(ended_before: float, what: Sequence[str]) -> None:
    """Says how much of how many runs would go, and removes it when told to."""
    with st.spinner("Adding up"), state.database().reading() as session:
        nothing = OldSamples((), 0, 0)
        samples = pruning.old_samples(session, ended_before) if SAMPLES in what else nothing
        folders = _old_folders(pruning.old_uids(session, ended_before)) if LOGS in what else OldFolders((), 0)
    when = formatting.moment(ended_before, state.zone())
    if not samples.run_ids and not folders.folders:
        st.markdown(f"No run that ended before {when} has {' or '.join(map(str.lower, what))} left.")
        if st.button("Close", key="prune_close"):
            st.rerun()
        return
    st.markdown(f"Of runs that ended before {when}:")
    if samples.run_ids:
        st.markdown(
            f"- the memory samples of **{formatting.plural(len(samples.run_ids), 'run')}**: "
            f"{formatting.plural(samples.samples, 'sample')}, about {formatting.size(samples.size_bytes)}"
        )
    if folders.folders:
        st.markdown(
            f"- the logs and files of **{formatting.plural(len(folders.folders), 'run')}**: "
            f"{formatting.size(folders.size_bytes)}"
        )
    if samples.run_ids and state.database().size() is not None:
        st.caption("The database's file stays as large as it is; new runs fill the room in it.")
    with st.container(horizontal=True):
        if st.button("Prune", key="prune_now", type="primary", icon=":material/auto_delete:"):
            with st.spinner("Pruning"):
                prune(samples, folders)
            st.toast("Pruned.", icon=":material/auto_delete:")
            st.rerun()
        if st.button("Keep", key="prune_keep"):
            st.rerun()


def prune(samples: OldSamples, folders: OldFolders) -> None:
    """Remove what was shown; recorded first, so that one that is broken off is known, too."""
    with people.acting("prune") as act:
        act.run_ids = samples.run_ids
        act.detail = formatting.listing(
            ([f"the samples of {formatting.plural(len(samples.run_ids), 'run')}"] if samples.run_ids else [])
            + ([f"the files of {formatting.plural(len(folders.folders), 'run')}"] if folders.folders else [])
        )
    pruning.delete_samples(state.database(), samples.run_ids)
    for folder in folders.folders:
        shutil.rmtree(folder, ignore_errors=True)


def _old_folders(uids: Sequence[str]) -> OldFolders:
    """Those of these runs' folders that there are."""
    old = set(uids)
    try:
        found = sorted(path for path in (home() / "runs").iterdir() if path.name in old)
    except OSError:  # no run has had a folder yet
        return OldFolders((), 0)
    sizes = (path.lstat().st_size for folder in found for path in folder.rglob("*") if not path.is_dir())
    return OldFolders(tuple(found), sum(sizes))
