"""Narrowing and ordering lists by conditions: each kind of field, every operator, and what a missing field does."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.dialects import postgresql

from db import runs
from db.conditions import (
    And,
    Column,
    Compare,
    Condition,
    EnvironmentField,
    MetricField,
    Not,
    Or,
    Order,
    SpecField,
)
from db.filters import arranged
from db.listing import NEWEST_FIRST
from db.models import Run
from db.session import Database
from tests.db.conftest import metric

RANK = SpecField(("adapter", "rank"))
DORA = SpecField(("adapter", "options", "use_dora"))
TARGETS = SpecField(("adapter", "target_modules"))
PEFT = EnvironmentField(("packages", "peft"))
TIME = MetricField("init_time_s")


def found(database: Database, condition: Condition) -> set[int]:
    with database.reading() as session:
        return set(runs.list_ids(session, where=condition))


def spec(**adapter: Any) -> dict[str, Any]:
    return {"kind": "init", "model": "tiny-test", "device": "cpu", "adapter": adapter}


@pytest.fixture
def stored(database: Database, finished, enqueue) -> Database:
    """Run 1: LoRA, median 2. Run 2: DoRA, median 4. Run 3: queued, nothing measured, no adapter."""
    three = [metric("init_time_s", value, repeat=number) for number, value in enumerate([2.0, 1.0, 9.0])]
    four = [metric("init_time_s", value, repeat=number) for number, value in enumerate([8.0, 3.0, 1.0, 5.0])]
    finished(
        {"state": "succeeded", "metrics": three, "environment": {"cores": 2, "packages": {"peft": "0.21.2"}}},
        adapter="LoRA",
        model="TinyLlama",
        spec=spec(rank=16, options={"use_dora": False}, target_modules="all-linear"),
    )
    finished(
        {"state": "succeeded", "metrics": four, "environment": {"cores": 64, "packages": {"peft": "0.20.0"}}},
        adapter="DoRA",
        spec=spec(rank=8, options={"use_dora": True}, target_modules=["k_proj", "q_proj"]),
        sweep_name="Friday 100%",
    )
    enqueue(adapter=None, spec={"kind": "init", "adapter": None})
    with database.writing() as session:
        runs.set_tags(session, [1], ["paper", "fast"])
        runs.set_tags(session, [2], ["paper"])
        runs.set_note(session, 2, "O'Brien; DROP TABLE runs --")
    return database


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Compare(Column("model"), "=", "tinyllama"), {1}),
        (Compare(Column("id"), "<=", 1.5), {1}),
        (Compare(Column("id"), "=", 1.5), set()),
        (Compare(Column("id"), "<", 1e300), {1, 2, 3}),
        (Compare(Column("model"), "~", "LLAMA"), {1}),
        (Compare(Column("adapter"), "!=", "lora"), {2, 3}),
        (Compare(Column("adapter"), "=", None), {3}),
        (Compare(Column("adapter"), "!=", None), {1, 2}),
        (Compare(Column("sweep"), "~", "100%"), {2}),
        (Compare(Column("sweep"), "~", "y_1"), set()),
        (Compare(Column("note"), "=", "O'Brien; DROP TABLE runs --"), {2}),
        (Compare(Column("id"), ">=", 2.0), {2, 3}),
        (Compare(Column("failed_checks"), "=", 0.0), {1, 2}),
        (Compare(Column("finished"), ">", 1e9), {1, 2}),
        (Compare(Column("finished"), "=", None), {3}),
        (Compare(Column("tag"), "=", "Paper"), {1, 2}),
        (Compare(Column("tag"), "!=", "fast"), {2, 3}),
        (Compare(Column("tag"), "~", "as"), {1}),
        (Compare(Column("tag"), "=", None), {3}),
        (Compare(RANK, "=", 16.0), {1}),
        (Compare(RANK, "<", 16.0), {2}),
        (Compare(RANK, "!=", 16.0), {2, 3}),
        (Compare(RANK, "=", None), {3}),
        (Compare(DORA, "=", "true"), {2}),
        (Compare(TARGETS, "~", "q_proj"), {2}),
        (Compare(TARGETS, ">", 5.0), set()),
        (Compare(PEFT, "=", "0.21.2"), {1}),
        (Compare(PEFT, ">", 0.1), set()),
        (Compare(EnvironmentField(("cores",)), ">=", 3.0), {2}),
        (Compare(TIME, "=", 2.0), {1}),
        (Compare(TIME, "=", 4.0), {2}),
        (Compare(TIME, "!=", 4.0), {1, 3}),
        (Compare(TIME, "<=", 4.0), {1, 2}),
        (Compare(TIME, "=", None), {3}),
        (Compare(TIME, "!=", None), {1, 2}),
        (Compare(MetricField("init_time_s", "stock"), "<", 99.0), set()),
        (Not(Compare(TIME, ">", 3.0)), {1, 3}),
        (And((Compare(TIME, ">", 1.0), Not(Compare(TIME, ">", 3.0)))), {1}),
        (Or((Compare(Column("adapter"), "=", "LoRA"), Compare(RANK, "=", 8.0))), {1, 2}),
        (Not(Or((Compare(Column("adapter"), "=", "LoRA"), Compare(RANK, "=", 8.0)))), {3}),
        (And(()), {1, 2, 3}),
        (Or(()), set()),
    ],
)
def test_a_condition_finds_the_runs_for_which_it_holds(
    stored: Database, condition: Condition, expected: set[int]
) -> None:
    assert found(stored, condition) == expected


def test_a_condition_is_combined_with_the_other_filters(stored: Database) -> None:
    with stored.reading() as session:
        condition = Compare(Column("tag"), "=", "paper")
        assert [row.id for row in runs.list_runs(session, where=condition, adapters=["DoRA"])] == [2]


def test_any_value_is_bound_and_none_becomes_part_of_the_statement(stored: Database) -> None:
    text = "'; DROP TABLE runs; --"
    for field in (Column("name"), Column("tag"), RANK, PEFT, SpecField(('a"].b', "'")), EnvironmentField((text,))):
        assert found(stored, Compare(field, "=", text)) == set()
    assert found(stored, And(())) == {1, 2, 3}


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Order(TIME), [1, 2, 3]),
        (Order(TIME, is_descending=True), [2, 1, 3]),
        (Order(RANK), [2, 1, 3]),
        (Order(Column("adapter")), [2, 1, 3]),
        (Order(Column("adapter"), is_descending=True), [1, 2, 3]),
        (Order(Column("tag")), [1, 2, 3]),
        (Order(PEFT), [2, 1, 3]),
        (Order(Column("kind")), [3, 2, 1]),
        (NEWEST_FIRST, [3, 2, 1]),
    ],
)
def test_lists_are_ordered_by_any_field_with_runs_that_lack_it_at_the_end(
    stored: Database, order: Order, expected: list[int]
) -> None:
    with stored.reading() as session:
        assert runs.list_ids(session, order=order) == expected
        assert [row.id for row in runs.list_runs(session, order=order, limit=2)] == expected[:2]


def test_a_list_is_narrowed_and_ordered_by_the_same_metric(stored: Database) -> None:
    with stored.reading() as session:
        ids = runs.list_ids(session, where=Compare(TIME, ">", 0.0), order=Order(TIME, is_descending=True))
    assert ids == [2, 1]


def test_rows_come_in_the_order_of_the_ids_and_unknown_ids_are_left_out(stored: Database) -> None:
    with stored.writing() as session:
        runs.archive(session, [1])
        assert [row.id for row in runs.get_rows(session, [2, 99, 1])] == [2, 1]
        assert runs.get_rows(session, [2])[0].tags == ("paper",)
        assert runs.get_rows(session, []) == []


def test_the_median_is_of_the_variant_that_an_inference_run_is_about(database: Database, finished) -> None:
    measured = [
        metric("decode_tokens_per_s", value, variant=variant)
        for variant, value in (("base", 9.0), ("adapter", 5.0), ("fused", 7.0), ("merged", 8.0))
    ]
    whole = metric("background_cpu_share", 0.25)
    result = {"state": "succeeded", "metrics": [*measured, whole]}
    stock = finished(result, kind="inference")
    fused = finished(result, kind="inference", strategy="fused")
    bare = finished(result, kind="inference", adapter=None)
    speed, merged = MetricField("decode_tokens_per_s"), MetricField("decode_tokens_per_s", "merged")
    share = MetricField("background_cpu_share")
    with database.reading() as session:
        medians = runs.medians(session, [stock, fused, bare], [speed, merged, share])
    assert [medians[run_id, speed] for run_id in (stock, fused, bare)] == [5.0, 7.0, 9.0]
    assert {medians[run_id, merged] for run_id in (stock, fused, bare)} == {8.0}
    assert {medians[run_id, share] for run_id in (stock, fused, bare)} == {0.25}


def test_a_value_of_the_whole_run_stands_in_only_where_the_main_variant_has_none(database: Database, finished) -> None:
    measured = [metric("peak_bytes", 100.0), metric("peak_bytes", 5.0, variant="adapter")]
    run_id = finished({"state": "succeeded", "metrics": measured}, kind="inference")
    field = MetricField("peak_bytes")
    with database.reading() as session:
        assert runs.medians(session, [run_id], [field]) == {(run_id, field): 5.0}
        assert runs.list_ids(session, order=Order(field)) == [run_id]


def test_stored_metrics_are_listed_with_their_variants_and_units(database: Database, finished) -> None:
    measured = [metric("b", 1.0), metric("b", 1.0, variant="y"), metric("b", 1.0, variant="x"), metric("a", 1.0)]
    finished({"state": "succeeded", "metrics": [*measured, metric("c", 1.0, variant="z", unit="bytes")]})
    with database.reading() as session:
        assert runs.stored_metrics(session) == [("a", (), "s"), ("b", ("x", "y"), "s"), ("c", ("z",), "bytes")]


def test_an_empty_database_has_no_metrics_and_no_environments(database: Database) -> None:
    with database.reading() as session:
        assert runs.stored_metrics(session) == []
        assert runs.environment_paths(session) == ()


def test_the_paths_of_all_environments_are_known(stored: Database, finished) -> None:
    result = {"state": "succeeded", "environment": {"gpus": [{"name": "H200"}], "variables": {}}}
    finished(result, priority=1)
    with stored.reading() as session:
        assert runs.environment_paths(session) == (("cores",), ("gpus",), ("packages", "peft"))


def test_postgresql_gets_its_own_words_for_json_and_no_other_ones() -> None:
    condition = And((Compare(RANK, ">", 8.0), Compare(PEFT, "=", "0.21.2")))
    statement = arranged(select(Run.id), condition, Order(TIME))
    text = str(statement.compile(dialect=postgresql.dialect()))
    assert "json_typeof(json_extract_path(runs.spec, " in text
    assert "json_extract_path_text(runs.environment, " in text
    assert "json_type(" not in text
