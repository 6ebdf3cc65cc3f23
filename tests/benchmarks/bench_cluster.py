"""What a cluster costs a run, and whether it loses any: Ray's nodes, all simulated on this machine.

Prints seconds from queued to result for runs alone in the queue, by turns on the local executor and on a node, and then
sends tiny runs to four nodes of which one is killed twice on the way: how they ended, and whether any was lost or
measured twice. All nodes share this machine's cores, so their rate says nothing of four machines. Run it with
``make bench-cluster`` on an otherwise idle machine; ``--only``, ``--pairs`` and ``--runs`` make it shorter.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from db import runs
from engine.measure.environment import environment
from tests.benchmarks.lab import Lab, lab
from tests.benchmarks.table import HEADER, machine_line, row, save
from tests.simulated_cluster import SimulatedCluster

NODES = ("north", "east", "south", "west")
TINY = {"model": "tiny-test", "repeats": 1, "warmup": 0}
OVERHEAD_TARGET_S = 1.0
#: When the node is killed: after these shares of the runs have ended. It is back 10 s later.
KILLED_AFTER = (0.25, 0.6)
BACK_AFTER_S = 10.0


@contextlib.contextmanager
def cluster(*names: str) -> Iterator[SimulatedCluster]:
    """A cluster with nodes of these names; labs that are opened inside send their runs there."""
    with tempfile.TemporaryDirectory(prefix="r-") as folder:
        started = SimulatedCluster(Path(folder))
        for name in names:
            started.add(name)
        os.environ["PEFT_LAB_EXECUTOR"] = started.address
        try:
            yield started
        finally:
            del os.environ["PEFT_LAB_EXECUTOR"]
            started.close()


def queued_to_result_s(opened: Lab) -> float:
    """Seconds that one run takes that nothing waits before."""
    [run] = opened.wait(opened.submit(TINY))
    return (run.finished_at or 0.0) - run.created_at


def overhead(pairs: int) -> dict[str, Any]:
    """A run here and a run on a node, by turns."""
    with lab() as here, cluster("north"), lab() as there:
        found = [(queued_to_result_s(here), queued_to_result_s(there)) for _ in range(pairs)]
    local_s, remote_s = ([pair[side] for pair in found] for side in (0, 1))
    more_s = [remote - local for local, remote in found]
    print(row("queued to result, local", local_s))
    print(row("queued to result, on a node", remote_s))
    print(row("what the node adds", more_s, OVERHEAD_TARGET_S))
    return {"local_s": local_s, "remote_s": remote_s}


def faults(count: int) -> dict[str, Any]:
    """Tiny runs over four nodes, one of which is killed twice."""
    with cluster(*NODES) as started, lab() as opened:
        began_s = time.monotonic()
        ids = opened.submit(*[TINY] * count)
        for share in KILLED_AFTER:
            _wait_for_ends(opened, ids, share * count)
            started.kill(NODES[0])
            time.sleep(BACK_AFTER_S)
            started.add(NODES[0])
        opened.wait_until_idle(timeout_s=3600)
        wall_s = time.monotonic() - began_s
        with opened.database.reading() as db:
            rows = [runs.get_run(db, run_id) for run_id in ids]
        kept = [one for one in rows if one is not None]
        states = Counter(one.state for one in kept)
        places = Counter((one.environment or {}).get("node") for one in kept if one.state == "succeeded")
        figures = {
            "runs": count,
            "wall_s": wall_s,
            "states": dict(states),
            "nodes": dict(places),
            "lost_from_the_database": count - len(kept),
            "replicas_twice": len(kept) - len({(one.spec_hash, one.replica) for one in kept}),
            "measured_twice": sum(_jobs_begun(opened.home, one.uid) > 1 for one in kept),
        }
    print(f"{count} runs over {len(NODES)} nodes, {NODES[0]} killed {len(KILLED_AFTER)} times, in {wall_s:.0f} s")
    print("  ended: " + ", ".join(f"{number} {state}" for state, number in states.most_common()))
    print("  measured on: " + ", ".join(f"{node} {number}" for node, number in sorted(places.items())))
    for name in ("lost_from_the_database", "replicas_twice", "measured_twice"):
        print(f"  {name.replace('_', ' ')}: {figures[name]}")
    return figures


def _wait_for_ends(opened: Lab, ids: list[int], ended: float) -> None:
    while True:
        with opened.database.reading() as db:
            left = len(runs.queued_and_running(db))
        if len(ids) - left >= ended:
            return
        time.sleep(1.0)


def _jobs_begun(home: Path, uid: str) -> int:
    path = home / "runs" / uid / "log.txt"
    return path.read_text().count("job started at") if path.exists() else 0


def main() -> None:
    """Print the tables and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("overhead", "faults"))
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    machine = environment()
    print(machine_line(machine))
    if options.only != "faults":
        print(HEADER)
        print(save("cluster_overhead", machine, overhead(options.pairs)))
    if options.only != "overhead":
        print(save("cluster_faults", machine, faults(options.runs)))


if __name__ == "__main__":
    main()
