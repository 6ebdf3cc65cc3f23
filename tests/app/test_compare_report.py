"""The report of a comparison as data: which sections it has, and what it says of environments."""

from __future__ import annotations

from typing import Any

import pandas as pd

from app.comparison import board
from app.comparison.board import Board
from app.report import Section, report_html
from app.widgets import compare_export, compare_tables
from db import runs
from db.session import Database
from tests.app import stored


def built(database: Database, ids: list[int]) -> Board:
    with database.reading() as session:
        rows = runs.get_rows(session, ids)
        return board.build(rows, runs.environments(session, ids), runs.metric_values(session, run_ids=ids))


def sections(shown: Board) -> dict[str, Section]:
    baseline = shown.groups[0].label
    found = board.standings(shown, "init_time_s", baseline)
    table = compare_tables.statistics_table(shown, found)
    report = compare_export.report(shown, found, "init_time_s", baseline, None, [], [table], "today")
    assert "Init time" in report_html(report)
    return {section.heading: section for section in report.sections}


def store(database: Database, environment: dict[str, Any] | None) -> int:
    return stored.store(database, stored.init_document(), {**stored.result([0.2]), "environment": environment})


def column(table: pd.DataFrame | None, name: str) -> dict[str, str]:
    assert table is not None
    return dict(zip(table[""], table[name], strict=True))


def test_a_report_has_the_answer_the_tables_the_rule_the_runs_and_their_environments(database: Database) -> None:
    found = sections(built(database, stored.lora_and_dora(database)))
    assert list(found) == [
        "Init time",
        "Init time by group",
        "How verdicts are decided",
        "Runs",
        "Environments",
    ]
    assert "Baseline: LoRA · Stock PEFT." in found["Init time"].text
    facts = column(found["Environments"].table, "Environment 1")
    assert facts["runs"] == "1, 2, 3, 4"
    assert facts["memory"] == "16.0 GiB"
    assert facts["peft"] == "0.21.2"


def test_runs_without_a_record_of_their_environment_are_named_in_a_sentence(database: Database) -> None:
    ids = [store(database, stored.ENVIRONMENT), store(database, None), store(database, None)]
    part = sections(built(database, ids))["Environments"]
    assert part.text == "No environment is recorded of runs 2 and 3."
    assert part.table is not None
    assert list(part.table) == ["", "Environment 1"]
    alone = sections(built(database, ids[1:2]))["Environments"]
    assert alone.text == "No environment is recorded of run 2."
    assert alone.table is None


def test_where_a_run_was_measured_is_in_words(database: Database) -> None:
    table = sections(built(database, stored.lora_and_dora(database)))["Runs"].table
    assert table is not None
    assert set(table["Origin"]) == {"Measured here"}
