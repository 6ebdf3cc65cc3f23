"""The sample data that comes with the project: really measured runs, one click to load and one to remove.

They are stored with the origin ``sample``, which every page that shows them says, and which keeps them out of what is
said of this machine.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import formatting, people, state
from app.widgets import acting, labels, manage
from db import runs, transfer
from engine.catalog.documents import document_spec

ORIGIN = labels.SAMPLE
FILE = Path(__file__).resolve().parents[1] / "samples" / "runs.json.gz"
_LARGEST_BYTES = 256 * 2**20


@people.told
def offer() -> None:
    """One sentence and a button that loads the sample data; nothing where it is loaded."""
    if are_loaded():
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("See every chart now, with runs that were measured elsewhere.", width="content")
        if acting.button("Load sample data", key="samples_load", icon=":material/science:"):
            with st.spinner("Loading sample data"):
                load()
            st.rerun()


@people.told
def remove_offer() -> None:
    """One sentence that sample data is shown, and a button that removes it; nothing where there is none."""
    number = len(_ids())
    if not number:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"{formatting.plural(number, 'run')} here {'is' if number == 1 else 'are'} sample data, "
            "measured on other machines.",
            width="content",
        )
        if acting.button("Remove sample data", key="samples_remove", icon=":material/delete_sweep:"):
            remove()
            st.rerun()


def badge() -> None:
    """The mark of a run that is sample data."""
    st.badge("Sample data", icon=":material/science:", color="violet")


def are_loaded() -> bool:
    """Whether any sample run is stored."""
    return bool(_ids())


def load() -> int:
    """Store the sample runs that are not here yet. Returns how many that were."""
    people.require()
    checked = transfer.check_file(FILE.read_bytes(), document_spec, largest_bytes=_LARGEST_BYTES)
    with people.acting("load sample data") as act:
        new = [run_id for run_id, created in transfer.store_runs(act.session, checked, origin=ORIGIN) if created]
        act.run_ids = new
    return len(new)


def remove() -> int:
    """Delete the sample runs. Returns how many that were."""
    ids = _ids()
    with people.acting("remove sample data") as act:
        runs.archive(act.session, ids)
        uids = runs.delete(act.session, ids)
        act.run_ids = ids
    manage.remove_folders(uids)
    return len(uids)


def _ids() -> list[int]:
    with state.database().reading() as session:
        return transfer.ids_of_origin(session, ORIGIN)
