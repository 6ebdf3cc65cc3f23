"""Runs on the nodes of a real Ray cluster, all on this machine: in parallel, watched, cancelled, and never left behind.

One cluster and one supervisor for all tests here. Nodes are told apart by temporary folders of their own, and so by
device locks of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from db import nodes, queue, runs
from db.nodes import NodeRow
from db.session import Database, open_database
from engine.executors.processes import is_same_process
from engine.spec import parse_spec, spec_hash
from tests.simulated_cluster import ROOT, SimulatedCluster

pytest.importorskip("ray", reason="Ray is not installed; `make cluster` installs it")

Wait = Callable[..., None]
START_S = 120.0
#: For setting up only: each node imports torch and PEFT twice, all at once and beside other tests.
JOIN_S = 300.0


@dataclass
class Lab:
    """A home with its database, the cluster, and the supervisor that is its driver."""

    home: Path
    database: Database
    cluster: SimulatedCluster
    supervisor: Any = None

    def supervise(self) -> None:
        # From a folder without the project: a node finds that by its own setting or not at all.
        variables = {
            **os.environ,
            "PEFT_LAB_HOME": str(self.home),
            "PEFT_LAB_EXECUTOR": self.cluster.address,
            "PYTHONPATH": str(ROOT),
        }
        with (self.home / "supervisor.log").open("ab") as log:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "engine", "supervise"], cwd=self.home, env=variables, stdout=log, stderr=log
            )

    def enqueue(self, node: str | None, **fields: Any) -> int:
        spec = parse_spec({"kind": "init", "model": "tiny-test", "repeats": 1, "warmup": 0, "node": node, **fields})
        new = queue.NewRun(
            kind=spec.kind,
            spec=spec.model_dump(mode="json"),
            spec_hash=spec_hash(spec),
            model="tiny-test",
            device="cpu",
            node=node,
        )
        with self.database.writing() as db:
            return queue.enqueue(db, [new])[0]

    def enqueue_long(self, node: str | None) -> int:
        return self.enqueue(node, model="minimind-26m", repeats=100)

    def run(self, run_id: int) -> Any:
        with self.database.reading() as db:
            return runs.get_run(db, run_id)

    def node(self, name: str) -> NodeRow | None:
        with self.database.reading() as db:
            return next((node for node in nodes.nodes(db) if node.name == name), None)

    def cancel(self, *run_ids: int) -> None:
        with self.database.writing() as db:
            queue.request_cancel(db, run_ids)

    def worker(self, run_id: int, node: str) -> tuple[int, float]:
        """Pid and start of the run's worker, from its folder on the node."""
        uid = Path(self.run(run_id).run_folder).name
        [written] = self.folder(node).glob(f"peft-lab-node-*/{uid}/worker.json")

        document = json.loads(written.read_text())
        return document["pid"], document["process_start_s"]

    def folder(self, node: str) -> Path:
        return self.cluster.folder / node


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # Not below the tests' own folder, whose path is too long for Ray.
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield from lab_in(Path(folder))


def lab_in(folder: Path) -> Iterator[Lab]:
    """A supervisor with its home in this folder, and a cluster of nodes for it."""
    home = folder / "home"
    home.mkdir()
    patch = pytest.MonkeyPatch()
    patch.setenv("PEFT_LAB_HOME", str(home))
    patch.delenv("PEFT_LAB_DATABASE_URL", raising=False)
    # A node with another PEFT, for whoever asks for versions.
    other = folder / "packages" / "peft-0.99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.99.0\n")
    cluster = SimulatedCluster(folder)
    cluster.add("a")
    cluster.add("other", f"{other.parent}:{ROOT}")
    cluster.add("bare", str(folder))
    opened = Lab(home, open_database(), cluster)
    opened.supervise()
    yield opened
    opened.supervisor.kill()
    opened.supervisor.wait()
    opened.database.close()
    cluster.close()
    patch.undo()


