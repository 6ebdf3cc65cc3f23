"""Predictions of stored runs: what is known of them at once, and the button that asks for the rest."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable, Sequence

import streamlit as st

from app import formatting
from app.comparison import accuracy
from app.widgets import predictions
from app.widgets.predictions import Predicted
from db.runs import RunRow
from engine.spec import Measured, SpecError, parse_spec, spec_hash

#: So many specs are asked for by one press: thousands would keep the worker busy for hours.
ASKED_AT_ONCE = 500


@functools.cache
def installed() -> dict[str, str]:
    """The versions that predictions are made with here, by package."""
    return {name: importlib.metadata.version(name) for name in accuracy.PACKAGES}


def specs(rows: Iterable[RunRow]) -> dict[str, Measured]:
    """The spec of each measured run by the hash that it is stored under; those of another version are left out."""
    found: dict[str, Measured] = {}
    for row in rows:
        if row.spec_hash not in found:
            try:
                spec = parse_spec(row.spec)
            except SpecError:
                continue
            if isinstance(spec, Measured):
                found[row.spec_hash] = spec
    return found


def known(rows: Iterable[RunRow]) -> dict[str, Predicted]:
    """What is predicted of these runs, as far as it is known, by the hash that a run is stored under."""
    by_hash = specs(rows)
    found = predictions.known(by_hash.values())
    return {stored: found[now] for stored, spec in by_hash.items() if (now := spec_hash(spec)) in found}


def ask_button(rows: Sequence[RunRow], label: str, *, key: str, says_how_many: bool = True) -> None:
    """Asks for the predictions of runs that have none, and follows those that are on their way.

    Args:
        rows: the runs without a prediction.
        label: of the button.
        key: of the button.
        says_how_many: whether the number of specs without a prediction stands beside it.
    """
    missing = list(specs(rows).values())
    if not missing:
        return
    under_way = predictions.waiting(missing)
    left = [spec for spec in missing if spec_hash(spec) not in under_way]
    with st.container(horizontal=True, vertical_alignment="center"):
        if left:
            st.button(label, key=key, icon=":material/online_prediction:", on_click=_ask, args=(left[:ASKED_AT_ONCE],))
            if says_how_many:
                number = formatting.plural(len(left), "spec")
                st.markdown(f":gray[{number} without a prediction]", width="content")
        predictions.follow(missing)


def _ask(wanted: list[Measured]) -> None:
    predictions.ask(wanted)
