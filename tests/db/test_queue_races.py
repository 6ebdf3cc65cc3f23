"""The queue with several real processes on one database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from db import nodes, queue, runs, transfer
from db.documents import parse_run
from db.session import Database, open_database
from tests.db.conftest import HERE, PROCESSES, Race, new_run, result_document


def claim_all(url: str, number: int, start: Callable[[], object]) -> list[int]:
    database = open_database(url)
    start()
    claimed = []
    while True:
        with database.writing() as session:
            run = queue.claim(session, supervisor=str(number), devices=["cpu"])
        if run is None:
            break
        claimed.append(run.id)
        with database.writing() as session:
            assert queue.finish(session, run.id, {"state": "succeeded"})
    database.close()
    return claimed


def enqueue_many(url: str, number: int, start: Callable[[], object]) -> list[int]:
    database = open_database(url)
    start()
    ids = []
    for _ in range(25):
        with database.writing() as session:
            ids += queue.enqueue(session, [new_run(7), new_run(number + 100)])
    database.close()
    return ids


def finish_the_same(url: str, number: int, start: Callable[[], object]) -> bool:
    database = open_database(url)
    with database.reading() as session:
        (run,) = queue.running(session)
    start()
    with database.writing() as session:
        stored = queue.finish(session, run.id, {"state": "failed", "error": {"kind": "x", "text": str(number)}})
    database.close()
    return stored


def change_the_same(url: str, number: int, start: Callable[[], object]) -> None:
    """What pages, imports and supervisors do to runs, the runs in another order in each process."""
    database = open_database(url)
    with database.reading() as session:
        ids = runs.list_ids(session, include_archived=True)
    ids = ids[::-1] if number % 2 else ids
    start()
    for turn in range(10):
        with database.writing() as session:
            runs.set_tags(session, ids, [f"turn {turn}", "all"])
        with database.writing() as session:
            (runs.archive if number % 2 else runs.restore)(session, ids)
        with database.writing() as session:
            queue.heartbeat(session, ids)
        with database.writing() as session:
            queue.request_cancel(session, ids)
        with database.writing() as session:
            nodes.store(session, [HERE])
        with database.writing() as session:
            transfer.store_runs(session, [parse_run(result_document(note=f"turn {turn}"))])
    database.close()


def test_supervisors_that_race_claim_each_run_exactly_once(race: Race, url: str, database: Database, enqueue) -> None:
    ids = enqueue(200)
    answers = race(claim_all, url)
    assert sorted(run_id for claimed in answers for run_id in claimed) == ids
    with database.reading() as session:
        assert Counter(run.state for run in runs.list_runs(session)) == {"succeeded": 200}


def test_dashboards_that_enqueue_at_once_lose_nothing_and_number_replicas_apart(
    race: Race, url: str, database: Database
) -> None:
    ids = [run_id for own in race(enqueue_many, url) for run_id in own]
    assert len(ids) == len(set(ids)) == PROCESSES * 50
    with database.reading() as session:
        shared = [run.replica for run in runs.list_runs(session) if run.spec["seed"] == 7]
    assert sorted(shared) == list(range(PROCESSES * 25))


def test_only_one_of_several_ends_of_a_run_is_stored(race: Race, url: str, database: Database, enqueue, claim) -> None:
    (run_id,) = enqueue()
    claim()
    answers = race(finish_the_same, url)
    (winner,) = [number for number, stored in enumerate(answers) if stored]
    with database.reading() as session:
        assert runs.get_run(session, run_id).error_text == str(winner)


def test_whoever_changes_the_same_runs_at_once_waits_for_the_others_and_nobody_fails(
    race: Race, url: str, database: Database, enqueue
) -> None:
    ids = enqueue(40)
    race(change_the_same, url)
    with database.reading() as session:
        rows = runs.get_rows(session, ids)
        assert len(runs.list_ids(session, include_archived=True)) == 40 + 10
    assert {row.tags for row in rows} == {("all", "turn 9")}
    assert {row.state for row in rows} == {"cancelled"}
