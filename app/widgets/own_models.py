"""What pages know of a model: bundled ones from the catalog, others from an inspection that goes through the queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from app import formatting, people, state
from app.widgets import acting, labels, launching, progress
from db import runs
from db.runs import RunRow
from engine import catalog
from engine.catalog import ModuleGroup, requirements
from engine.spec import SpecError, parse_spec


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Parameters (None while unknown) and module groups (None until inspected) of one model."""

    parameters: int | None
    groups: tuple[ModuleGroup, ...] | None


def is_bundled(model: str) -> bool:
    """Whether the catalog holds this model."""
    return model in catalog.models()


def facts(model: str) -> ModelFacts:
    """What is known of a model without waiting."""
    if is_bundled(model):
        entry = catalog.model(model)
        return ModelFacts(entry.parameters, entry.groups)
    with state.database().reading() as session:
        inspection = runs.latest_inspection(session, model)
    if inspection is None:
        return ModelFacts(None, None)
    return ModelFacts(inspection.get("parameters"), tuple(ModuleGroup.from_json(item) for item in inspection["groups"]))


@st.cache_data(ttl=30, max_entries=50, show_spinner="Looking for the model")
def problem(model: str) -> str | None:
    """Why a model cannot be used, as one sentence; kept for a while, as it looks at files and perhaps the network."""
    try:
        found = requirements.problems(parse_spec({"kind": "inspect", "model": model}), state.devices(), None)
    except SpecError as error:
        return str(error)
    return str(found[0]) if found else None


def last_inspection(model: str) -> RunRow | None:
    """The latest inspection of a model in any state."""
    with state.database().reading() as session:
        found = runs.list_runs(session, kinds=["inspect"], models=[model], include_archived=True, limit=1)
    return found[0] if found else None


@people.told
def inspect(model: str) -> None:
    """Queue an inspection of a model."""
    launching.launch([parse_spec({"kind": "inspect", "model": model})])


def inspection_status(model: str) -> None:
    """For a model that is not known yet: inspect it once, show that it is under way, or why it did not work."""
    if acting.is_refused():
        return
    if sentence := problem(model):
        st.error(formatting.plain(formatting.sentence(sentence)), icon=":material/error:")
        return
    last = last_inspection(model)
    if last is None:
        inspect(model)
        last = last_inspection(model)
    if last is None or last.state in ("queued", "running"):
        _wait(model)
    elif last.state != "succeeded":
        with st.container(horizontal=True, vertical_alignment="center"):
            st.error(
                f"{formatting.plain(labels.model_label(model))}: "
                f"{formatting.plain(last.error_text or formatting.state_text(last.state))}",
                icon=":material/error:",
            )
            acting.button("Inspect again", key=f"inspect_{model}", on_click=inspect, args=(model,))


@st.fragment(run_every=state.LIVE_EVERY_S)
def _wait(model: str) -> None:
    last = last_inspection(model)
    if last is not None and last.state not in ("queued", "running"):
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f":material/hourglass_top: Inspecting {formatting.plain(labels.model_label(model))}", width="content"
        )
        progress.supervisor_badge()


def known_groups(models: Sequence[str]) -> dict[str, tuple[ModuleGroup, ...]]:
    """Module groups of the models whose groups are known, in the given order."""
    found = {}
    for model in models:
        groups = facts(model).groups
        if groups:
            found[model] = groups
    return found
