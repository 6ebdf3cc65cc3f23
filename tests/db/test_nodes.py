"""Nodes: what is kept of them, and which runs they are given."""

from __future__ import annotations

import time
from typing import Any

from db import nodes
from db.nodes import FORGET_AFTER_S, NodeRow
from db.session import Database

CPU = {"id": "cpu", "kind": "cpu", "name": "CPU", "memory_bytes": 2**36, "dtypes": ["float32"], "driver": None}
GPU = {**CPU, "id": "cuda:0", "kind": "cuda", "name": "NVIDIA H200", "dtypes": ["float16", "bfloat16"], "driver": "570"}


def node(name: str, **fields: Any) -> NodeRow:
    known: dict[str, Any] = {"is_head": False, "state": "ready", "versions": {"torch": "2.13.0"}, "seen_at": 1e9}
    return NodeRow(name=name, **{**known, "devices": (CPU,), **fields})


def stored(database: Database, *found: NodeRow) -> list[NodeRow]:
    with database.writing() as session:
        nodes.store(session, found)
        return nodes.nodes(session)


def test_nodes_come_back_as_they_were_seen_the_head_first_and_the_cpu_before_other_devices(database: Database) -> None:
    first, head = node("a", devices=(GPU, CPU)), node("b", is_head=True, state="differs", problem="torch differs.")
    assert stored(database, first, head) == [head, node("a", devices=(CPU, GPU))]


def test_what_a_node_had_before_is_replaced(database: Database) -> None:
    stored(database, node("a", devices=(CPU, GPU)))
    assert stored(database, node("a", versions={"torch": "2.12.0"})) == [node("a", versions={"torch": "2.12.0"})]


def test_a_node_that_nobody_saw_for_an_hour_is_forgotten_and_one_seen_lately_is_kept(database: Database) -> None:
    now = time.time()
    stored(database, node("old", seen_at=now - FORGET_AFTER_S - 1), node("lately", seen_at=now - 60))
    assert [row.name for row in stored(database, node("new", seen_at=now))] == ["lately", "new"]


def test_a_lost_node_says_why_and_keeps_its_devices(database: Database) -> None:
    stored(database, node("a"))
    with database.writing() as session:
        nodes.mark_lost(session, "a", "a does not answer.")
        assert nodes.nodes(session) == [node("a", state="lost", problem="a does not answer.")]


def test_a_run_that_names_a_node_is_given_to_that_node_only(enqueue, claim) -> None:
    (run_id,) = enqueue(node="gpu-box")
    assert claim(node="laptop") is None
    assert claim(node=None) is None
    taken = claim(node="gpu-box")
    assert taken is not None
    assert taken.id == run_id


def test_a_run_that_asks_for_a_type_of_device_is_given_to_no_other_device(enqueue, claim) -> None:
    (run_id,) = enqueue(device="cuda:0", device_type="NVIDIA H200")
    assert claim(devices=("cuda:0",), device_type="NVIDIA L40S") is None
    taken = claim(devices=("cuda:0",), device_type="NVIDIA H200")
    assert taken is not None
    assert taken.id == run_id


def test_a_run_that_asks_for_nothing_goes_to_any_node_but_one_that_takes_only_runs_that_name_it(enqueue, claim) -> None:
    enqueue(2)
    assert claim(node="other-torch", only_named=True) is None
    assert claim(node="gpu-box") is not None
    (named,) = enqueue(node="other-torch")
    taken = claim(node="other-torch", only_named=True)
    assert taken is not None
    assert taken.id == named
