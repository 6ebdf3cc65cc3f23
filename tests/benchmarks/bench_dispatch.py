"""What PEFT Lab itself costs around a measurement: dispatch, and a sweep of short runs.

Prints two tables: seconds from claim to the first line of the job's code (warm fork server, against a cold spawn), and
the wall time of a sweep of 20 minimind-26m init runs. Does not measure adapters; ``bench_init`` does. Run it with
``make bench-init`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from db import queue, runs
from db.session import Database, open_database
from engine.executors.local import LocalExecutor
from engine.measure.environment import environment
from engine.spec import parse_spec, spec_hash

ROOT = Path(__file__).resolve().parents[2]
SWEEP_RUNS = 20


def new_run(seed: int, options: dict[str, bool], strategy: str, label: str) -> queue.NewRun:
    spec = parse_spec(
        {"model": "minimind-26m", "seed": seed, "strategy": strategy, "adapter": {"rank": 16, "options": options}}
    )
    document = spec.model_dump(mode="json")
    return queue.NewRun(
        kind="init",
        spec=document,
        spec_hash=spec_hash(spec),
        model="minimind-26m",
        adapter=label,
        adapter_type="lora",
        strategy=strategy,
        dtype=document["dtype"],
        device="cpu",
        priority=0,
    )


def wait_until_done(database: Database, run_ids: list[int], timeout_s: float = 300) -> None:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with database.reading() as db:
            rows = [runs.get_run(db, run_id) for run_id in run_ids]
        unfinished = [row for row in rows if row is not None and row.state in ("queued", "running")]
        if not unfinished:
            return
        time.sleep(0.2)
    raise TimeoutError(f"{len(unfinished)} runs unfinished after {timeout_s:.0f} s")


def supervised(home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "engine", "supervise"]
    with (home / "supervisor.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def sweep_and_dispatch() -> tuple[float, list[float]]:
    """Wall seconds of the sweep, first claim to last result, and claim-to-job seconds of each of its runs."""
    home = Path(tempfile.mkdtemp(prefix="peft-lab-bench-"))
    os.environ["PEFT_LAB_HOME"] = str(home)
    os.environ.pop("PEFT_LAB_DATABASE_URL", None)
    database = open_database()
    process = supervised(home)
    try:
        with database.writing() as db:
            warm = queue.enqueue(db, [new_run(10_000, {}, "stock", "LoRA")])
        wait_until_done(database, warm)
        sides = [
            ({}, "stock", "LoRA"),
            ({"use_dora": True}, "stock", "DoRA"),
            ({"use_dora": True}, "zero_b_norm", "DoRA"),
        ]
        with database.writing() as db:
            run_ids = queue.enqueue(db, [new_run(i, *sides[i % len(sides)]) for i in range(SWEEP_RUNS)])
        wait_until_done(database, run_ids)
        with database.reading() as db:
            rows = [row for row in (runs.get_run(db, run_id) for run_id in run_ids) if row is not None]
    finally:
        process.terminate()
        process.wait()
    failed = [row for row in rows if row.state != "succeeded"]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(rows)} runs did not succeed: {failed[0].error_text}")
    dispatch_s = []
    for row in rows:
        worker = json.loads((home / "runs" / row.uid / "worker.json").read_text())
        dispatch_s.append(worker["job_started_at"] - row.claimed_at)
    return max(row.finished_at for row in rows) - min(row.claimed_at for row in rows), dispatch_s


def cold_start_s(repeats: int) -> list[float]:
    """Seconds from submitting to the job's first line when every worker imports everything itself (``spawn``)."""
    executor = LocalExecutor("spawn")
    spec = parse_spec({"model": "tiny-test", "repeats": 1, "warmup": 0}).model_dump(mode="json")
    found = []
    for _ in range(repeats):
        folder = Path(tempfile.mkdtemp(prefix="peft-lab-bench-"))
        started_at = time.time()
        worker = executor.submit(spec, folder, None)
        while worker.is_alive():
            time.sleep(0.05)
        log = json.loads((folder / "worker.json").read_text())
        imported = json.loads((folder / "result.json").read_text())
        assert imported["state"] == "succeeded", imported["error"]
        found.append(log["job_started_at"] - started_at)
    return found


def line(name: str, values_s: list[float], target: str) -> str:
    quartiles = statistics.quantiles(values_s, n=4) if len(values_s) > 1 else [values_s[0]] * 3
    return (
        f"{name:44} {statistics.median(values_s):9.4f} {quartiles[0]:9.4f} {quartiles[2]:9.4f} "
        f"{max(values_s):9.4f} {len(values_s):4d}  {target}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cold-repeats", type=int, default=3)
    options = parser.parse_args()
    machine = environment()
    print(
        f"{machine['cpu']}, {machine['cores']} cores; torch {machine['packages']['torch']}, commit {machine['commit']}"
    )
    wall_s, dispatch_s = sweep_and_dispatch()
    print(f"{'seconds':44} {'median':>9} {'q1':>9} {'q3':>9} {'max':>9} {'n':>4}  target")
    print(line("claim to job's first line, warm fork", dispatch_s, "<= 0.050"))
    print(line("submit to job's first line, cold spawn", cold_start_s(options.cold_repeats), "(for comparison)"))
    print(line(f"sweep of {SWEEP_RUNS} minimind-26m init runs, wall", [wall_s], "<= 20"))


if __name__ == "__main__":
    main()
