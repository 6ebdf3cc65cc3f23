"""Reading, naming, tagging, hiding and deleting stored runs."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import event, func, select

from db import queue, runs, transfer
from db.documents import parse_run
from db.models import MemorySample, Metric, Run, Sweep, Tag
from db.session import Database
from tests.db.conftest import metric, new_run, on_sqlite, result_document, sample


def listed(database: Database, **filters) -> list[int]:
    with database.reading() as session:
        return [run.id for run in runs.list_runs(session, **filters)]


def test_lists_show_the_newest_run_first_and_at_most_the_limit(database: Database, enqueue) -> None:
    ids = enqueue(4)
    assert listed(database) == ids[::-1]
    assert listed(database, limit=2) == [ids[3], ids[2]]


def test_every_filter_narrows_the_list_and_filters_combine(database: Database, enqueue, finished) -> None:
    done = finished(kind="inspect", model="gpt2", adapter=None)
    (on_gpu,) = enqueue(device="cuda:0", adapter="LoRA")
    (plain,) = enqueue()
    assert listed(database, states=["succeeded"]) == [done]
    assert listed(database, kinds=["init"]) == [plain, on_gpu]
    assert listed(database, models=["gpt2", "other"]) == [done]
    assert listed(database, adapters=["LoRA"]) == [on_gpu]
    assert listed(database, devices=["cuda:0"]) == [on_gpu]
    assert listed(database, devices=["cuda:0"], states=["succeeded"]) == []
    assert listed(database, states=[]) == []


def test_tags_are_replaced_cleaned_and_filtered_by(database: Database, enqueue) -> None:
    first, second, third = enqueue(3)
    with database.writing() as session:
        runs.set_tags(session, [first, second, 999], ["old"])
        runs.set_tags(session, [first], [" team ", "team", "", "fast"])
        runs.set_tags(session, [third], ["fast"])
        rows = {run.id: run.tags for run in runs.list_runs(session)}
        assert rows == {first: ("fast", "team"), second: ("old",), third: ("fast",)}
        assert runs.get_run(session, first).tags == ("fast", "team")
    assert listed(database, tags=["fast", "team"]) == [third, first]


def test_each_word_of_a_search_must_occur_in_any_case_and_wildcards_are_plain_text(database: Database, enqueue) -> None:
    (named,) = enqueue(model="tinyllama-1.1b", sweep_name="Friday")
    (noted,) = enqueue(model="gpt2")
    with database.writing() as session:
        runs.rename(session, named, "100% Quiet run")
        runs.set_note(session, noted, "Loud fan")
    assert listed(database, search="quiet LLAMA") == [named]
    assert listed(database, search="loud llama") == []
    assert listed(database, search="friday") == [named]
    assert listed(database, search="0%") == [named]
    assert listed(database, search="t_n") == []
    assert listed(database, search="  ") == [noted, named]


def test_names_and_notes_can_be_taken_away(database: Database, enqueue) -> None:
    (run_id,) = enqueue()
    with database.writing() as session:
        runs.rename(session, run_id, " Mine ")
        runs.set_note(session, run_id, "why")
    with database.writing() as session:
        run = runs.get_run(session, run_id)
        assert (run.name, run.note) == ("Mine", "why")
        runs.rename(session, run_id, "")
        runs.set_note(session, run_id, None)
        run = runs.get_run(session, run_id)
        assert (run.name, run.note) == (None, None)


def test_archived_runs_are_hidden_from_lists_until_restored(database: Database, finished) -> None:
    run_id = finished({"state": "succeeded", "metrics": [metric("init_time_s", 1.0)]})
    with database.writing() as session:
        runs.archive(session, [run_id])
        assert len(runs.metric_values(session, [run_id])) == 1
        assert runs.recent(session, limit=9) == []
        assert runs.list_runs(session) == []
        assert len(runs.list_runs(session, include_archived=True)) == 1
        runs.restore(session, [run_id])
        assert len(runs.list_runs(session)) == len(runs.recent(session, limit=9)) == 1


def test_deleting_takes_everything_measured_along_but_never_a_running_run(
    database: Database, enqueue, claim, finished
) -> None:
    done = finished({"state": "succeeded", "metrics": [metric("m", 1.0)], "samples": [sample(0, 1)]})
    (running,) = enqueue(sweep_name="kept")
    claim()
    (queued,) = enqueue(sweep_name="gone")
    with database.writing() as session:
        runs.set_tags(session, [done], ["x"])
        uid = runs.get_run(session, done).uid
        runs.archive(session, [done, running, queued])
        deleted = runs.delete(session, [done, running, queued, 999])
        assert len(deleted) == 2
        assert uid in deleted
    with database.reading() as session:
        assert session.scalars(select(Run.id)).all() == [running]
        assert session.scalars(select(Sweep.name)).all() == ["kept"]
        assert [session.scalar(select(func.count()).select_from(table)) for table in (Metric, MemorySample, Tag)] == [
            0,
            0,
            0,
        ]


def test_a_run_that_is_not_archived_is_never_deleted(database: Database, finished) -> None:
    shown, hidden = finished(), finished()
    with database.writing() as session:
        runs.archive(session, [shown, hidden])
        runs.restore(session, [shown])
        assert len(runs.delete(session, [shown, hidden])) == 1
        assert [row.id for row in runs.list_runs(session, include_archived=True)] == [shown]


def test_the_id_of_a_deleted_run_is_never_given_to_another(database: Database, enqueue) -> None:
    (last,) = enqueue()
    with database.writing() as session:
        runs.archive(session, [last])
        assert len(runs.delete(session, [last])) == 1
    assert enqueue() == [last + 1]


def test_a_run_that_does_not_exist_is_none(database: Database) -> None:
    with database.reading() as session:
        assert runs.get_run(session, 1) is None


def test_charts_get_each_metric_of_the_runs_that_they_ask_for(database: Database, finished) -> None:
    measured = [metric("init_time_s", 0.5), metric("init_time_s", 0.7, repeat=1), metric("other", 1.0)]
    first = finished({"state": "succeeded", "metrics": measured})
    second = finished({"state": "succeeded", "metrics": [metric("init_time_s", 9.0, variant="a", x=4)]}, model="gpt2")
    with database.reading() as session:
        values = runs.metric_values(session, [first, second], names=["init_time_s"])
        only = runs.metric_values(session, [second])
    assert [(row.run_id, row.value, row.repeat) for row in values] == [
        (first, 0.5, 0),
        (first, 0.7, 1),
        (second, 9.0, 0),
    ]
    assert only == [(second, "init_time_s", "s", "a", 4.0, 0, 9.0)]


def test_the_queue_is_shown_running_first_and_then_in_the_order_of_claims(database: Database, enqueue, claim) -> None:
    running, waiting = enqueue(2)
    claim()
    (request,) = enqueue(priority=1)
    with database.reading() as session:
        assert [run.id for run in runs.queued_and_running(session)] == [running, request, waiting]


def test_recent_runs_are_those_that_ended_last(database: Database, enqueue, finished) -> None:
    enqueue(device="cuda:9")
    done = [finished(), finished(kind="inspect"), finished()]
    with database.reading() as session:
        assert [run.id for run in runs.recent(session, limit=9)] == done[::-1]
        assert [run.id for run in runs.recent(session, limit=1)] == done[-1:]


def test_what_was_measured_here_is_counted_by_spec(database: Database, enqueue, finished) -> None:
    spec_hash = "c" * 64
    for _ in range(2):
        finished(spec_hash=spec_hash)
    finished({"state": "failed"}, spec_hash=spec_hash)
    enqueue(spec_hash="d" * 64)
    with database.writing() as session:
        transfer.store_runs(session, [parse_run(result_document())])
        assert runs.measured_hashes(session) == {spec_hash: 2}


def test_durations_come_from_runs_that_succeeded_on_this_machine(database: Database, finished) -> None:
    finished()
    finished({"state": "failed"})
    with database.writing() as session:
        transfer.store_runs(session, [parse_run(result_document(timing={"started_at": 1.0, "finished_at": 99.0}))])
        (row,) = runs.durations(session)
    assert row[:6] == ("init", "tiny-test", "DoRA", "stock", "bfloat16", "cpu")
    assert 0 <= row.seconds < 5


def test_the_last_inspection_of_a_model_is_found(database: Database, finished) -> None:
    finished({"state": "succeeded", "inspection": {"layers": 1}}, kind="inspect", priority=1)
    finished({"state": "succeeded", "inspection": {"layers": 2}}, kind="inspect", priority=1)
    finished({"state": "failed"}, kind="inspect", priority=1)
    with database.reading() as session:
        assert runs.latest_inspection(session, "tiny-test") == {"layers": 2}
        assert runs.latest_inspection(session, "gpt2") is None


def test_environments_are_given_for_runs_that_have_one(database: Database, enqueue, finished) -> None:
    run_id = finished({"state": "succeeded", "environment": {"cores": 2}})
    (queued,) = enqueue()
    with database.reading() as session:
        assert runs.environments(session, [run_id, queued]) == {run_id: {"cores": 2}}


def test_filters_offer_the_values_that_occur(database: Database, enqueue, finished) -> None:
    finished(kind="inspect", adapter=None)
    (run_id,) = enqueue(model="gpt2")
    with database.writing() as session:
        runs.set_tags(session, [run_id], ["b", "a"])
        values = runs.filter_values(session)
    assert (values.states, values.kinds, values.models) == (
        ("queued", "succeeded"),
        ("init", "inspect"),
        ("gpt2", "tiny-test"),
    )
    assert (values.adapters, values.devices, values.tags) == (("DoRA",), ("cpu",), ("a", "b"))


@pytest.fixture
def many(database: Database) -> list[int]:
    with database.writing() as session:
        ids = queue.enqueue(session, [new_run(seed) for seed in range(5000)], "large")
        runs.set_tags(session, ids, ["x", "y"])
    return ids


@on_sqlite
def test_a_list_of_5000_runs_takes_two_queries_and_less_than_a_second(database: Database, many: list[int]) -> None:
    statements: list[str] = []
    with database.reading() as session:
        event.listen(session.get_bind(), "before_cursor_execute", lambda *args: statements.append(args[2]))
        session.connection()
        statements.clear()
        begun = time.perf_counter()
        rows = runs.list_runs(session)
        seconds = time.perf_counter() - begun
    assert len(statements) == 2
    assert [row.id for row in rows] == many[::-1]
    assert {row.tags for row in rows} == {("x", "y")}
    assert seconds < 1


def test_thousands_of_runs_can_be_changed_at_once(database: Database, many: list[int]) -> None:
    with database.writing() as session:
        assert queue.request_cancel(session, many) == 5000
        runs.archive(session, many)
        assert runs.list_runs(session) == []
        assert len(runs.delete(session, many)) == 5000
