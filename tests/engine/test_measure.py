"""Timing, tensor memory, process memory, environment and disturbance, on real tensors and processes."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import torch

from engine.measure import environment
from engine.measure.device_memory import DevicePeaks
from engine.measure.disturbance import BackgroundCpu
from engine.measure.process_memory import PeakIncrease, read_process_memory
from engine.measure.tensors import TEMPORARY, TensorTracker
from engine.measure.timing import Timer

CPU = torch.device("cpu")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_peak_counts_a_temporary_that_is_gone_at_the_end() -> None:
    tracker = TensorTracker()
    with tracker:
        first = torch.ones(1000)
        second = first * 2
        del second
    assert tracker.peak_extra_bytes == 8000
    assert tracker.live_bytes == 4000
    del first
    assert tracker.live_bytes == 0


def test_views_and_shared_storages_are_counted_once() -> None:
    base = torch.zeros(1000)
    tracker = TensorTracker()
    tracker.watch([base, base.view(10, 100), base[:5]], "base parameters")
    with tracker:
        _ = base.view(100, 10)[1]
    assert tracker.peak_bytes == 4000
    assert tracker.peak_extra_bytes == 0


def test_what_is_assigned_later_was_never_a_temporary() -> None:
    tracker = TensorTracker()
    with tracker:
        kept = torch.ones(1000)
        gone = torch.ones(3000)
        del gone
    tracker.assign([torch.nn.Parameter(kept)], "adapter parameters")
    moments = tracker.timeline()
    assert max(at.bytes for at in moments if at.category == "adapter parameters") == 4000
    assert max(at.bytes for at in moments if at.category == TEMPORARY) == 12000


def test_thinned_timeline_keeps_the_peak() -> None:
    tracker = TensorTracker()
    with tracker:
        for size in (10, 10, 5000, 10, 10, 10, 10, 10):
            torch.ones(size)
    moments = tracker.timeline(most_moments=3)
    assert max(at.bytes for at in moments) == tracker.peak_bytes == 20000
    assert len({at.time_s for at in moments}) <= 3


def test_tensors_without_memory_are_not_counted() -> None:
    tracker = TensorTracker()
    with tracker:
        torch.empty(10**9, device="meta")
    assert tracker.peak_bytes == 0


def test_a_storage_that_grows_in_place_is_counted_at_its_new_size() -> None:
    tracker = TensorTracker()
    with tracker:
        grown = torch.ones(10)
        grown.resize_(1000)
    assert tracker.live_bytes == 4000


# --- time -------------------------------------------------------------------------------------------------------------


def test_timer_measures_the_block_and_turns_collection_off_inside_only() -> None:
    with Timer(CPU) as timer:
        assert not gc.isenabled()
        time.sleep(0.05)
    assert gc.isenabled()
    assert 0.05 <= timer.seconds < 0.5


def test_timer_of_a_block_that_raises_has_no_seconds_and_collects_again() -> None:
    timer = Timer(CPU)
    with pytest.raises(KeyError), timer:
        raise KeyError
    assert math.isnan(timer.seconds)
    assert gc.isenabled()


# --- process memory ---------------------------------------------------------------------------------------------------


@linux_only
def test_resident_memory_splits_into_its_parts() -> None:
    memory = read_process_memory()
    assert memory is not None
    assert None not in (memory.rss_anon_bytes, memory.rss_file_bytes, memory.rss_shared_bytes)
    parts = memory.rss_anon_bytes + memory.rss_file_bytes + memory.rss_shared_bytes
    assert parts == memory.rss_bytes
    assert memory.peak_rss_bytes >= memory.rss_bytes > 2**20


def test_memory_of_a_process_that_has_ended_is_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert read_process_memory(child.pid) is None


@linux_only
def test_peak_increase_sees_memory_that_was_freed_again() -> None:
    with PeakIncrease() as increase:
        block = torch.ones(50_000_000)
        time.sleep(0.02)
        del block
    assert increase.rss_bytes == pytest.approx(200e6, rel=0.05)
    assert increase.rss_anon_bytes == pytest.approx(200e6, rel=0.05)


@linux_only
def test_peak_increase_forgets_an_earlier_higher_peak() -> None:
    block = torch.ones(50_000_000)
    del block
    with PeakIncrease() as increase:
        torch.ones(5_000_000)
    assert increase.rss_bytes < 60e6


def test_devices_without_counters_have_no_peaks() -> None:
    assert DevicePeaks(CPU).increases() == {}


# --- environment ------------------------------------------------------------------------------------------------------


def test_environment_is_plain_json_and_says_what_it_ran_on() -> None:
    facts = environment.environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 2**28
    assert facts["threads"] == torch.get_num_threads()


@pytest.mark.alone
def test_environment_is_ready_at_once_the_second_time() -> None:
    environment.preload()
    start = time.perf_counter()
    environment.environment()
    assert time.perf_counter() - start < 0.02


def test_environment_records_the_worker_variables_that_are_really_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.WORKER_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "123")
    variables = environment.environment()["variables"]
    assert variables["MALLOC_MMAP_THRESHOLD_"] == "123"
    assert "MALLOC_TRIM_THRESHOLD_" not in variables


def test_reading_the_worker_variables_does_not_load_torch() -> None:
    code = "import sys, engine.measure.environment as e; assert e.WORKER_ENVIRONMENT; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_cpu_is_always_a_device_with_every_dtype() -> None:
    cpu = environment.devices()[0]
    assert (cpu.id, cpu.kind) == ("cpu", "cpu")
    assert cpu.dtypes == ("float32", "bfloat16", "float16")
    assert cpu.memory_bytes > 2**28


# --- disturbance ------------------------------------------------------------------------------------------------------


def _burn(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@linux_only
def test_work_of_another_process_is_background_and_ones_own_is_not() -> None:
    with BackgroundCpu() as alone:
        _burn(0.6)
    other = multiprocessing.get_context("fork").Process(target=_burn, args=(60.0,))
    other.start()
    try:
        with BackgroundCpu() as disturbed:
            _burn(0.6)
    finally:
        other.kill()
        other.join()
    cores = os.cpu_count() or 1
    assert disturbed.share is not None
    assert alone.share is not None
    assert disturbed.share > 0.4 / cores
    # Whatever else this machine does, the process added about one core's share.
    assert disturbed.share > alone.share or alone.share > 0.5


def test_a_block_too_short_to_tell_has_no_share() -> None:
    with BackgroundCpu() as background:
        pass
    assert background.share is None
