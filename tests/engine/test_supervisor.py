"""Queued runs end in exactly one final state, whoever is killed on the way. Real supervisors, workers and SQLite."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from db import predictions, queue, runs
from db.session import Database, open_database
from engine.executors.processes import is_same_process
from engine.spec import parse_spec, prediction_key, spec_hash
from engine.supervisor import LOCK_FILE

Wait = Callable[..., None]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    opened = open_database()
    yield opened
    opened.close()


@pytest.fixture
def supervise(home: Path) -> Iterator[Start]:
    """Start a supervisor process on this test's home; all are ended, with their workers, after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        with (home / "supervisor.log").open("ab") as log:
            command = [sys.executable, "-m", "engine", "supervise", *options]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def enqueue(database: Database, **fields: Any) -> int:
    spec = parse_spec({"kind": "init", "model": "tiny-test", "repeats": 1, "warmup": 0, **fields})
    document = spec.model_dump(mode="json")
    new = queue.NewRun(
        kind=spec.kind,
        spec=document,
        spec_hash=spec_hash(spec),
        model=spec.model,
        adapter="LoRA",
        adapter_type="lora",
        strategy=document.get("strategy"),
        dtype=document.get("dtype"),
        device=spec.device,
        priority=1 if spec.kind == "inspect" else 0,
    )
    with database.writing() as db:
        return queue.enqueue(db, [new])[0]


def enqueue_long(database: Database) -> int:
    return enqueue(database, model="minimind-26m", repeats=100)


def enqueue_inspection(database: Database) -> int:
    spec = parse_spec({"kind": "inspect", "model": "tiny-test"})
    new = queue.NewRun(
        kind="inspect",
        spec=spec.model_dump(mode="json"),
        spec_hash=spec_hash(spec),
        model="tiny-test",
        adapter=None,
        adapter_type=None,
        strategy=None,
        dtype=None,
        device="cpu",
        priority=1,
    )
    with database.writing() as db:
        return queue.enqueue(db, [new])[0]


def detail(database: Database, run_id: int) -> Any:
    with database.reading() as db:
        return runs.get_run(db, run_id)


def state(database: Database, run_id: int) -> str:
    return detail(database, run_id).state


def end_of(database: Database, run_id: int, wait: Wait, timeout_s: float = 30.0) -> Any:
    """The run once it has ended, however it ended."""
    wait(lambda: state(database, run_id) not in ("queued", "running"), f"run {run_id} ends", timeout_s)
    return detail(database, run_id)


def worker_of(database: Database, run_id: int, wait: Wait) -> tuple[int, float]:
    """Pid and start of a run's worker once its job is under way."""
    wait(
        lambda: detail(database, run_id).worker_pid and detail(database, run_id).progress,
        f"run {run_id} has a worker that reports progress",
    )
    row = detail(database, run_id)
    return row.worker_pid, row.worker_process_started_at


def test_a_queued_run_is_measured_and_kept(database: Database, supervise: Start, eventually: Wait) -> None:
    run_id = enqueue(database)
    supervise()
    assert end_of(database, run_id, eventually).state == "succeeded"
    row = detail(database, run_id)
    assert {metric.name for metric in row.metrics} >= {"init_time_s", "adapter_parameters", "init_peak_extra_bytes"}
    assert {sample.source for sample in row.samples} == {"process", "tensors"}
    assert row.environment["packages"]["peft"]
    assert row.created_at <= row.claimed_at <= row.started_at <= row.finished_at


