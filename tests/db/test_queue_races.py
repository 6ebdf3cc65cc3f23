"""The queue with several real processes on one SQLite file."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from typing import Any

from db import queue, runs
from db.session import Database, open_database
from tests.db.conftest import new_run

PROCESSES = 4


def race(target: Callable[..., None], url: str) -> list[Any]:
    """Start the same function in several processes at once; what each put into its queue, in the order of arrival."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(PROCESSES), spawn.Queue()
    processes = [spawn.Process(target=target, args=(url, number, barrier, results)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    return answers


def claim_all(url: str, number: int, barrier: Any, results: Any) -> None:
    database = open_database(url)
    barrier.wait(timeout=30)
    claimed = []
    while True:
        with database.writing() as session:
            run = queue.claim(session, supervisor=str(number), devices=["cpu"])
        if run is None:
            break
        claimed.append(run.id)
        with database.writing() as session:
            assert queue.finish(session, run.id, {"state": "succeeded"})
    results.put((number, claimed))


def enqueue_many(url: str, number: int, barrier: Any, results: Any) -> None:
    database = open_database(url)
    barrier.wait(timeout=30)
    ids = []
    for _ in range(25):
        with database.writing() as session:
            ids += queue.enqueue(session, [new_run(7), new_run(number + 100)])
    results.put((number, ids))


def finish_the_same(url: str, number: int, barrier: Any, results: Any) -> None:
    database = open_database(url)
    with database.reading() as session:
        (run,) = queue.running(session)
    barrier.wait(timeout=30)
    with database.writing() as session:
        stored = queue.finish(session, run.id, {"state": "failed", "error": {"kind": "x", "text": str(number)}})
    results.put((number, stored))


def test_supervisors_that_race_claim_each_run_exactly_once(url: str, database: Database, enqueue) -> None:
    ids = enqueue(200)
    answers = race(claim_all, url)
    assert sorted(run_id for _, claimed in answers for run_id in claimed) == ids
    with database.reading() as session:
        assert Counter(run.state for run in runs.list_runs(session)) == {"succeeded": 200}


def test_dashboards_that_enqueue_at_once_lose_nothing_and_number_replicas_apart(url: str, database: Database) -> None:
    answers = race(enqueue_many, url)
    ids = [run_id for _, own in answers for run_id in own]
    assert len(ids) == len(set(ids)) == PROCESSES * 50
    with database.reading() as session:
        shared = [run.replica for run in runs.list_runs(session) if run.spec["seed"] == 7]
    assert sorted(shared) == list(range(PROCESSES * 25))


def test_only_one_of_several_ends_of_a_run_is_stored(url: str, database: Database, enqueue, claim) -> None:
    (run_id,) = enqueue()
    claim()
    answers = race(finish_the_same, url)
    (winner,) = [number for number, stored in answers if stored]
    with database.reading() as session:
        assert runs.get_run(session, run_id).error_text == str(winner)
