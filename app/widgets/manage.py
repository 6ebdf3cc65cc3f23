"""What can be done with stored runs: name, tags and note, archive and restore, and deleting what is archived.

Changes the database and removes the folders of deleted runs. Chooses no runs: whoever shows them says which are meant.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence

import streamlit as st

from app import formatting, people, state
from app.widgets import acting, labels
from db import runs, transfer
from db.documents import LONGEST_LABEL, LONGEST_NOTE
from db.runs import RunRow
from db.session import home

_NAMED_IN_DIALOG = 5


def actions(rows: Sequence[RunRow]) -> None:
    """Buttons to edit, archive or restore, and delete these runs; they stand side by side in a horizontal container.

    Call it once on a page. Only archived runs can be deleted, after a dialog that says what is lost.
    """
    if not rows:
        return
    shown = [row.id for row in rows if row.archived_at is None]
    archived = [row for row in rows if row.archived_at is not None]
    refusal = people.visitor().refusal
    with st.popover("Edit", icon=":material/edit:", disabled=refusal is not None, help=refusal):
        if len(rows) == 1:
            _edit_one(rows[0])
        else:
            _edit_several(rows)
    if shown:
        acting.button(
            "Archive",
            key="manage_archive",
            icon=":material/archive:",
            on_click=_archive,
            args=(shown,),
            help="Hides what is archived from lists and charts; it can be restored.",
        )
    if archived:
        ids = [row.id for row in archived]
        acting.button("Restore", key="manage_restore", icon=":material/unarchive:", on_click=_restore, args=(ids,))
        if acting.button("Delete", key="manage_delete", icon=":material/delete:"):
            confirm_deletion(archived)


def documents_json(run_ids: Sequence[int]) -> str:
    """The result documents of these runs as JSON text: one object, or a list of several."""
    with state.database().reading() as session:
        documents = [transfer.export_document(session, run_id) for run_id in run_ids]
    return json.dumps(documents[0] if len(documents) == 1 else documents, indent=1)


@people.told
def _edit_one(row: RunRow) -> None:
    """Name, tags and note of one run, as they are."""
    with st.form(f"manage_{row.id}", border=False):
        name = st.text_input("Name", value=row.name or "", max_chars=LONGEST_LABEL)
        tags = st.multiselect("Tags", _known_tags(), default=list(row.tags), accept_new_options=True)
        note = st.text_area("Note", value=row.note or "", max_chars=LONGEST_NOTE)
        if st.form_submit_button("Save", type="primary"):
            with people.acting("edit") as act:
                runs.rename(act.session, row.id, clean(name))
                runs.set_note(act.session, row.id, clean(note))
                runs.set_tags(act.session, [row.id], _clean_tags(tags))
                act.run_ids = [row.id]
            st.rerun()


@people.told
def _edit_several(rows: Sequence[RunRow]) -> None:
    """What is to change on all of these runs; fields left empty change nothing."""
    used = sorted({tag for row in rows for tag in row.tags})
    with st.form(f"manage_{'_'.join(str(row.id) for row in rows)}", border=False, clear_on_submit=True):
        st.caption(f"{formatting.plural(len(rows), 'run')}. Empty fields change nothing.")
        name = st.text_input("Name", max_chars=LONGEST_LABEL)
        added = st.multiselect("Add tags", _known_tags(), accept_new_options=True)
        removed = st.multiselect("Remove tags", used) if used else []
        note = st.text_area("Add to the notes", max_chars=LONGEST_NOTE)
        if not st.form_submit_button("Save", type="primary"):
            return
    notes = {row.id: "\n\n".join(filter(None, (row.note, clean(note).strip()))) for row in rows}
    too_long = [run_id for run_id, text in notes.items() if len(text) > LONGEST_NOTE]
    if too_long:
        st.error(f"Note: that of run {too_long[0]} would have more than {LONGEST_NOTE} characters; write less.")
        return
    with people.acting("edit") as act:
        for row in rows:
            if clean(name).strip():
                runs.rename(act.session, row.id, clean(name))
            if clean(note).strip():
                runs.set_note(act.session, row.id, notes[row.id])
            if added or removed:
                runs.set_tags(act.session, [row.id], {*row.tags, *_clean_tags(added)} - set(removed))
        act.run_ids = [row.id for row in rows]
    st.rerun()


@st.dialog("Delete for good?", icon=":material/delete:")
@people.told
def confirm_deletion(rows: Sequence[RunRow]) -> None:
    """Says what is lost, offers to keep a copy, and deletes."""
    ids = [row.id for row in rows]
    st.markdown(
        f"{formatting.plural(len(rows), 'run')} with all numbers, memory samples, checks, notes, logs and files:"
    )
    for row in rows[:_NAMED_IN_DIALOG]:
        st.markdown(f"- Run {row.id}: {formatting.plain(labels.run_title(row))}")
    if len(rows) > _NAMED_IN_DIALOG:
        st.markdown(f"- and {len(rows) - _NAMED_IN_DIALOG} more")
    with st.container(horizontal=True):
        if st.button("Delete", key="manage_delete_now", type="primary", icon=":material/delete:"):
            deleted = delete(ids)
            st.toast(f"Deleted {formatting.plural(deleted, 'run')}.", icon=":material/delete:")
            st.rerun()
        st.download_button(
            "Download a copy",
            data=lambda: documents_json(ids),
            file_name="runs.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
            help="Everything that was measured; it can be imported again.",
        )
        if st.button("Keep", key="manage_keep"):
            st.rerun()


def clean(text: str) -> str:
    """What was typed without characters that no database stores."""
    return "".join(character for character in text if character != "\0" and not "\ud800" <= character <= "\udfff")


def _clean_tags(tags: Iterable[str]) -> list[str]:
    return [clean(tag).strip()[:LONGEST_LABEL] for tag in tags]


def _known_tags() -> list[str]:
    with state.database().reading() as session:
        return list(runs.filter_values(session).tags)


@people.told
def _archive(run_ids: list[int]) -> None:
    with people.acting("archive") as act:
        runs.archive(act.session, run_ids)
        act.run_ids = run_ids
    st.toast(f"Archived {formatting.plural(len(run_ids), 'run')}.", icon=":material/archive:")


@people.told
def _restore(run_ids: list[int]) -> None:
    with people.acting("restore") as act:
        runs.restore(act.session, run_ids)
        act.run_ids = run_ids
    st.toast(f"Restored {formatting.plural(len(run_ids), 'run')}.", icon=":material/unarchive:")


def delete(run_ids: Sequence[int]) -> int:
    """Delete those of these runs that are archived for good, with their folders. Returns how many that were."""
    with people.acting("delete") as act:
        uids = runs.delete(act.session, run_ids)
        kept = {row.id for row in runs.get_rows(act.session, run_ids)}
        act.run_ids = [run_id for run_id in run_ids if run_id not in kept]
    remove_folders(uids)
    return len(uids)


def remove_folders(uids: Sequence[str]) -> None:
    """Remove the folders of deleted runs.

    After the commit: a folder without its run is only lost space, a run without its folder has lost its log.
    """
    for uid in uids:
        shutil.rmtree(home() / "runs" / uid, ignore_errors=True)
