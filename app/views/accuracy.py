"""Accuracy: how far predicted peaks are from measured ones, over the stored runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import pandas as pd
import streamlit as st

from app import figures, formatting, state
from app.comparison import accuracy
from app.kinds import KINDS
from app.widgets import case_parts, labels, predicted_runs
from app.widgets.case_runs import Origin
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Card, Chart, cards, draw
from app.widgets.predictions import Predicted
from db import runs
from db.chunks import chunks
from db.runs import MetricValue, RunRow
from db.session import database_url

#: So many pairs of largest error are listed; all of them are in the download.
LISTED = 20
_TITLE = "Predicted beside measured peak memory, by run"


class Loaded(NamedTuple):
    """The runs that count, how many do not as they are of other versions, and the peaks of those that do."""

    rows: list[RunRow]
    of_others: int
    values: list[MetricValue]


def loaded(origin: Origin) -> Loaded:
    """The runs that predictions can be held against, how many were measured with other versions, their peaks.

    Read once for the runs that are stored now: while predictions come in, the page runs again and again.
    """
    with state.database().reading() as session:
        stored = runs.list_ids(session, kinds=list(KINDS), states=["succeeded"])
    return _loaded(database_url(), origin, tuple(stored))


# Not for long, as a run may be given another name.
@st.cache_resource(ttl=60, max_entries=4, show_spinner=False)
def _loaded(url: str, origin: Origin, run_ids: tuple[int, ...]) -> Loaded:
    origins = (labels.SAMPLE,) if origin == "sample" else ("local", "import")
    found: list[RunRow] = []
    of_others = 0
    with state.database().reading() as session:
        # In parts, as the environments of all runs at once would take more memory than all else on the page.
        for part in chunks(run_ids):
            rows = [row for row in runs.get_rows(session, part) if row.origin in origins]
            environments = runs.environments(session, [row.id for row in rows])
            of_these, others = accuracy.comparable(rows, environments, predicted_runs.installed())
            found += of_these
            of_others += others
        values = runs.metric_values(session, [row.id for row in found], accuracy.PEAKS)
    has_a_peak = {value.run_id for value in values}
    return Loaded([row for row in found if row.id in has_a_peak], of_others, values)


def answer(found: accuracy.Summary) -> None:
    """The errors in four numbers."""
    cards(
        [
            Card("Median error", percent(found.median), f"of {formatting.plural(found.pairs, 'peak')}"),
            Card("Worst error", percent(found.worst), "of what was measured"),
            Card("Exact to the byte", str(found.exact), f"of {formatting.plural(found.pairs, 'peak')}"),
            Card("Runs", str(found.runs), "measured and predicted"),
        ]
    )


def percent(size: float) -> str:
    """The size of an error."""
    return "0 %" if size == 0 else formatting.error(size).removeprefix("+")


def charts(found: pd.DataFrame) -> None:
    """Each pair against the diagonal, and the errors by kind and adapter."""
    by_label = accuracy.by_label(found)
    places = {label: place for place, label in enumerate(by_label["label"])}
    in_rows = found.sort_values("label", key=lambda labels: labels.map(places), kind="stable")
    colours = labels.adapter_colours()
    draw(
        [
            Chart(
                figures.predicted_measured(found, colours, title=_TITLE),
                "accuracy_scatter",
                f"{_TITLE}, {formatting.plural(len(found), 'pair')}; the dashed line is where both are equal",
            ),
            Chart(
                figures.errors(in_rows, colours, title="Error of each prediction, worst first"),
                "accuracy_errors",
                "Error of each prediction by kind and adapter, as a share of what was measured",
            ),
        ],
        columns=2,
    )


def tables(found: pd.DataFrame) -> None:
    """Errors by kind and adapter, and the runs that they are largest for."""
    by_label = accuracy.by_label(found)
    st.subheader("By kind and adapter", anchor=False)
    st.dataframe(
        pd.DataFrame(
            {
                "Kind and adapter": by_label["label"],
                "Runs": by_label["runs"],
                "Peaks": by_label["pairs"],
                "Exact": by_label["exact"],
                "Median error": by_label["median"].map(percent),
                "Worst error": by_label["worst"].map(percent),
            }
        ),
        hide_index=True,
        alt="Errors of predictions by kind and adapter",
    )
    table_downloads(by_label, "accuracy_by_adapter")
    worst = accuracy.worst_first(found)
    st.subheader("Largest errors" if len(worst) > LISTED else "Every peak, largest error first", anchor=False)
    listed = worst.head(LISTED)
    st.dataframe(
        pd.DataFrame(
            {
                "Run": [f"run?id={run_id}" for run_id in listed["run_id"]],
                "What": listed["text"].str.rpartition(" · ")[0],
                "Metric": listed["metric"].map(formatting.metric_title),
                "Predicted": listed["predicted"].map(formatting.size),
                "Measured": listed["measured"].map(formatting.size),
                "Error": listed["error"].map(formatting.error),
                "Runs": listed["runs"],
            }
        ),
        hide_index=True,
        alt="Predicted and measured peaks with their errors, the largest first",
        column_config={"Run": st.column_config.LinkColumn(display_text=r"id=(\d+)", width="small")},
    )
    table_downloads(worst, "accuracy")


def left_out(rows: Sequence[RunRow], known: dict[str, Predicted], of_others: int) -> None:
    """What has no error, and why."""
    if of_others:
        versions = formatting.listing(f"{name} {version}" for name, version in predicted_runs.installed().items())
        st.caption(
            f"{formatting.plural(of_others, 'run')} left out: measured with other versions than those installed here, "
            f"which predictions are made with ({formatting.plain(versions)})."
        )
    refused: dict[str, set[int]] = {}
    for row in rows:
        if (predicted := known.get(row.spec_hash)) is not None and predicted.error is not None:
            refused.setdefault(predicted.error, set()).add(row.id)
    if refused:
        with st.expander(f"{formatting.plural(sum(map(len, refused.values())), 'run')} that cannot be predicted"):
            for sentence, ids in sorted(refused.items(), key=lambda item: -len(item[1])):
                st.markdown(f"- {formatting.plain(formatting.sentence(sentence))} {ids_text(ids)}")


def ids_text(ids: Collection[int]) -> str:
    """The first of some runs: ":gray[Runs 1, 2, 3 and 4 more]"."""
    first, more = sorted(ids)[:5], len(ids) - 5
    names = formatting.listing([*map(str, first), *([f"{more} more"] if more > 0 else [])])
    return f":gray[{'Run' if len(ids) == 1 else 'Runs'} {names}]"


st.title("Accuracy", anchor=False)
st.caption(
    "The predicted peak of memory against the measured one, for every stored run. "
    "Bytes on a CPU are counted exactly; a GPU's allocator is modelled."
)
origin = case_parts.chosen_origin(has_local=True)
rows, of_others, values = loaded(origin)
if not rows:
    with st.container(border=True, horizontal_alignment="center"):
        st.markdown(
            "No stored run of these versions has a peak to compare with."
            if of_others
            else "Nothing is measured yet, so there is no peak to compare with.",
            text_alignment="center",
        )
        if st.button("Measure something", type="primary", icon=":material/rocket_launch:"):
            st.switch_page("views/launch.py", query_params={"kind": "train"})
    st.stop()
known = predicted_runs.known(rows)
predicted_runs.ask_button(accuracy.missing(rows, known), "Predict all stored runs", key="predict_all")
found = accuracy.frame(rows, values, {key: one.metrics for key, one in known.items()})
summary = accuracy.summary(found)
if summary is not None:
    answer(summary)
    charts(found)
    tables(found)
left_out(rows, known, of_others)