def test_a_killed_worker_ends_its_run_as_lost_and_the_next_run_goes_on(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    killed, following = enqueue_long(database), enqueue(database)
    supervise()
    pid, _ = worker_of(database, killed, eventually)
    os.kill(pid, signal.SIGKILL)
    assert end_of(database, killed, eventually).state == "lost"
    assert "SIGKILL" in detail(database, killed).error_text
    assert end_of(database, following, eventually).state == "succeeded"


def test_a_restarted_supervisor_adopts_the_worker_and_keeps_its_result(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    run_id = enqueue_long(database)
    first = supervise()
    identity = worker_of(database, run_id, eventually)
    first.kill()
    first.wait()
    assert is_same_process(*identity), "the worker outlives its supervisor"
    supervise()
    assert end_of(database, run_id, eventually, 120).state == "succeeded"
    assert detail(database, run_id).worker_pid == identity[0], "it was not measured again"


def test_a_run_whose_worker_and_supervisor_both_died_is_lost(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    run_id = enqueue_long(database)
    first = supervise()
    pid, _ = worker_of(database, run_id, eventually)
    first.kill()
    first.wait()
    os.kill(pid, signal.SIGKILL)
    supervise()
    assert end_of(database, run_id, eventually).state == "lost"


def test_a_worker_that_finished_without_a_supervisor_is_collected(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    run_id = enqueue_long(database)
    first = supervise()
    identity = worker_of(database, run_id, eventually)
    first.kill()
    first.wait()
    eventually(lambda: not is_same_process(*identity), "the worker finishes alone", 120)
    supervise()
    assert end_of(database, run_id, eventually).state == "succeeded"


def test_stopping_the_supervisor_leaves_its_worker_to_the_next(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    run_id = enqueue_long(database)
    first = supervise()
    identity = worker_of(database, run_id, eventually)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=10) == 0
    assert is_same_process(*identity)
    supervise()
    assert end_of(database, run_id, eventually, 120).state == "succeeded"


def test_cancelling_a_running_run_ends_its_process(database: Database, supervise: Start, eventually: Wait) -> None:
    run_id = enqueue_long(database)
    supervise()
    identity = worker_of(database, run_id, eventually)
    with database.writing() as db:
        queue.request_cancel(db, [run_id])
    assert end_of(database, run_id, eventually, 5).state == "cancelled"
    assert not is_same_process(*identity)


def test_a_run_over_its_memory_limit_is_a_result_with_its_peak(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    run_id = enqueue(database, model="smollm2-135m", repeats=50, memory_limit_bytes=64 * 2**20)
    supervise()
    assert end_of(database, run_id, eventually).state == "out_of_memory"
    peaks = [metric.value for metric in detail(database, run_id).metrics if metric.name == "peak_rss_bytes"]
    assert len(peaks) == 1
    assert peaks[0] > 64 * 2**20
    assert detail(database, run_id).environment["packages"]["peft"]


def test_a_run_past_its_timeout_ends_as_timed_out(database: Database, supervise: Start, eventually: Wait) -> None:
    run_id = enqueue(database, model="minimind-26m", repeats=100, timeout_s=0.5)
    supervise()
    assert end_of(database, run_id, eventually).state == "timed_out"


def test_two_supervisors_on_one_home_are_one_too_many(database: Database, supervise: Start, eventually: Wait) -> None:
    run_id = enqueue(database)
    supervise()
    assert end_of(database, run_id, eventually).state == "succeeded"
    second = supervise()
    assert second.wait(timeout=30) == 1


def test_measured_runs_on_one_device_never_overlap_and_requests_go_ahead(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    measured = [enqueue(database, seed=seed) for seed in range(3)]
    inspection = enqueue_inspection(database)
    supervise()
    everything = [*measured, inspection]
    assert {end_of(database, run_id, eventually).state for run_id in everything} == {"succeeded"}
    rows = sorted((detail(database, run_id) for run_id in measured), key=lambda row: row.claimed_at)
    for earlier, later in itertools.pairwise(rows):
        assert earlier.finished_at <= later.claimed_at
    row = detail(database, inspection)
    assert row.claimed_at <= rows[0].claimed_at
    assert row.inspection["model"] == "tiny-test"


def test_an_idle_supervisor_leaves_when_asked_to(home: Path, supervise: Start) -> None:
    started_s = time.monotonic()
    assert supervise("--idle-exit", "0.5").wait(timeout=60) == 0
    assert time.monotonic() - started_s > 0.5


def test_a_supervisor_gives_a_sign_also_when_it_has_nothing_to_do(
    home: Path, supervise: Start, eventually: Wait
) -> None:
    supervise()
    lock = home / LOCK_FILE
    eventually(lambda: lock.exists() and lock.read_text(), "it holds the lock", 60)
    os.utime(lock, (0, 0))
    eventually(lambda: lock.stat().st_mtime > time.time() - 10, "it has given a sign", 30)


def test_no_fork_server_is_left_when_the_supervisor_is_killed(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    import psutil

    run_id = enqueue(database)
    process = supervise()
    assert end_of(database, run_id, eventually).state == "succeeded"
    children = psutil.Process(process.pid).children(recursive=True)
    assert children, "a fork server runs below the supervisor"
    process.kill()
    process.wait()
    eventually(lambda: not any(child.is_running() for child in children), "its children are gone", 10)


def test_a_predict_request_leaves_its_answers_among_the_predictions_and_not_among_the_runs(
    database: Database, supervise: Start, eventually: Wait
) -> None:
    fine = {"kind": "train", "model": "tiny-test", "train": {"context_length": 16}}
    not_predicted = {**fine, "strategy": "compiled"}
    spec = parse_spec({"kind": "predict", "of": [fine, not_predicted]})
    new = queue.NewRun(
        kind="predict", spec=spec.model_dump(mode="json"), spec_hash=spec_hash(spec), model="tiny-test", device="cpu"
    )
    with database.writing() as db:
        (run_id,) = queue.enqueue(db, [new])
    supervise()
    assert end_of(database, run_id, eventually, 120).state == "succeeded"
    with database.reading() as db:
        entries = predictions.find(
            db, [prediction_key(parse_spec(one)) for one in (fine, not_predicted)], with_course=True
        )
        assert runs.list_runs(db) == []
    predicted, sentence = (entries[prediction_key(parse_spec(one))] for one in (fine, not_predicted))
    assert next(metric["value"] for metric in predicted["metrics"] if metric["name"] == "peak_bytes") > 0
    assert predicted["course"]
    assert "compiled" in sentence["error"]["text"]
