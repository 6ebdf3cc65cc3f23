"""The table of runs as data: which columns it has, in which units, and what the grid shows."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from app.filtering import Known
from app.widgets import run_table
from db.conditions import MetricField
from db.runs import RunRow, StoredMetric

KNOWN = Known.of(
    [StoredMetric("step_time_s", ("stock",), "s"), StoredMetric("peak_bytes", (), "bytes")],
    [("packages", "peft"), ("gpus",)],
)
STEP = MetricField("step_time_s")


def row(run_id: int = 1, kind: str = "train", **fields: Any) -> RunRow:
    usual: dict[str, Any] = dict.fromkeys(RunRow.__slots__)
    usual |= {"id": run_id, "uid": "u", "kind": kind, "state": "succeeded", "origin": "local", "model": "gpt2"}
    usual |= {"device": "cpu", "spec": {"train": {"context_length": 512}}, "tags": (), "finished_at": 60.0}
    return RunRow(**{**usual, "strategy": "stock", **fields})


def build(
    rows: list[RunRow], medians: run_table.Medians | None = None, added: tuple[str, ...] = (), **more: Any
) -> run_table.RunTable:
    entries = [KNOWN.find(name) for name in added]
    assert all(entries)
    environments = more.get("environments", {})
    return run_table.build(rows, medians or {}, environments, entries, more.get("hidden", ()), KNOWN.units)  # type: ignore[arg-type]


def test_any_metric_variant_spec_field_environment_field_and_column_can_be_added() -> None:
    stock = MetricField("step_time_s", "stock")
    added = ("step_time_s@stock", "train.context_length", "environment.packages.peft", "environment.gpus", "replica")
    environment = {"packages": {"peft": "0.21.2"}, "gpus": [{"name": "H200"}]}
    table = build([row(replica=3)], {(1, stock): 0.25}, added, environments={1: environment})
    assert [table.stored[name].iloc[0] for name in added] == [0.25, 512, "0.21.2", "H200", 3]
    assert [table.shown[name].iloc[0] for name in added] == [250.0, 512.0, "0.21.2", "H200", 3.0]
    assert table.config["step_time_s@stock"]["label"] == "Step time @ stock, ms"


def test_a_run_that_lacks_an_added_field_has_an_empty_cell() -> None:
    stock = MetricField("step_time_s", "stock")
    table = build([row(1), row(2, spec={})], {(1, stock): 2.0}, ("step_time_s@stock", "train.context_length", "sweep"))
    assert pd.isna(table.shown["step_time_s@stock"].iloc[1])
    assert pd.isna(table.shown["train.context_length"].iloc[1])
    assert table.shown["sweep"].isna().all()


def test_usual_columns_can_be_hidden_and_those_without_a_value_go_by_themselves() -> None:
    table = build([row(name="Mine")], hidden=("model", "dtype"))
    assert not {"model", "dtype", "kind", "tags", "problem", "origin"} & set(table.shown)
    assert "name" in table.shown
    assert not {"model", "dtype"} & set(table.stored)


@pytest.mark.parametrize(("origin", "shown"), [("sample", "Sample data"), ("import", "Imported")])
def test_runs_that_were_not_measured_here_say_so(origin: str, shown: str) -> None:
    table = build([row(1), row(2, origin=origin)])
    assert list(table.shown["origin"]) == ["", shown]


def test_runs_of_several_kinds_share_one_column_which_is_exported_by_metric() -> None:
    medians = {(1, STEP): 2.0, (2, MetricField("init_time_s")): 0.5, (2, MetricField("init_peak_extra_bytes")): 2.0**21}
    table = build([row(1), row(2, kind="init", spec={})], medians)
    assert list(table.shown["result"]) == ["Step 2.00 s", "Attach 500 ms"]
    assert list(table.shown["peak"]) == ["", "+2.00 MiB"]
    assert table.stored["init_s"].iloc[1] == 0.5
    assert "result" not in table.stored


def test_a_column_of_numbers_has_one_unit_that_fits_its_largest_value() -> None:
    peak = MetricField("peak_bytes")
    table = build([row(1), row(2)], {(1, peak): 3 * 2.0**30, (2, peak): 2.0**30})
    assert table.config["peak_bytes"]["label"].endswith("GiB")
    assert list(table.shown["peak_bytes"]) == [3.0, 1.0]
    assert list(table.stored["peak_bytes"]) == [3 * 2.0**30, 2.0**30]


def test_true_and_false_are_words_and_markup_stays_as_typed() -> None:
    spec = {"train": {"context_length": 512, "gradient_checkpointing": True}}
    table = build([row(spec=spec, note="<b>*x*</b>")], added=("train.gradient_checkpointing", "note"))
    assert table.shown["train.gradient_checkpointing"].iloc[0] == "true"
    assert table.shown["note"].iloc[0] == "<b>*x*</b>"


def test_only_the_metrics_that_the_rows_kinds_show_are_asked_for() -> None:
    added = [KNOWN.find("step_time_s@stock")]
    wanted = run_table.metrics_of([row(kind="init")], added)  # type: ignore[arg-type]
    assert set(wanted) == {
        MetricField("init_time_s"),
        MetricField("init_peak_extra_bytes"),
        MetricField("step_time_s", "stock"),
    }


def test_a_metric_that_the_kind_shows_anyway_is_no_second_column() -> None:
    assert "step_time_s" not in build([row(1)], {(1, STEP): 2.0}, ("step_time_s",)).shown
    assert "step_time_s" in build([row(1), row(2, kind="init")], {(1, STEP): 2.0}, ("step_time_s",)).shown
