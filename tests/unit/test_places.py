"""Places: what nodes offer, what keeps a run from a node, and sweeps that would mix versions."""

from __future__ import annotations

from typing import Any

import pytest

from app import places
from app.places import Place
from db.nodes import NodeRow
from engine.spec import Measured, parse_spec

CPU = {"id": "cpu", "kind": "cpu", "name": "EPYC", "memory_bytes": 2**36, "dtypes": ["bfloat16"], "driver": None}
H200 = {**CPU, "id": "cuda:0", "kind": "cuda", "name": "NVIDIA H200", "driver": "570"}
L40S = {**H200, "name": "NVIDIA L40S"}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}


def node(name: str, *devices: dict[str, Any], **fields: Any) -> NodeRow:
    known: dict[str, Any] = {"is_head": False, "state": "ready", "versions": VERSIONS, "seen_at": 0.0}
    return NodeRow(name=name, devices=(CPU, *devices), **{**known, **fields})


BIG, SMALL = node("big", H200), node("small", L40S)
OLD = node("old", L40S, state="differs", versions={**VERSIONS, "torch": "2.12.0"})
LOST = node("gone", H200, state="lost", problem="it does not answer")


def spec(**fields: Any) -> Measured:
    parsed = parse_spec({"kind": "init", "model": "tiny-test", **fields})
    assert isinstance(parsed, Measured)
    return parsed


def test_one_machine_alone_offers_no_choice_of_nodes() -> None:
    assert places.choices([BIG]) == [Place()]
    assert places.choices([BIG, LOST]) == [Place()]


def test_several_nodes_offer_anywhere_each_that_takes_runs_and_each_type_of_gpu() -> None:
    offered = places.choices([BIG, SMALL, OLD, LOST])
    assert [places.label(place) for place in offered] == [
        "any node",
        "big",
        "small",
        "old",
        "any NVIDIA H200",
        "any NVIDIA L40S",
    ]


def test_a_type_of_gpu_that_only_a_node_with_other_versions_has_is_not_offered_for_any_node() -> None:
    assert Place(device_type="NVIDIA L40S") not in places.choices([BIG, OLD])


def test_a_node_is_described_by_its_gpus_and_by_the_versions_that_are_not_the_heads() -> None:
    head, two = node("head", is_head=True), node("two", H200, {**H200, "id": "cuda:1"})
    assert places.facts(Place(node="head"), [head, two]) == "EPYC, 64.0 GiB"
    assert places.facts(Place(node="two"), [head, two]) == "2 x NVIDIA H200, 64.0 GiB, driver 570"
    assert places.facts(Place(node="old"), [head, OLD]) == "NVIDIA L40S, 64.0 GiB, driver 570 · torch 2.12.0"


def test_a_run_for_any_node_must_fit_on_the_smallest() -> None:
    larger = node("larger", {**H200, "memory_bytes": 2**37})
    assert [device.memory_bytes for device in places.smallest([larger, BIG])] == [2**36, 2**36]


def test_a_run_that_names_no_node_goes_to_ready_nodes_only() -> None:
    found = places.nodes_for(spec(device="cuda:0"), [BIG, OLD, LOST])
    assert [row.name for row in found] == ["big"]


def test_a_node_with_other_versions_takes_the_run_that_names_it() -> None:
    assert places.nodes_for(spec(device="cuda:0", node="old"), [BIG, OLD]) == [OLD]


def test_a_type_of_device_is_found_whatever_its_number_on_the_node() -> None:
    both = node("both", L40S, {**H200, "id": "cuda:1"})
    assert places.nodes_for(spec(device="cuda:0", device_type="NVIDIA H200"), [SMALL, both]) == [both]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"node": "bigg"}, "node: there is no bigg; there are big, old and gone"),
        ({"node": "gone"}, "node: gone takes no runs now: it does not answer"),
        (
            {"node": "old", "device": "cuda:1"},
            "device: cuda:1 is not on old, which has cpu (EPYC) and cuda:0 (NVIDIA L40S)",
        ),
        (
            {"device": "cuda:0", "device_type": "NVIDIA L40S"},
            "device_type: no node has NVIDIA L40S for cuda:0; there are EPYC and NVIDIA H200",
        ),
        ({"device": "cuda:1"}, "device: no node has cuda:1; there are cpu (EPYC) and cuda:0 (NVIDIA H200)"),
    ],
)
def test_what_no_node_would_take_is_said_with_what_there_is(fields: dict[str, Any], sentence: str) -> None:
    assert str(places.problem(spec(**fields), [BIG, OLD, LOST])) == sentence


def test_nothing_is_said_against_a_run_before_any_node_is_known() -> None:
    assert places.problem(spec(node="big"), []) is None


def test_what_one_machine_alone_lacks_is_left_to_the_checks_of_its_own() -> None:
    assert places.problem(spec(device="cuda:1"), [BIG]) is None


def test_a_run_for_any_node_may_wait_where_none_takes_runs_now() -> None:
    assert places.problem(spec(device="cuda:1"), [LOST, node("off", state="lost")]) is None


def test_a_sweep_over_nodes_of_the_same_versions_mixes_nothing() -> None:
    assert places.mixed([spec(node="big"), spec(node="small"), spec()], [BIG, SMALL, OLD]) is None


def test_a_sweep_over_nodes_of_different_versions_names_them() -> None:
    sentence = places.mixed([spec(node="big"), spec(node="old")], [BIG, OLD])
    assert sentence == "This sweep would mix versions: big has torch 2.13.0; old has torch 2.12.0."


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"device": "cpu"}, None),
        ({"of": []}, None),
        ({"device": "cuda:1"}, "cuda:1"),
        ({"device": "cpu", "node": "big"}, "cpu on big"),
        ({"device": "cuda:0", "device_type": "NVIDIA L40S"}, "any NVIDIA L40S"),
    ],
)
def test_a_run_says_where_it_is_to_be_measured_unless_any_cpu_will_do(spec: dict[str, str], text: str) -> None:
    assert places.asked_for(spec) == text


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({}, None),
        ({"node": "big"}, None),
        ({"node": "gone"}, "waits for the node gone, which is not there"),
        ({"device_type": "NVIDIA A100"}, "waits for a node with NVIDIA A100"),
    ],
)
def test_a_queued_run_says_which_absent_node_or_device_it_waits_for(wanted: dict[str, str], sentence: str) -> None:
    assert places.waits_for(wanted, [BIG, LOST]) == sentence
