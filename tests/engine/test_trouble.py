"""The machine gets into trouble while runs are measured, and out of it: nothing is lost, it is said, and all goes on.

A real supervisor with real workers and a real database, in this process so that its clock and its patience can be set.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.supervision import Supervision
from db import predictions, queue, runs
from db.session import Database, DatabaseUnavailable, open_database
from engine import supervisor as supervising
from engine.executors import Work
from engine.executors.local import LocalExecutor
from engine.spec import parse_spec, prediction_key, spec_hash
from engine.supervisor import Supervisor, run_folder

Wait = Callable[..., None]
Supervise = Callable[[], Supervisor]
SOME_MIB = 2**22


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    before = dict(os.environ)
    yield LocalExecutor()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def database(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr("db.session.BUSY_TIMEOUT_S", 0.5)
    opened = open_database()
    yield opened
    opened.close()


@pytest.fixture
def supervise(
    home: Path, database: Database, executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Supervise]:
    """Start a supervisor on this test's home, in a thread."""
    monkeypatch.setattr(supervising, "_START_GRACE_S", 0.5)
    started: list[tuple[Supervisor, threading.Thread]] = []

    def start() -> Supervisor:
        supervisor = Supervisor(database, home, executor)
        thread = threading.Thread(target=supervisor.run)
        thread.start()
        started.append((supervisor, thread))
        return supervisor

    yield start
    for supervisor, thread in started:
        supervisor.stop()
        thread.join()


def enqueue(database: Database, **fields: Any) -> int:
    spec = parse_spec({"kind": "init", "model": "tiny-test", "repeats": 1, "warmup": 0, **fields})
    document = spec.model_dump(mode="json")
    new = queue.NewRun(
        kind=spec.kind, spec=document, spec_hash=spec_hash(spec), model=document["model"], device=spec.device
    )
    with database.writing() as db:
        return queue.enqueue(db, [new])[0]


def detail(database: Database, run_id: int) -> Any:
    with database.reading() as db:
        return runs.get_run(db, run_id)


def begin(database: Database, run_id: int, wait: Wait) -> None:
    wait(lambda: detail(database, run_id).worker_pid and detail(database, run_id).progress, f"run {run_id} is measured")


def end_of(database: Database, run_id: int, wait: Wait) -> Any:
    wait(lambda: detail(database, run_id).state not in ("queued", "running"), f"run {run_id} ends", 60)
    return detail(database, run_id)


def claim_as(database: Database, supervisor: str, run_id: int, at: float) -> None:
    """Make a run that of a supervisor which claimed it and never came to start it."""
    with database.writing() as db:
        claimed = queue.claim(db, supervisor=supervisor, devices=["cpu"])
        assert claimed is not None
        assert claimed.id == run_id
        run = db.get(runs.Run, run_id)
        assert run is not None
        run.claimed_at = run.heartbeat_at = at


# --- the database -----------------------------------------------------------------------------------------------------


