"""Predictions of stored runs: what is known of them at once, and the button that asks for the rest."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Iterable, Sequence

import pandas as pd
import streamlit as st

from app import formatting
from app.comparison import accuracy
from app.kinds import comparing
from app.widgets import acting, predictions
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
            spec = _parsed(json.dumps(row.spec))
            if spec is not None:
                found[row.spec_hash] = spec
    return found


@functools.lru_cache(maxsize=10_000)
def _parsed(text: str) -> Measured | None:
    """Kept, as a page that follows predictions reads the same specs again and again."""
    try:
        spec = parse_spec(text)
    except SpecError:
        return None
    return spec if isinstance(spec, Measured) else None


def known(rows: Iterable[RunRow]) -> dict[str, Predicted]:
    """What is predicted of these runs, as far as it is known, by the hash that a run is stored under."""
    by_hash = specs(rows)
    found = predictions.known(by_hash.values())
    return {stored: found[now] for stored, spec in by_hash.items() if (now := spec_hash(spec)) in found}


def beside(fields: pd.DataFrame, rows: Sequence[RunRow]) -> pd.DataFrame:
    """The fields of compared runs with the predicted peak of each (``comparing.PREDICTED_PEAK``), where it is known.

    Runs of other versions than those that predictions are made with have none.

    Args:
        fields: one line per run, as ``board.wide_fields`` has them.
        rows: the runs.
    """
    found = known(rows)
    peaks = {
        row.id: one.metrics.get(("peak_bytes", None))
        for row in rows
        if (one := found.get(row.spec_hash)) is not None and _is_of_these_versions(fields, row.id)
    }
    return fields.assign(**{comparing.PREDICTED_PEAK: pd.Series(peaks, dtype=float).reindex(fields.index)})


def _is_of_these_versions(fields: pd.DataFrame, run_id: int) -> bool:
    names = {name: f"environment.packages.{name}" for name in accuracy.PACKAGES}
    packages = {name: fields.at[run_id, column] for name, column in names.items() if column in fields}
    # A run out of memory may have recorded nothing; what it would have taken is worth knowing all the same.
    is_unknown = not any(isinstance(version, str) for version in packages.values())
    return is_unknown or accuracy.is_of_these_versions({"packages": packages}, installed())


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
            acting.button(
                label, key=key, icon=":material/online_prediction:", on_click=_ask, args=(left[:ASKED_AT_ONCE],)
            )
            if says_how_many:
                number = formatting.plural(len(left), "spec")
                st.markdown(f":gray[{number} without a prediction]", width="content")
        predictions.follow(missing)


def ask_for_missing(rows: Sequence[RunRow], label: str, *, key: str) -> None:
    """:func:`ask_button` for those of the runs that have no prediction yet."""
    ask_button(accuracy.missing(rows, known(rows)), label, key=key)


def _ask(wanted: list[Measured]) -> None:
    predictions.ask(wanted)
