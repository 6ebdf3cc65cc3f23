"""How fast a lab on PostgreSQL queues, claims and stores runs, and what that means for 100 nodes and 100,000 runs.

Starts a server of its own, with every commit on the disk (``fsync=on``), and processes that do what dashboards and
supervisors do to the database, through the same functions; nothing is measured meanwhile. Server and processes share
the machine's cores, so a server of its own is faster. The plan for many nodes is arithmetic on these rates and says so.
Run it with ``make bench-postgresql`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from db import queue
from db.session import Database, open_database
from engine.measure.environment import environment
from tests.benchmarks.table import machine_line, save
from tests.postgresql import Server, why_not

NODES, RUNS = 100, 100_000
SWEEP = 100
METRICS, SERIES, SAMPLES = 100, 4, 600
HEADER = f"{'':62} {'1 process':>12} {'4 processes':>12}"
_numbers = itertools.count()
_barrier: Any = None


def new_run(number: int, device: str) -> queue.NewRun:
    spec = {"kind": "init", "model": "tiny-test", "device": device, "seed": number}
    return queue.NewRun(
        kind="init", spec=spec, spec_hash=f"{number:064x}", model="tiny-test", device=device, adapter="LoRA"
    )


def document() -> dict[str, Any]:
    """A result as an inference run has it: its metrics, and the samples that are left of a long run."""
    metrics = [
        {"name": f"m{n % 20}_s", "unit": "s", "variant": "base", "repeat": n // 20, "value": n} for n in range(METRICS)
    ]
    samples = [
        {"source": "process", "time_s": step / 10, "phase": "run", "category": f"c{series}", "bytes": step}
        for step in range(SAMPLES)
        for series in range(SERIES)
    ]
    return {"state": "succeeded", "metrics": metrics, "samples": samples, "environment": {"cores": 2}}


def launch(database: Database, device: str, count: int) -> int:
    """Queue sweeps as a page does; how many runs."""
    for _ in range(count // SWEEP):
        with database.writing() as session:
            queue.enqueue(session, [new_run(next(_numbers), device) for _ in range(SWEEP)], "sweep")
    return count // SWEEP * SWEEP


def serve(database: Database, device: str, count: int, result: dict[str, Any]) -> int:
    """Claim, start and finish runs, each in its own transaction as a supervisor does; how many there were."""
    for number in range(count):
        with database.writing() as session:
            run = queue.claim(session, supervisor="one", devices=[device], kinds=["init"])
        if run is None:
            return number
        with database.writing() as session:
            queue.started(session, run.id, 1, 1.0, "runs/x")
        with database.writing() as session:
            queue.finish(session, run.id, result)
    return count


def serve_empty(database: Database, device: str, count: int) -> int:
    return serve(database, device, count, {"state": "succeeded"})


def serve_full(database: Database, device: str, count: int) -> int:
    return serve(database, device, count, document())


Work = Callable[[Database, str, int], int]


def _join(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _timed(work: Work, url: str, device: str, count: int) -> tuple[float, float, int]:
    """When the work began and ended, and how many runs it was."""
    database = open_database(url)
    with database.reading() as session:
        queue.queue_depth(session)
    _barrier.wait()
    begun_s = time.time()
    done = work(database, device, count)
    ended_s = time.time()
    database.close()
    return begun_s, ended_s, done


def rate(url: str, work: Work, processes: int, count: int) -> float:
    """Runs per second, by so many processes with ``count`` runs each."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(processes, timeout=60)
    with ProcessPoolExecutor(processes, spawn, initializer=_join, initargs=(barrier,)) as pool:
        calls = [pool.submit(_timed, work, url, "cpu", count) for _ in range(processes)]
        answers = [call.result() for call in calls]
    begun_s, ended_s = min(answer[0] for answer in answers), max(answer[1] for answer in answers)
    return sum(answer[2] for answer in answers) / (ended_s - begun_s)


def claim_s(database: Database, device: str, count: int) -> float:
    """The median time of a claim, its commit included."""
    seconds = []
    for _ in range(count):
        begun_s = time.perf_counter()
        with database.writing() as session:
            assert queue.claim(session, supervisor="one", devices=[device], kinds=["init"]) is not None
        seconds.append(time.perf_counter() - begun_s)
    return statistics.median(seconds)


def plan(launched: float, cycles: float, results: float, claim_last_s: float) -> list[str]:
    """What these rates mean for many nodes, and which is the bottleneck."""
    return [
        f"On paper, {NODES} nodes and {RUNS:,} runs, a run at a time on each node:",
        f"  launching them                      {RUNS / launched:8.0f} s, at {launched:.0f} runs/s",
        f"  claiming and ending them            {RUNS / cycles:8.0f} s of the database's time, at {cycles:.0f} runs/s",
        f"  with what was measured in each      {RUNS / results:8.0f} s, at {results:.0f} results/s: the bottleneck",
        f"  so the nodes are kept busy by runs of {NODES / results:.1f} s and longer; of 60 s each, the plan takes "
        f"{RUNS / NODES * 60 / 3600:.1f} h and the database is at work {NODES / 60 / results:.0%} of it",
        f"  a claim past {RUNS:,} queued runs of other devices takes {claim_last_s * 1000:.0f} ms",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400, help="runs of each process and rate")
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"bench_postgresql: {reason}; `make postgresql` installs it")
    machine = environment()
    print(machine_line(machine))
    print(HEADER)
    works: dict[str, tuple[Work, int]] = {
        f"runs queued per second, in sweeps of {SWEEP}": (launch, options.runs * 2),
        "runs claimed, started and ended per second": (serve_empty, options.runs),
        f"the same with {METRICS} metrics and {SERIES * SAMPLES} samples each": (serve_full, options.runs // 8),
    }
    server = Server()
    try:
        url = server.url(server.create())
        open_database(url).close()
        rates: dict[str, list[float]] = {}
        for name, (work, count) in works.items():
            rates[name] = [rate(url, work, processes, count) for processes in (1, 4)]
            print(f"{name:62} {rates[name][0]:12.0f} {rates[name][1]:12.0f}", flush=True)
        database = open_database(url)
        launch(database, "cuda:0", RUNS)
        launch(database, "last", SWEEP)
        first_s, last_s = claim_s(database, "cuda:0", 50), claim_s(database, "last", 20)
        print(f"{f'ms per claim with {RUNS:,} queued, of the first device':62} {first_s * 1000:12.2f}")
        print(f"{f'ms per claim with {RUNS:,} queued, all of another device':62} {last_s * 1000:12.2f}")
        size = database.size()
        database.close()
    finally:
        server.stop()
    launched, cycles, results = (max(found) for found in rates.values())
    print("\n".join(plan(launched, cycles, results, last_s)))
    figures = {
        "rates_per_s": rates,
        "claim_s": {"first device": first_s, "past all others": last_s},
        "database_bytes": size.file_bytes if size else None,
    }
    print(f"saved {save('postgresql', machine, figures)}")


if __name__ == "__main__":
    main()
