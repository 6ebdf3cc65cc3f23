"""Workers are fresh processes that own their group, their log, their device lock and one whole result."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import worker as worker_module
from engine.executors import Ending, Work
from engine.executors.local import LocalExecutor, LocalWorker
from engine.executors.processes import DeviceLock, is_same_process, process_start_s
from engine.measure.environment import environment
from engine.spec import Spec, parse_spec

QUICK = parse_spec({"model": "tiny-test", "repeats": 1, "warmup": 0})
LONG = parse_spec({"model": "minimind-26m", "repeats": 100, "timeout_s": 120})
CANCELLED: Ending = ("cancelled", "ended by the test")
Wait = Callable[..., None]


@pytest.fixture(scope="module")
def executor() -> Iterator[LocalExecutor]:
    before = dict(os.environ)
    started = LocalExecutor()
    started.start()
    yield started
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def long_worker(executor: LocalExecutor, tmp_path: Path, eventually: Wait) -> Iterator[LocalWorker]:
    lock = DeviceLock.try_acquire("test-device")
    assert lock is not None
    worker = executor.submit(Work.of(LONG, tmp_path / "run"), lock)
    lock.close()
    eventually((tmp_path / "run" / worker_module.WORKER_FILE).exists, "the worker says who it is")
    yield worker
    worker.cancel(CANCELLED, grace_s=0.2)


def run_to_its_end(executor: LocalExecutor, spec: Spec, folder: Path, wait: Wait) -> LocalWorker:
    worker = executor.submit(Work.of(spec, folder), None)
    wait(lambda: not worker.is_alive(), "the worker ends")
    return worker


def test_a_worker_leaves_a_whole_result_and_a_log(executor: LocalExecutor, tmp_path: Path, eventually: Wait) -> None:
    worker = run_to_its_end(executor, QUICK, tmp_path / "run", eventually)
    document = worker.collect()
    assert document["state"] == "succeeded"
    assert {metric["name"] for metric in document["metrics"]} >= {"init_time_s", "adapter_parameters"}
    assert (tmp_path / "run" / worker_module.LOG_FILE).read_text()


def test_a_result_from_before_a_restore_is_not_taken_for_that_of_a_worker_that_dies(
    executor: LocalExecutor, tmp_path: Path, eventually: Wait
) -> None:
    folder = tmp_path / "run"
    assert run_to_its_end(executor, QUICK, folder, eventually).collect()["state"] == "succeeded"
    worker = executor.submit(Work.of(LONG, folder), None)
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: not worker.is_alive(), "the killed worker is gone")
    assert worker.collect()["state"] == "lost"
    adopted = executor.adopt(worker.work)
    assert adopted is None or adopted.collect()["state"] == "lost"


def test_what_else_used_the_cpu_is_recorded_as_a_share(
    executor: LocalExecutor, tmp_path: Path, eventually: Wait
) -> None:
    def share(folder: str) -> float:
        spec = parse_spec({"model": "minimind-26m", "repeats": 20, "warmup": 0})
        result = run_to_its_end(executor, spec, tmp_path / folder, eventually).collect()
        return next(m["value"] for m in result["metrics"] if m["name"] == "background_cpu_share")

    quiet = share("quiet")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        disturbed = share("disturbed")
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert 0 <= quiet <= 1
    assert disturbed > 0.2


def test_a_job_that_raises_is_a_failed_result_with_one_sentence(
    executor: LocalExecutor, tmp_path: Path, eventually: Wait
) -> None:
    spec = parse_spec({"model": "tiny-test", "adapter": {"type": "lora", "target_modules": ["no_such_module"]}})
    result = run_to_its_end(executor, spec, tmp_path / "run", eventually).collect()
    assert result["state"] == "failed"
    assert "no_such_module" in result["error"]["text"]
    assert "\n" not in result["error"]["text"]
    assert "Traceback" in (tmp_path / "run" / worker_module.LOG_FILE).read_text()


def test_a_worker_leads_a_process_group_of_its_own(long_worker: LocalWorker) -> None:
    assert os.getpgid(long_worker.pid) == long_worker.pid != os.getpgid(0)


def test_the_device_lock_lives_as_long_as_the_worker(long_worker: LocalWorker, eventually: Wait) -> None:
    assert DeviceLock.try_acquire("test-device") is None
    os.kill(long_worker.pid, signal.SIGKILL)
    eventually(lambda: not long_worker.is_alive(), "the killed worker is gone")
    free = DeviceLock.try_acquire("test-device")
    assert free is not None
    free.close()


def test_a_killed_worker_is_lost_and_says_by_which_signal(long_worker: LocalWorker, eventually: Wait) -> None:
    os.kill(long_worker.pid, signal.SIGKILL)
    eventually(lambda: not long_worker.is_alive(), "the killed worker is gone")
    document = long_worker.collect()
    assert document["state"] == "lost"
    assert "SIGKILL" in document["error"]["text"]


def test_cancelling_ends_the_worker_within_two_seconds(long_worker: LocalWorker) -> None:
    started_s = time.monotonic()
    long_worker.cancel(CANCELLED)
    assert not is_same_process(long_worker.pid, long_worker.process_start_s)
    assert time.monotonic() - started_s < 2


def test_a_worker_can_be_adopted_by_pid_and_start_time(executor: LocalExecutor, long_worker: LocalWorker) -> None:
    adopted = executor.adopt(long_worker.work)
    assert adopted is not None
    assert adopted.pid == long_worker.pid
    assert adopted.is_alive()


def test_another_process_with_the_same_pid_is_neither_adopted_nor_ended(
    executor: LocalExecutor, long_worker: LocalWorker
) -> None:
    identity = {"pid": long_worker.pid, "process_start_s": long_worker.process_start_s - 1}
    (long_worker.work.folder / worker_module.WORKER_FILE).write_text(json.dumps(identity))
    adopted = executor.adopt(long_worker.work)
    assert adopted is not None
    assert not adopted.is_alive()
    assert adopted.collect()["state"] == "lost"
    adopted.cancel(CANCELLED)
    assert long_worker.is_alive()


def test_memory_is_sampled_from_outside_by_kind(long_worker: LocalWorker, eventually: Wait) -> None:
    # minimind in bf16 is 54 MB; what is forked from the server counts as anonymous too.
    eventually(lambda: long_worker.peak_rss_anon_bytes > 54e6, "the watch has seen the model's weights")
    long_worker.cancel(CANCELLED)
    assert {sample["category"] for sample in long_worker.collect()["samples"]} == {"anonymous", "file-backed"}


def test_a_run_past_its_timeout_is_timed_out_with_nobody_looking(
    executor: LocalExecutor, tmp_path: Path, eventually: Wait
) -> None:
    spec = parse_spec({"model": "minimind-26m", "repeats": 100, "timeout_s": 0.5})
    worker = run_to_its_end(executor, spec, tmp_path / "run", eventually)
    document = worker.collect()
    assert document["state"] == "timed_out"
    assert document["error"]["text"] == "timeout_s: the run took longer than its 0.5 s"


def test_a_run_past_its_memory_limit_is_out_of_memory_with_the_peak_it_reached(
    executor: LocalExecutor, tmp_path: Path, eventually: Wait
) -> None:
    spec = parse_spec({"model": "minimind-26m", "repeats": 100, "memory_limit_bytes": 2**20})
    worker = run_to_its_end(executor, spec, tmp_path / "run", eventually)
    document = worker.collect()
    assert document["state"] == "out_of_memory"
    assert document["metrics"][0]["value"] == worker.peak_rss_anon_bytes > 2**20


def test_a_run_that_was_ended_says_what_it_ran_on(long_worker: LocalWorker, eventually: Wait) -> None:
    # Building the model comes after what a worker says of itself.
    eventually(lambda: long_worker.progress() is not None, "the job has begun")
    long_worker.cancel(CANCELLED)
    document = long_worker.collect()
    assert document["state"] == "cancelled"
    assert document["environment"] == environment() | {"threads": document["environment"]["threads"]}


def test_a_preload_that_fails_is_an_error_although_python_swallows_it() -> None:
    # A fork server belongs to its process, so the broken one gets a process of its own.
    code = (
        "from engine.executors.local import LocalExecutor, ExecutorError\n"
        "executor = LocalExecutor()\n"
        "executor._context.set_forkserver_preload(['engine.no_such_module'])\n"
        "try: executor.start()\n"
        "except ExecutorError as error: print('refused:', error)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "refused: the fork server could not import engine.preload" in done.stdout, done.stderr


def test_spawn_is_a_setting_that_gives_the_same_result(tmp_path: Path, eventually: Wait) -> None:
    spawner = LocalExecutor("spawn")
    worker = spawner.submit(Work.of(QUICK, tmp_path / "run"), None)
    eventually(lambda: not worker.is_alive(), "the spawned worker ends", 90)
    assert worker.collect()["state"] == "succeeded"


def test_the_start_of_a_zombie_is_unknown() -> None:
    context = multiprocessing.get_context("fork")
    child = context.Process(target=os._exit, args=(0,))
    child.start()
    assert child.pid is not None
    time.sleep(0.3)
    assert process_start_s(child.pid) is None
    child.join()