@pytest.fixture
def ready(lab: Lab, eventually: Wait) -> Lab:
    """The lab once its nodes have answered."""
    eventually(
        lambda: all((row := lab.node(name)) is not None and row.state != "lost" for name in ("a", "other")),
        "both nodes are there",
        JOIN_S,
    )
    return lab


def end_of(lab: Lab, run_id: int, wait: Wait, timeout_s: float = 60.0) -> Any:
    wait(lambda: lab.run(run_id).state not in ("queued", "running"), f"run {run_id} ends", timeout_s)
    return lab.run(run_id)


def under_way(lab: Lab, run_id: int, wait: Wait) -> None:
    wait(lambda: (lab.run(run_id).progress or {}).get("total"), f"run {run_id} reports its repeats", START_S)


def test_a_run_is_measured_on_the_node_that_it_names_and_its_log_comes_here(ready: Lab, eventually: Wait) -> None:
    row = end_of(ready, ready.enqueue("a"), eventually)
    assert row.state == "succeeded", row.error_text
    assert row.environment["node"] == "a"
    assert {metric.name for metric in row.metrics} >= {"init_time_s", "init_peak_extra_bytes"}
    assert {sample.source for sample in row.samples} == {"process", "tensors"}
    assert "job started" in Path(row.run_folder, "log.txt").read_text()
    assert not list(ready.folder("a").glob("peft-lab-node-*/*/result.json")), "the node keeps nothing"


def test_what_a_worker_finds_is_what_it_would_find_without_ray(ready: Lab, eventually: Wait) -> None:
    row = end_of(ready, ready.enqueue("a"), eventually)
    given = {name: value for name, value in os.environ.items() if name.startswith("OMP_")}
    assert {name: value for name, value in row.environment["variables"].items() if name.startswith("OMP_")} == given


def test_runs_on_two_nodes_go_on_at_once_and_show_how_far_they_are(ready: Lab, eventually: Wait) -> None:
    first, second = ready.enqueue_long("a"), ready.enqueue_long("other")
    for run_id in (first, second):
        under_way(ready, run_id, eventually)
    assert {ready.run(run_id).state for run_id in (first, second)} == {"running"}
    assert [ready.run(run_id).progress["node"] for run_id in (first, second)] == ["a", "other"]
    for run_id in (first, second):
        log = Path(ready.run(run_id).run_folder, "log.txt")
        eventually(lambda log=log: "repeat" in log.read_text(), "its log is here")
    workers = {run_id: ready.worker(run_id, node) for run_id, node in ((first, "a"), (second, "other"))}
    ready.cancel(first, second)
    for run_id, worker in workers.items():
        assert end_of(ready, run_id, eventually).state == "cancelled"
        assert not is_same_process(*worker)


def test_a_device_of_a_node_has_one_run_at_a_time(ready: Lab, eventually: Wait) -> None:
    long, waiting = ready.enqueue_long("a"), ready.enqueue("a")
    under_way(ready, long, eventually)
    assert ready.run(waiting).state == "queued"
    ready.cancel(long)
    assert end_of(ready, waiting, eventually).state == "succeeded"


def test_a_run_over_its_memory_limit_is_stopped_by_its_node(ready: Lab, eventually: Wait) -> None:
    row = end_of(ready, ready.enqueue("a", model="minimind-26m", memory_limit_bytes=50_000_000), eventually)
    assert row.state == "out_of_memory", row.error_text
    assert "memory_limit_bytes" in row.error_text
    assert next(metric.value for metric in row.metrics if metric.name == "peak_rss_bytes") > 50_000_000


def test_a_killed_worker_ends_its_run_as_lost_and_the_node_goes_on(ready: Lab, eventually: Wait) -> None:
    killed = ready.enqueue_long("a")
    under_way(ready, killed, eventually)
    os.kill(ready.worker(killed, "a")[0], signal.SIGKILL)
    row = end_of(ready, killed, eventually)
    assert (row.state, "SIGKILL" in row.error_text) == ("lost", True)
    assert end_of(ready, ready.enqueue("a"), eventually).state == "succeeded"


