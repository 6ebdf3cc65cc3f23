"""Pruning takes the memory samples of runs that ended long ago, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import insert, update

from db import pruning, runs
from db.models import MemorySample, Run
from db.session import Database
from tests.db.conftest import metric, on_sqlite, result_document, sample

OLD, NEW, CUT = 1_000_000.0, 3_000_000.0, 2_000_000.0


def changed(database: Database, run_id: int, **values: object) -> None:
    with database.writing() as session:
        session.execute(update(Run).where(Run.id == run_id).values(**values))


@pytest.fixture
def measured(database: Database, finished: Callable[..., int]) -> Callable[..., int]:
    """A run with three samples and a metric that ended at this time."""

    def run(ended_at: float, **values: object) -> int:
        samples = [sample(moment / 10, 2**30) for moment in range(3)]
        run_id = finished(result_document(samples=samples, metrics=[metric("init_time_s", 0.25)]))
        changed(database, run_id, finished_at=ended_at, **values)
        return run_id

    return run


def samples_of(database: Database, run_id: int) -> int:
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert run is not None
    return len(run.samples)


def test_only_runs_that_ended_before_the_time_are_old(database: Database, measured: Callable[..., int]) -> None:
    old, new = measured(OLD), measured(NEW)
    with database.reading() as session:
        found = pruning.old_samples(session, CUT)
        uids = pruning.old_uids(session, CUT)
        rows = runs.get_rows(session, [old, new])
    assert (found.run_ids, found.samples) == ((old,), 3)
    # Three rows of some words, a time, a size and their index entry.
    assert 3 * 40 < found.size_bytes < 3 * 120
    assert uids == [rows[0].uid]


def test_sample_data_and_runs_that_have_not_ended_are_left_alone(
    database: Database, measured: Callable[..., int]
) -> None:
    measured(OLD, origin="sample")
    running = measured(OLD, state="running")
    with database.reading() as session:
        assert pruning.old_samples(session, CUT).run_ids == ()
        assert pruning.old_uids(session, CUT) == []
    assert pruning.delete_samples(database, [running]) == 0
    assert samples_of(database, running) == 3


def test_a_pruned_run_keeps_everything_but_its_samples(database: Database, measured: Callable[..., int]) -> None:
    old, new = measured(OLD), measured(NEW)
    with database.reading() as session:
        before = runs.get_run(session, old)
    assert pruning.delete_samples(database, [old]) == 3
    with database.reading() as session:
        after = runs.get_run(session, old)
    assert before is not None
    assert after is not None
    assert after.samples == ()
    assert after.metrics == before.metrics != ()
    assert (after.checks, after.environment) == (before.checks, before.environment)
    assert samples_of(database, new) == 3


def test_more_runs_than_one_transaction_takes_are_all_pruned(database: Database, measured: Callable[..., int]) -> None:
    ids = [measured(OLD) for _ in range(45)]
    assert pruning.delete_samples(database, ids) == 45 * 3
    with database.reading() as session:
        assert pruning.old_samples(session, CUT) == pruning.OldSamples((), 0, 0)


@on_sqlite
def test_what_pruning_leaves_free_in_the_file_is_about_what_the_preview_said(
    database: Database, measured: Callable[..., int]
) -> None:
    run_id = measured(OLD)
    row = {"run_id": run_id, "source": "tensors", "phase": "attach", "category": "base parameters"}
    with database.writing() as session:
        session.execute(insert(MemorySample), [{**row, "time_s": step * 0.1, "bytes": 2**31} for step in range(20_000)])
    with database.reading() as session:
        foreseen_bytes = pruning.old_samples(session, CUT).size_bytes
    before = database.size()
    pruning.delete_samples(database, [run_id])
    after = database.size()
    assert before is not None
    assert after is not None
    freed_bytes = after.reusable_bytes - before.reusable_bytes
    assert 0.6 * freed_bytes < foreseen_bytes < 1.6 * freed_bytes
    assert before.log_bytes > foreseen_bytes / 2, "the latest writes are in the log"