def test_a_database_that_another_process_locks_for_long_holds_up_no_measurement_and_loses_no_result(
    home: Path, database: Database, supervise: Supervise, eventually: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "engine.supervisor")
    first, second = enqueue(database), enqueue(database)
    lock = sqlite3.connect(home / "peft-lab.sqlite3", isolation_level=None, check_same_thread=False)
    supervise()
    # The run is there, but nobody can claim it.
    lock.execute("BEGIN IMMEDIATE")
    eventually(lambda: "kept it locked" in caplog.text, "the supervisor says so")
    eventually(lambda: "kept it locked" in Supervision(home).trouble(), "pages can say so")
    lock.execute("ROLLBACK")
    eventually(lambda: detail(database, first).state == "running", "the run is claimed")
    eventually(lambda: Supervision(home).trouble() == "", "pages can say that it is over")
    lock.execute("BEGIN IMMEDIATE")
    result = run_folder(home, detail(database, first).uid) / "result.json"
    eventually(result.exists, "it is measured to its end")
    time.sleep(2)
    assert detail(database, first).state == "running"
    with pytest.raises(DatabaseUnavailable, match=r"another process has kept it locked for .* s; try again"):
        enqueue(database)
    lock.execute("ROLLBACK")
    lock.close()
    assert end_of(database, first, eventually).state == "succeeded"
    assert end_of(database, second, eventually).state == "succeeded"
    assert caplog.text.count("kept it locked") == 2
    assert caplog.text.count("the database can be used again") == 2


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """The home folder on a disk of its own with a few megabytes."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(home)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield home
    subprocess.run(["umount", "--lazy", str(home)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (SOME_MIB, 2**12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def is_idle(pid: int) -> bool:
    before_s = psutil.Process(pid).cpu_times().user
    time.sleep(1)
    return psutil.Process(pid).cpu_times().user == before_s


def enqueue_until_refused(database: Database) -> None:
    for _ in range(100):
        enqueue(database)


def test_a_full_disk_loses_no_result_and_the_queue_goes_on_when_there_is_room(
    small_disk: Path, database: Database, supervise: Supervise, eventually: Wait
) -> None:
    measured, waiting = enqueue(database, model="minimind-26m", repeats=10), enqueue(database)
    supervise()
    begin(database, measured, eventually)
    fill(small_disk / "something else")
    with pytest.raises(DatabaseUnavailable, match="because the disk is full; make room there and try again"):
        enqueue_until_refused(database)
    worker = detail(database, measured).worker_pid
    eventually(lambda: is_idle(worker), "the worker waits with its result")
    assert detail(database, measured).state == "running"
    eventually(lambda: "the disk is full" in Supervision(small_disk).trouble(), "pages can say so", 30)
    (small_disk / "something else").unlink()
    assert end_of(database, measured, eventually).state == "succeeded"
    assert end_of(database, waiting, eventually).state == "succeeded"


def can_be_written(folder: Path, allowed: bool) -> bool:
    """Let nothing in a folder be written or made any more, not even by root, or let it again; whether that worked."""
    command = ["chattr", "-R", "-i" if allowed else "+i", str(folder)]
    return (
        shutil.which("chattr") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def test_a_home_that_becomes_read_only_loses_no_result_and_all_goes_on_when_it_can_be_written(
    home: Path, database: Database, supervise: Supervise, eventually: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    measured, waiting = enqueue(database), enqueue(database)
    supervise()
    eventually(lambda: detail(database, measured).state == "running", "the run is claimed")
    try:
        if not can_be_written(home, False):
            pytest.skip("files cannot be made immutable here")
        eventually(lambda: "Runs under way go on" in caplog.text, "the supervisor says so")
        assert Supervision(home).trouble() == f"Runs and results wait until {home} can be written"
        with pytest.raises(DatabaseUnavailable, match=r"check what you may do with it|because the disk refuses"):
            enqueue(database)
    finally:
        can_be_written(home, True)
    row = end_of(database, measured, eventually)
    assert row.state == "succeeded", row.error_text
    assert end_of(database, waiting, eventually).state == "succeeded"


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_run_whose_folder_is_deleted_while_it_is_measured_keeps_its_result(
    home: Path, database: Database, supervise: Supervise, eventually: Wait
) -> None:
    run_id = enqueue(database, model="minimind-26m", repeats=20)
    supervise()
    begin(database, run_id, eventually)
    shutil.rmtree(home / "runs")
    row = end_of(database, run_id, eventually)
    assert row.state == "succeeded"
    assert sum(metric.name == "init_time_s" for metric in row.metrics) == 20


def test_a_run_that_cannot_be_started_waits_in_the_queue_until_it_can(
    home: Path, database: Database, supervise: Supervise, eventually: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = enqueue(database)
    (home / "runs").write_text("no folder can be made in this")
    supervise()
    eventually(lambda: "could not be started and is queued again" in caplog.text, "the supervisor says so")
    assert detail(database, run_id).state in ("queued", "running")
    (home / "runs").unlink()
    assert end_of(database, run_id, eventually).state == "succeeded"


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_a_run_claimed_by_the_dead_is_queued_again_also_when_the_clock_was_set_back_since(
    database: Database, supervise: Supervise, eventually: Wait
) -> None:
    run_id = enqueue(database)
    claim_as(database, "1@0.01", run_id, at=time.time() + 3600)
    supervise()
    row = end_of(database, run_id, eventually)
    assert row.state == "succeeded"


def test_a_run_that_was_on_a_node_of_a_cluster_is_not_measured_here_when_its_supervisor_ended(
    home: Path, database: Database, supervise: Supervise, eventually: Wait
) -> None:
    on_a_node, following = enqueue(database), enqueue(database)
    claim_as(database, "1@0.01", on_a_node, at=time.time() - 60)
    folder = run_folder(home, detail(database, on_a_node).uid)
    folder.mkdir(parents=True)
    (folder / "node.json").write_text('{"node": "far"}')
    supervise()
    row = end_of(database, on_a_node, eventually)
    assert (row.state, row.error_text) == ("lost", "The supervisor ended, and with it the run on far")
    assert end_of(database, following, eventually).state == "succeeded"


@pytest.mark.parametrize(("abandoned_before", "state"), [(3, "succeeded"), (4, "lost")])
def test_a_run_that_no_supervisor_survives_is_given_up_in_the_end(
    abandoned_before: int, state: str, database: Database, supervise: Supervise, eventually: Wait
) -> None:
    run_id = enqueue(database)
    for _ in range(abandoned_before):
        claim_as(database, "1@0.01", run_id, at=time.time() - 60)
        with database.writing() as db:
            queue.put_back(db, run_id, is_abandoned=True)
    claim_as(database, "1@0.01", run_id, at=time.time() - 60)
    supervise()
    row = end_of(database, run_id, eventually)
    assert row.state == state
    with database.reading() as db:
        stored = db.get(runs.Run, run_id)
        assert stored is not None
        assert stored.abandoned_claims == 4
    assert row.error_text in (None, "5 times a supervisor claimed the run and ended before it began")


def test_a_run_of_another_machine_is_left_alone_as_long_as_its_supervisor_gives_signs(
    database: Database, supervise: Supervise, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "_RECOVER_S", 0.1)
    monkeypatch.setattr(supervising, "_FOREIGN_SILENCE_S", 2.0)
    run_id = enqueue(database)
    # Its clock is an hour behind, or it has slept for one.
    claim_as(database, "1@0.01@elsewhere", run_id, at=time.time() - 3600)
    supervise()
    for _ in range(6):
        time.sleep(0.5)
        with database.writing() as db:
            queue.heartbeat(db, [run_id])
        assert detail(database, run_id).supervisor == "1@0.01@elsewhere"
    row = end_of(database, run_id, eventually)
    assert row.state == "succeeded"


def test_hours_in_which_the_machine_slept_do_not_count_towards_a_runs_timeout(
    database: Database, supervise: Supervise, eventually: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_s = [0.0]
    monkeypatch.setattr("engine.executors.local.asleep_s", lambda: slept_s[0])
    monkeypatch.setattr("engine.executors.local.process_age_s", lambda start_s: age_s(start_s) + slept_s[0])
    from engine.executors.processes import process_age_s as age_s

    run_id = enqueue(database, model="minimind-26m", repeats=20, timeout_s=60)
    supervise()
    begin(database, run_id, eventually)
    slept_s[0] = 3600.0
    assert end_of(database, run_id, eventually).state == "succeeded"


# --- processes and memory ---------------------------------------------------------------------------------------------


def test_a_worker_that_nobody_noted_is_found_by_a_supervisor_with_another_home_and_not_measured_twice(
    home: Path, tmp_path: Path, database: Database, executor: LocalExecutor, supervise: Supervise, eventually: Wait
) -> None:
    run_id = enqueue(database, model="minimind-26m", repeats=20)
    elsewhere = tmp_path / "elsewhere"
    with database.writing() as db:
        claimed = queue.claim(db, supervisor="1@0.01", devices=["cpu"], runs_folder=str(elsewhere))
    assert claimed is not None
    executor.start()
    executor.submit(Work(claimed.spec, claimed.spec_hash, elsewhere / claimed.uid), None)
    supervise()
    assert end_of(database, run_id, eventually).state == "succeeded"
    assert (elsewhere / claimed.uid / "log.txt").read_text().count("job started at") == 1
    assert not run_folder(home, claimed.uid).exists()


def test_a_killed_fork_server_costs_neither_the_run_that_is_measured_nor_the_next(
    database: Database, supervise: Supervise, eventually: Wait
) -> None:
    measured, following = enqueue(database, model="minimind-26m", repeats=20), enqueue(database)
    supervise()
    begin(database, measured, eventually)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGKILL)
    assert end_of(database, measured, eventually).state == "succeeded"
    assert end_of(database, following, eventually).state == "succeeded"


def test_a_run_that_ran_out_of_memory_says_what_was_predicted_of_it(
    database: Database, supervise: Supervise, eventually: Wait
) -> None:
    fields = {"model": "minimind-26m", "repeats": 20, "memory_limit_bytes": 2**20}
    spec = parse_spec({"kind": "init", "warmup": 0, **fields})
    peak = {"name": "peak_bytes", "unit": "bytes", "variant": None, "x": None, "repeat": 0, "value": 1.5 * 2**30}
    with database.writing() as db:
        predictions.store(db, [{"key": prediction_key(spec), "spec_hash": spec_hash(spec), "metrics": [peak]}])
    run_id = enqueue(database, **fields)
    supervise()
    row = end_of(database, run_id, eventually)
    assert row.state == "out_of_memory"
    assert row.error_text.startswith("memory_limit_bytes: the run reached ")
    assert row.error_text.endswith("; predicted was a peak of 1.5 GiB of tensors")
