"""The Compare page as one HTML file: exactly what is shown, with its rule, environments and notes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pandas as pd
import streamlit as st

from app import formatting, state
from app.comparison import board, environments, fields, verdicts
from app.comparison.board import Board, Standing
from app.comparison.environments import Identity
from app.report import Report, Section, report_html
from app.widgets import compare_tables, labels
from app.widgets.compare_tables import Table
from app.widgets.metrics import Chart


def button(
    shown: Board,
    found: Sequence[Standing],
    metric: str,
    baseline: str,
    warning: str | None,
    charts: Sequence[Chart],
    tables: Sequence[Table],
) -> None:
    """Downloads the report; it is made when asked for."""
    made_at = formatting.moment(time.time(), state.zone())
    st.download_button(
        "HTML report",
        data=lambda: report_html(report(shown, found, metric, baseline, warning, charts, tables, made_at)),
        file_name="comparison.html",
        mime="text/html",
        icon=":material/download:",
        on_click="ignore",
        help="What is shown here in one file that opens anywhere, charts included.",
    )


def report(
    shown: Board,
    found: Sequence[Standing],
    metric: str,
    baseline: str,
    warning: str | None,
    charts: Sequence[Chart],
    tables: Sequence[Table],
    made_at: str,
) -> Report:
    """What the page shows as a report.

    Args:
        shown: runs and groups.
        found: how each group stands in the metric.
        metric: the one that verdicts are on.
        baseline: label of the group that all are held against.
        warning: what differs in the environments, None where nothing does.
        charts: as shown.
        tables: as shown.
        made_at: moment, as text.
    """
    runs = formatting.plural(len(shown.rows), "run")
    sentences = [sentence for _, sentence in compare_tables.answer_sentences(shown, found)]
    scale = "All values are multiples of the baseline in the same environment." if shown.is_normalised else ""
    answer = [f"Baseline: {baseline}.", scale, warning or "", *sentences]
    sections = [
        Section(board.title(metric), "\n\n".join(filter(None, answer))),
        *(Section("", figure=chart.figure, alt=chart.alt) for chart in charts),
        *(Section(table.heading, table=table.shown) for table in tables if len(table.shown.columns)),
        Section("How verdicts are decided", verdicts.RULE.replace("**", "").replace("\n- ", "\n\n")),
        Section("Runs", table=_runs(shown)),
        Section("Environments", _unrecorded(shown), table=_environments(shown)),
    ]
    title = f"{labels.kind_label(shown.rows[0].kind)}: {board.title(metric)} of {runs}"
    return Report(title, f"Made {made_at} by PEFT Lab", tuple(sections))


def _runs(shown: Board) -> pd.DataFrame:
    """The runs with what people wrote on them."""
    return pd.DataFrame(
        [
            {
                "Run": str(row.id),
                "Name": labels.run_title(row),
                "State": formatting.state_text(row.state),
                "Measured": formatting.moment(row.finished_at or row.created_at, state.zone()),
                "Origin": labels.origin_label(row.origin) or "Measured here",
                "Tags": ", ".join(row.tags),
                "Note": row.note or "",
            }
            for row in shown.rows
        ]
    )


def _unrecorded(shown: Board) -> str:
    """Which runs are on none of the environments, empty where there is none such."""
    ids = [str(row.id) for row in shown.rows if not shown.identities[row.id]]
    return f"No environment is recorded of run{'s' if len(ids) > 1 else ''} {formatting.listing(ids)}." if ids else ""


def _environments(shown: Board) -> pd.DataFrame | None:
    """One column per environment, with the runs that were measured on it; None where none is recorded."""
    runs: dict[Identity, list[int]] = {}
    for row in shown.rows:
        if identity := shown.identities[row.id]:
            runs.setdefault(identity, []).append(row.id)
    if not runs:
        return None
    names = list(dict.fromkeys(name for identity in runs for name, _ in identity))
    table = pd.DataFrame({"": ["runs", *map(environments.spoken, names)]})
    for number, (identity, ids) in enumerate(runs.items(), start=1):
        values = dict(identity)
        texts = [fields.text(name, values.get(name)) for name in names]
        table[f"Environment {number}"] = [", ".join(map(str, ids)), *texts]
    return table
