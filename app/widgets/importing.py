"""Importing exported runs: a button, a dialog to drop files on, and one sentence for each file.

Every file is checked as a whole before anything of it is stored, and is stored in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import formatting, people
from app.widgets import acting
from db import transfer
from engine.catalog.documents import document_spec

_MAX_UPLOAD_MIB = 64
_MAX_UNPACKED_BYTES = 384 * 2**20
_OUTCOMES = "import_outcomes"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: how many of its runs are new and how many were here, or why it was refused."""

    new: int = 0
    known: int = 0
    refusal: str | None = None


def import_button() -> None:
    """A button that opens the import dialog. When that is closed the page runs again, so that new runs appear."""
    if acting.button(
        "Import", key="import_open", icon=":material/upload_file:", help="Runs exported on another machine."
    ):
        st.session_state.pop(_OUTCOMES, None)
        import_dialog()


def outcome_text(outcome: Outcome) -> str:
    """One sentence: "2 runs imported, 3 were here already."."""
    if outcome.refusal is not None:
        return formatting.sentence(outcome.refusal)
    if not outcome.new:
        its = "its run was" if outcome.known == 1 else f"all of its {outcome.known} runs were"
        return f"Nothing new: {its} here already."
    skipped = f", {outcome.known} {'was' if outcome.known == 1 else 'were'} here already" if outcome.known else ""
    return f"{formatting.plural(outcome.new, 'run')} imported{skipped}."


@st.dialog("Import runs", icon=":material/upload_file:", on_dismiss="rerun")
def import_dialog() -> None:
    """The dialog: each file that is dropped on it is stored or refused at once, and says so."""
    files = st.file_uploader(
        "Results as PEFT Lab exports them: JSON, one run or many, as it is or packed with gzip.",
        type=["json", "gz"],
        accept_multiple_files=True,
        max_upload_size=_MAX_UPLOAD_MIB,
        key="import_files",
    )
    outcomes: dict[str, Outcome] = st.session_state.setdefault(_OUTCOMES, {})
    place = st.empty()
    for file in files:
        # Whatever is done in the dialog runs it again, with the same files.
        if file.file_id not in outcomes:
            outcomes[file.file_id] = _store(file.name, file.getvalue(), place)
    for file in files:
        outcome = outcomes[file.file_id]
        show, icon = (st.error, "error") if outcome.refusal else (st.success, "check_circle")
        show(f"**{formatting.plain(file.name)}**: {formatting.plain(outcome_text(outcome))}", icon=f":material/{icon}:")
    if any(outcome.new for outcome in outcomes.values()) and st.button("Show them", type="primary"):
        st.rerun()


def _store(name: str, data: bytes, place: DeltaGenerator) -> Outcome:
    """Check and store one file, with the number of runs done so far in its place while it lasts."""
    shown = formatting.plain(name)
    try:
        # Not even read for who may only look.
        people.require()
        checked = transfer.check_file(
            data,
            document_spec,
            largest_bytes=_MAX_UNPACKED_BYTES,
            progress=_now_and_then(lambda done: place.caption(f"Checking {shown}: {formatting.plural(done, 'run')}")),
        )
        with people.acting("import") as act:
            stored = transfer.store_runs(
                act.session,
                checked,
                progress=_now_and_then(
                    lambda done: place.progress(done / len(checked), f"Storing {shown}: {done} of {len(checked)}")
                ),
            )
            if new := [run_id for run_id, created in stored if created]:
                act.run_ids, act.detail = new, name
    except (transfer.ImportRefused, people.NotAllowed) as error:
        return Outcome(refusal=str(error))
    finally:
        place.empty()
    return Outcome(new=len(new), known=len(stored) - len(new))


def _now_and_then(show: Callable[[int], object]) -> Callable[[int], None]:
    """``show`` for every twentieth step only: drawing each would take as long as the step itself."""

    def step(done: int) -> None:
        if done % 20 == 0:
            show(done)

    return step