@pytest.mark.parametrize("title", ["ray::hold_run", "ray::NodeAgent"])
def test_no_worker_outlives_what_holds_or_watches_it(ready: Lab, eventually: Wait, title: str) -> None:
    run_id = ready.enqueue_long("a")
    under_way(ready, run_id, eventually)
    worker = ready.worker(run_id, "a")
    [process] = ready.cluster.processes("a", title)
    process.kill()
    eventually(lambda: not is_same_process(*worker), "the worker is ended")
    assert end_of(ready, run_id, eventually).state == "lost"
    assert end_of(ready, ready.enqueue("a"), eventually, START_S).state == "succeeded", "the node goes on"


def test_a_node_with_other_versions_takes_only_runs_that_name_it(ready: Lab, eventually: Wait) -> None:
    eventually(lambda: ready.node("other") is not None, "the node is there", START_S)
    assert ready.node("other").state == "differs"
    assert ready.node("other").versions["peft"] == "0.99.0"
    anywhere = [ready.enqueue(None) for _ in range(3)]
    named = ready.enqueue("other")
    assert end_of(ready, named, eventually).environment["packages"]["peft"] == "0.99.0"
    assert {end_of(ready, run_id, eventually).environment["node"] for run_id in anywhere} == {"a"}


def test_a_node_without_the_engine_says_so_and_gets_no_run(ready: Lab, eventually: Wait) -> None:
    eventually(lambda: ready.node("bare") is not None, "the node is there", START_S)
    found = ready.node("bare")
    assert (found.state, found.devices) == ("broken", ())
    assert found.problem == "PEFT Lab is not installed there, or not where its Ray was started"


def test_a_request_is_answered_on_the_head_whatever_the_nodes_do(ready: Lab, eventually: Wait) -> None:
    spec = parse_spec({"kind": "inspect", "model": "tiny-test"})
    new = queue.NewRun(
        kind="inspect",
        spec=spec.model_dump(mode="json"),
        spec_hash=spec_hash(spec),
        model="tiny-test",
        device="cpu",
        priority=1,
    )
    with ready.database.writing() as db:
        [run_id] = queue.enqueue(db, [new])
    row = end_of(ready, run_id, eventually)
    assert (row.state, row.environment["node"]) == ("succeeded", None)


def test_runs_end_with_their_supervisor_and_the_next_one_says_so(ready: Lab, eventually: Wait) -> None:
    run_id = ready.enqueue_long("a")
    under_way(ready, run_id, eventually)
    worker = ready.worker(run_id, "a")
    ready.supervisor.kill()
    ready.supervisor.wait()
    eventually(lambda: not is_same_process(*worker), "the worker is ended")
    ready.supervise()
    row = end_of(ready, run_id, eventually, START_S)
    assert (row.state, row.error_text) == ("lost", "The supervisor ended, and with it the run on a")


def test_a_lost_node_ends_its_runs_as_lost_and_takes_none_when_it_is_gone(ready: Lab, eventually: Wait) -> None:
    eventually(lambda: ready.node("a").state == "ready", "the supervisor sees the node", START_S)
    run_id = ready.enqueue_long("a")
    under_way(ready, run_id, eventually)
    worker = ready.worker(run_id, "a")
    ready.cluster.kill("a")
    eventually(lambda: not is_same_process(*worker), "the worker is ended")
    row = end_of(ready, run_id, eventually)
    assert (row.state, row.error_text) == ("lost", "The node a was lost while the run was measured")
    eventually(lambda: ready.node("a").state == "lost", "pages are told", START_S)
    waiting = ready.enqueue("a")
    assert end_of(ready, ready.enqueue("other"), eventually).state == "succeeded", "the other node goes on"
    assert ready.run(waiting).state == "queued"
