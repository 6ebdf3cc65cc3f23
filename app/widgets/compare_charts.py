"""The charts of the Compare page: which view is chosen, along which axes, and the figures of it."""

from __future__ import annotations

import functools

import pandas as pd
import streamlit as st

from app import figures, formatting
from app.comparison import board, fields
from app.comparison.board import Board
from app.kinds import KINDS, comparing
from app.widgets import address, labels, predicted_runs, presenting
from app.widgets.metrics import Chart

ONE = "One metric"
TWO = "Two metrics"
ALL = "Parallel"
GROUPS = "Groups"
# Axes of the parallel coordinates that are chosen at first: fields, then metrics.
_FIRST_FIELDS = 5
_FIRST_METRICS = 3


def chosen(shown: Board, metric: str, baseline: str, facet: str | None) -> list[Chart]:
    """Asks which charts are wanted and along what, and returns them."""
    kind = shown.rows[0].kind
    of_kind = f"All of {labels.kind_label(kind).lower()}"
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        view = address.tab("Charts", [ONE, of_kind, TWO, ALL], key="chart")
        wide = board.wide_fields(shown)
        if view == ONE:
            return _one(shown, wide, metric, baseline, facet)
        if view == TWO:
            return _two(shown, wide, metric, baseline, facet)
        if view == ALL:
            return _parallel(shown, wide, metric)
    wide = predicted_runs.beside(wide, shown.rows)
    found: list[Chart] = KINDS[kind].compare_charts(board.charted(shown), wide, baseline=baseline, facet=facet)
    if not found:
        st.caption("These runs have no numbers for these charts.")
    elif kind == "train" and not presenting.is_on():
        predicted_runs.ask_for_missing(shown.rows, "Predict their peaks", key="predict_compared")
    return found


def _one(shown: Board, wide: pd.DataFrame, metric: str, baseline: str, facet: str | None) -> list[Chart]:
    numeric = [name for name in comparing.varying(wide, fields.differing(shown.flats)) if name != facet]
    against = GROUPS
    if numeric:
        against = address.one("Against", [GROUPS, *numeric], key="along", default=GROUPS, width=200)
    frame = board.charted(shown)
    named = frame.assign(name=frame["metric"].fillna(""))
    return comparing.metric_chart(
        named,
        wide,
        metric,
        title=board.title(metric),
        key="compare_one",
        along=() if against == GROUPS else (against,),
        baseline=baseline,
        facet=facet,
        variants=True,
    )


def _two(shown: Board, wide: pd.DataFrame, metric: str, baseline: str, facet: str | None) -> list[Chart]:
    names = board.metrics(shown)
    other = next((name for name in names if name != metric and _is_other(shown, name, metric)), names[-1])
    x = address.one("Horizontal", names, key="x", default=metric, text=board.title, width=200)
    y = address.one("Vertical", names, key="y", default=other, text=board.title, width=200)
    frame = board.charted(shown)
    named = frame[frame["metric"].isin([x, y])]
    named = named.assign(name=named["metric"])
    measured = named[named["value"].notna()]
    if not set(measured.loc[measured["name"] == x, "group"]) & set(measured.loc[measured["name"] == y, "group"]):
        st.caption("No group has both.")
        return []
    draw = functools.partial(figures.scatter, colours=labels.adapter_colours(), x=x, y=y, baseline=baseline)
    alt = (
        f"{board.title(y)} against {board.title(x)}, a point per group; the dotted line joins those that no other beats"
    )
    return [Chart(comparing.in_panels(named, wide, facet, draw), "compare_two", alt, is_wide=True)]


def _is_other(shown: Board, name: str, metric: str) -> bool:
    """Whether a metric tells something else: memory beside a time or a speed, with a direction of its own."""
    units = {shown.units[name], shown.units[metric]}
    return len(units) == 2 and units != {"s", "tokens/s"} and formatting.better(name) is not None


def _parallel(shown: Board, wide: pd.DataFrame, metric: str) -> list[Chart]:
    varying = [name for name in fields.differing(shown.flats) if name not in ("name", "note", "tag", "sweep")]
    configured = [
        name
        for name in varying
        if not name.startswith("environment.") and wide[name].dropna().astype(str).nunique() > 1
    ]
    metrics = [metric, *(name for name in board.metrics(shown) if name != metric)]
    axes = address.several(
        "Axes",
        [*varying, *metrics],
        key="axes",
        default=[*configured[:_FIRST_FIELDS], *metrics[:_FIRST_METRICS]],
        text=lambda name: board.title(name) if name in shown.units else name,
        placeholder="Fields and metrics",
        width=480,
    )
    own = shown.frame[shown.frame["group"] == shown.frame["run_id"].map(wide["group"])]
    medians = own.groupby(["run_id", "metric"])["value"].median().unstack()
    table = wide.assign(adapter=wide["adapter"].fillna("")).join(medians[[name for name in axes if name in medians]])
    dimensions = [
        figures.Dimension(name, board.title(name), _unit(shown, name), formatting.better(name.partition("@")[0]))
        if name in shown.units
        else figures.Dimension(name, comparing.field_title(name))
        for name in axes
        if name in table
    ]
    figure = figures.parallel(
        table, labels.adapter_colours(), dimensions=dimensions, title="Fields and metrics of every run"
    )
    alt = f"A line per run through {formatting.listing(dimension.title for dimension in dimensions) or 'no axis'}"
    return [Chart(figure, "compare_parallel", alt, is_wide=True)]


def _unit(shown: Board, metric: str) -> str:
    return "ratio" if shown.is_normalised else shown.units[metric]
