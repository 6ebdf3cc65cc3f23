"""The machine as the System page sees it: what is worth a warning, control group limits, programs that are not ours."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.host import Host, Limits, Process, limits, look, other_processes
from app.host_warnings import host_warnings, supervisor_warning

GIB = 2**30
QUIET = Host(
    memory_bytes=16 * GIB,
    available_bytes=12 * GIB,
    swap_used_bytes=0,
    disk_bytes=200 * GIB,
    disk_free_bytes=90 * GIB,
    cores=8,
    machine_cores=8,
    governors=("performance",),
    limits=Limits(),
    processes=(Process(7, "shell", 0.001, 2**20),),
)
SPIN = "print('up', flush=True)\nwhile True: pass"


def test_a_quiet_machine_has_no_warning() -> None:
    assert host_warnings(QUIET) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swap_used_bytes": 3 * GIB // 2}, "1.50 GiB of swap is in use"),
        ({"governors": ("performance", "powersave")}, "governor powersave"),
        ({"limits": Limits(memory_bytes=4 * GIB)}, "leaves PEFT Lab 4.00 GiB of this machine's 16.0 GiB"),
        ({"limits": Limits(cores=1.5)}, "may use 1.5 of this machine's 8 cores"),
        ({"cores": 1}, "times are those of one core"),
        ({"disk_free_bytes": GIB}, "Only 1.00 GiB of disk is free"),
        ({"processes": (Process(42, "indexer", 0.43, GIB),)}, "indexer (process 42, 43 % of the CPU, 1.00 GiB)"),
        ({"processes": (Process(43, "idle but large", 0.0, 3 * GIB),)}, "idle but large (process 43"),
    ],
)
def test_each_thing_that_is_wrong_has_its_own_sentence(changes: dict[str, Any], words: str) -> None:
    (sentence,) = host_warnings(dataclasses.replace(QUIET, **changes))
    assert words in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "changes",
    [
        {"swap_used_bytes": 10 * 2**20},
        {"governors": ()},
        {"limits": Limits(memory_bytes=9223372036854771712, cores=8.0)},
        {"processes": (Process(42, "clock", 0.02, GIB),)},
    ],
)
def test_what_disturbs_nothing_is_not_warned_of(changes: dict[str, Any]) -> None:
    assert host_warnings(dataclasses.replace(QUIET, **changes)) == []


def test_of_many_programs_the_first_are_named_and_the_rest_counted() -> None:
    many = tuple(Process(pid, f"job{pid}", 0.2, GIB) for pid in range(1, 6))
    (sentence,) = host_warnings(dataclasses.replace(QUIET, processes=many))
    assert "job3" in sentence
    assert "job4" not in sentence
    assert "and 2 more" in sentence


def test_a_supervisor_that_gives_no_sign_is_warned_of_only_after_a_minute() -> None:
    assert supervisor_warning(1000.0, 1030.0) is None
    assert "no sign for 3 min" in (supervisor_warning(1000.0, 1180.0) or "")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_lowest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "user/lab/memory.max": "max\n",
            "user/lab/cpu.max": "max 100000\n",
            "user/memory.max": f"{4 * GIB}\n",
            "user/cpu.max": "150000 100000\n",
            "memory.max": f"{8 * GIB}\n",
        },
    )
    assert limits("0::/user/lab\n", tmp_path) == Limits(4 * GIB, 1.5)


def test_limits_of_the_first_version_of_control_groups_count_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
            "cpu/box/cpu.cfs_quota_us": "50000\n",
            "cpu/box/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert limits("4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n", tmp_path) == Limits(2 * GIB, 0.5)


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert limits("", tmp_path) == Limits()
    assert limits("0::/../elsewhere\n", tmp_path) == Limits()


def test_a_program_that_spins_is_found_unless_it_is_one_of_ours(tmp_path: Path) -> None:
    spinning = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)
    try:
        assert spinning.stdout is not None
        assert spinning.stdout.readline() == b"up\n"
        shares = {process.pid: process.cpu_share for process in other_processes([], 1, 0.3)}
        assert shares[spinning.pid] > 0.05
        assert os.getpid() in shares
        seen = {process.pid for process in look(tmp_path, [os.getpid()], 0.0).processes}
        assert not seen & {spinning.pid, os.getpid()}, "it descends from this process"
    finally:
        spinning.kill()
        spinning.wait()
