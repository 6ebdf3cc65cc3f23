"""The queue with one process: order, cancellation, and ends that happen once."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import update
from sqlalchemy.dialects import postgresql

from db import queue, runs
from db.models import Run
from db.session import Database
from tests.db.conftest import metric, new_run, on_sqlite, sample


def state(database: Database, run_id: int) -> str:
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert run is not None
    return run.state


def test_runs_are_claimed_by_priority_and_then_by_age(enqueue, claim) -> None:
    first, second = enqueue(2)
    (request,) = enqueue(kind="inspect", priority=1)
    assert [claim().id, claim().id, claim().id, claim()] == [request, first, second, None]


def test_only_runs_of_the_given_devices_and_kinds_are_claimed(enqueue, claim) -> None:
    (on_gpu,) = enqueue(device="cuda:0")
    (on_cpu,) = enqueue(kind="inspect")
    assert claim(devices=("cpu",), kinds=("init",)) is None
    assert claim(devices=()) is None
    assert claim(devices=("cpu",), kinds=("inspect",)).id == on_cpu
    assert claim(devices=("cuda:0", "cpu")).id == on_gpu


def test_a_claimed_run_carries_what_its_worker_needs(database: Database, enqueue, claim) -> None:
    (run_id,) = enqueue()
    before = time.time()
    claimed = claim("supervisor 7")
    assert (claimed.id, claimed.kind, claimed.device, claimed.spec["seed"]) == (run_id, "init", "cpu", 0)
    assert claimed.spec_hash == f"{0:064x}"
    assert len(claimed.uid) == 32
    with database.reading() as session:
        (running,) = queue.running(session)
    assert running.supervisor == "supervisor 7"
    assert running.worker_pid is None
    assert before <= running.claimed_at == running.heartbeat_at <= time.time()


@on_sqlite
def test_a_claim_is_fast_and_in_order_with_5000_queued_runs(database: Database, enqueue) -> None:
    ids = enqueue(5000)
    seconds = []
    for expected in ids[:20]:
        with database.writing() as session:
            session.connection()
            begun = time.perf_counter()
            claimed = queue.claim(session, supervisor="one", devices=["cpu", "cuda:0"], kinds=["init"])
            seconds.append(time.perf_counter() - begun)
        assert claimed.id == expected
    assert sorted(seconds)[10] < 0.005


def test_the_claim_skips_rows_that_another_postgresql_supervisor_has_locked(database: Database, enqueue) -> None:
    enqueue()
    statements = []
    with database.writing() as session:
        execute = session.execute
        session.execute = lambda statement, *rest: statements.append(statement) or execute(statement, *rest)
        queue.claim(session, supervisor="one", devices=["cpu"])
    assert "FOR UPDATE SKIP LOCKED" in str(statements[0].compile(dialect=postgresql.dialect()))


def test_replicas_of_a_spec_are_numbered_across_launches(database: Database) -> None:
    with database.writing() as session:
        first = queue.enqueue(session, [new_run(1), new_run(2), new_run(1)])
        second = queue.enqueue(session, [new_run(1)])
        replicas = {run.id: run.replica for run in runs.list_runs(session)}
    assert [replicas[run_id] for run_id in first + second] == [0, 0, 1, 2]


def test_a_sweep_holds_its_runs_in_the_given_order(database: Database, enqueue) -> None:
    ids = enqueue(3, sweep_name="LoRA against DoRA")
    assert ids == sorted(ids)
    with database.reading() as session:
        listed = runs.list_runs(session)
        assert {run.sweep_name for run in listed} == {"LoRA against DoRA"}
        assert [run.spec["seed"] for run in listed] == [2, 1, 0]


def test_cancelling_ends_a_queued_run_at_once(database: Database, enqueue, claim) -> None:
    (run_id,) = enqueue()
    with database.writing() as session:
        assert queue.request_cancel(session, [run_id]) == 1
        assert queue.request_cancel(session, [run_id]) == 0
    assert state(database, run_id) == "cancelled"
    assert claim() is None


def test_cancelling_asks_a_running_run_to_end_and_leaves_finished_ones(
    database: Database, enqueue, claim, finished
) -> None:
    done = finished()
    (run_id,) = enqueue()
    claim()
    with database.writing() as session:
        assert queue.cancel_requests(session, [run_id]) == set()
        assert queue.request_cancel(session, [run_id, done]) == 1
        assert queue.cancel_requests(session, [run_id, done]) == {run_id}
        assert queue.running(session)[0].cancel_requested
    assert (state(database, run_id), state(database, done)) == ("running", "succeeded")


def test_a_queued_run_that_was_asked_to_end_is_not_claimed(database: Database, enqueue, claim) -> None:
    (run_id,) = enqueue()
    with database.writing() as session:
        session.execute(update(Run).where(Run.id == run_id).values(cancel_requested=True))
    assert claim() is None


def test_a_supervisor_finds_its_workers_again_and_another_can_adopt_them(database: Database, enqueue, claim) -> None:
    (run_id,) = enqueue()
    claim("old")
    with database.writing() as session:
        assert queue.started(session, run_id, 4711, 12.5, "/runs/abc")
        assert queue.adopt(session, run_id, "new")
        (running,) = queue.running(session)
    assert (running.worker_pid, running.worker_process_started_at) == (4711, 12.5)
    assert (running.run_folder, running.supervisor) == ("/runs/abc", "new")


def test_a_claimed_run_of_which_nothing_was_run_goes_back_to_its_place(database: Database, enqueue, claim) -> None:
    first, second = enqueue(2)
    assert claim().id == first
    with database.writing() as session:
        assert queue.put_back(session, first)
        assert not queue.put_back(session, second)
    assert [claim("another").id, claim().id] == [first, second]


def test_a_run_goes_not_back_to_the_queue_when_a_worker_was_started_or_it_was_cancelled(
    database: Database, enqueue, claim
) -> None:
    measured, cancelled = enqueue(2)
    assert [claim().id, claim().id] == [measured, cancelled]
    with database.writing() as session:
        queue.started(session, measured, 1, 1.0, "runs/x")
        queue.request_cancel(session, [cancelled])
        assert not queue.put_back(session, measured)
        assert queue.put_back(session, cancelled)
    assert [state(database, measured), state(database, cancelled)] == ["running", "cancelled"]


def test_progress_and_heartbeats_show_that_a_run_is_alive(database: Database, enqueue, claim) -> None:
    run_id, waiting = enqueue(2)
    claim()
    with database.writing() as session:
        claimed_at = queue.running(session)[0].heartbeat_at
        assert queue.progress(session, run_id, {"phase": "attach", "done": 3, "total": 9, "eta_s": 1.5})
        assert not queue.progress(session, waiting, {"phase": "attach"})
        reported_at = queue.running(session)[0].heartbeat_at
        queue.heartbeat(session, [run_id, waiting])
        alive_at = queue.running(session)[0].heartbeat_at
        rows = {run.id: run for run in runs.queued_and_running(session)}
    assert claimed_at < reported_at < alive_at
    assert rows[run_id].progress == {"phase": "attach", "done": 3, "total": 9, "eta_s": 1.5}
    assert (rows[waiting].progress, rows[waiting].heartbeat_at) == (None, None)


def test_a_finished_run_keeps_all_that_was_measured(database: Database, finished) -> None:
    run_id = finished(
        {
            "state": "out_of_memory",
            "metrics": (metric("init_time_s", 0.5), metric("background_cpu_share", 0.04, unit="share")),
            "checks": (
                {"name": "equal", "passed": False, "detail": "1.2"},
                {"name": "dtype", "passed": True, "detail": ""},
            ),
            "samples": (sample(0.1, 5), sample(0.2, 2**62)),
            "environment": {"cpu": "two cores"},
            "error": {"kind": "out_of_memory", "text": "needed 3 GiB"},
        }
    )
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert (run.state, run.error_kind, run.error_text) == ("out_of_memory", "out_of_memory", "needed 3 GiB")
    assert [(row.name, row.value) for row in run.metrics] == [("init_time_s", 0.5), ("background_cpu_share", 0.04)]
    assert [row.bytes for row in run.samples] == [5, 2**62]
    assert (run.background_cpu_share, run.failed_checks) == (0.04, 1)
    assert run.environment == {"cpu": "two cores"}
    assert run.created_at <= run.claimed_at <= run.started_at <= run.finished_at


def test_a_final_state_is_never_overwritten(database: Database, finished) -> None:
    run_id = finished({"state": "succeeded", "metrics": [metric("init_time_s", 0.5)]})
    with database.writing() as session:
        assert not queue.finish(session, run_id, {"state": "lost", "metrics": [metric("init_time_s", 9.0)]})
        assert not queue.started(session, run_id, 2, 2.0, "x")
        assert not queue.adopt(session, run_id, "x")
        assert not queue.progress(session, run_id, {"phase": "late"})
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert (run.state, [row.value for row in run.metrics], run.worker_pid) == ("succeeded", [0.5], 1)


def test_a_queued_run_cannot_be_finished(database: Database, enqueue) -> None:
    (run_id,) = enqueue()
    with database.writing() as session:
        assert not queue.finish(session, run_id, {"state": "succeeded"})
    assert state(database, run_id) == "queued"


def test_a_run_that_went_missing_ends_as_lost(database: Database, enqueue, claim) -> None:
    (run_id,) = enqueue()
    claim()
    with database.writing() as session:
        document = {"state": "lost", "error": {"kind": "lost", "text": "the worker is gone"}}
        assert queue.finish(session, run_id, document)
        assert queue.running(session) == []
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert (run.state, run.error_text, run.background_cpu_share) == ("lost", "the worker is gone", None)


def test_a_result_that_cannot_be_stored_ends_the_run_as_failed_and_says_why(database: Database, finished) -> None:
    run_id = finished({"state": "succeeded", "metrics": [metric("a", 1.0), metric("b", float("nan"))]})
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert (run.state, run.error_kind, run.metrics) == ("failed", "result_refused", ())
    assert run.error_text == "The result cannot be stored: metrics[1].value: must be a finite number, not nan"


def test_samples_are_thinned_when_they_are_stored(database: Database, finished) -> None:
    series = [sample(i / 10, 10_000 if i == 1234 else i % 7, category) for i in range(5000) for category in "ab"]
    run_id = finished({"state": "succeeded", "samples": series})
    with database.reading() as session:
        stored = runs.get_run(session, run_id).samples
    for category in "ab":
        own = [row for row in stored if row.category == category]
        assert 300 <= len(own) <= 600
        assert max(row.bytes for row in own) == 10_000


def test_runs_are_counted_by_state(
    database: Database, enqueue: Callable[..., list[int]], finished: Callable[..., int]
) -> None:
    finished()
    finished({"state": "failed"})
    enqueue(3)
    with database.reading() as session:
        assert queue.counts_by_state(session) == {"queued": 3, "succeeded": 1, "failed": 1}
