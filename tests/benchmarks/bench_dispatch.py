"""What PEFT Lab itself costs around a measurement: dispatch, and a sweep of short runs.

Prints seconds from claim to the first line of the job's code (warm fork server, against a cold spawn) and the wall time
of a sweep of 20 minimind-26m init runs. Does not measure adapters (``bench_init``) or the dashboard
(``bench_dashboard``). Run it with ``make bench-init`` on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.executors import Work
from engine.executors.local import LocalExecutor
from engine.measure.environment import environment
from engine.spec import parse_spec
from tests.benchmarks.lab import Lab, lab
from tests.benchmarks.table import HEADER, machine_line, row, save

SWEEP_RUNS = 20
LORA_SWEEP = [
    {"adapter": {"rank": rank, "target_modules": targets}}
    for rank in (4, 8, 16, 32, 64)
    for targets in ("all-linear", "attention", "qv", "mlp")
]
DORA = {"options": {"use_dora": True}}
SIDES = ({}, {"adapter": DORA}, {"adapter": DORA, "strategy": "zero_b_norm"})
MIXED_SWEEP = [{"seed": seed, **SIDES[seed % len(SIDES)]} for seed in range(SWEEP_RUNS)]


def job_started_at(folder: Path) -> float:
    """When the worker of a run folder came to the first line of the job, as its log says."""
    found = re.search(r"job started at ([0-9.]+)", (folder / "log.txt").read_text())
    assert found is not None, "the log says when the job started"
    return float(found[1])


def sweep_and_dispatch(opened: Lab, sweep: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """Wall seconds of a sweep, first claim to last result, and claim-to-job seconds of each of its runs."""
    runs = opened.wait(opened.submit(*({"model": "minimind-26m", **fields} for fields in sweep)))
    dispatch_s = [job_started_at(opened.home / "runs" / run.uid) - run.claimed_at for run in runs]
    return max(run.finished_at or 0 for run in runs) - min(run.claimed_at or 0 for run in runs), dispatch_s


def cold_start_s(repeats: int) -> list[float]:
    """Seconds from submitting to the job's first line when every worker imports everything itself (``spawn``)."""
    executor = LocalExecutor("spawn")
    spec = parse_spec({"model": "tiny-test", "repeats": 1, "warmup": 0})
    found = []
    for _ in range(repeats):
        folder = Path(tempfile.mkdtemp(prefix="peft-lab-bench-"))
        started_at = time.time()
        worker = executor.submit(Work.of(spec, folder), None)
        while worker.is_alive():
            time.sleep(0.05)
        found.append(job_started_at(folder) - started_at)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cold-repeats", type=int, default=3)
    options = parser.parse_args()
    machine = environment()
    with lab() as opened:
        lora_s, dispatch_s = sweep_and_dispatch(opened, LORA_SWEEP)
        mixed_s, more_s = sweep_and_dispatch(opened, MIXED_SWEEP)
    dispatch_s += more_s
    cold_s = cold_start_s(options.cold_repeats)
    print(machine_line(machine))
    print(HEADER)
    print(row("claim to the job's first line, warm fork", dispatch_s, target=0.050))
    print(row("submit to the job's first line, cold spawn", cold_s))
    print(row(f"{SWEEP_RUNS} minimind-26m runs: LoRA, 5 ranks x 4 targets", [lora_s], target=20))
    print(row(f"{SWEEP_RUNS} minimind-26m runs: LoRA, DoRA, zero_b_norm", [mixed_s], target=20))
    figures = {"dispatch_time_s": dispatch_s, "cold_dispatch_time_s": cold_s}
    figures |= {"lora_sweep_time_s": [lora_s], "mixed_sweep_time_s": [mixed_s]}
    print(f"saved {save('dispatch', machine, figures)}")


if __name__ == "__main__":
    main()
