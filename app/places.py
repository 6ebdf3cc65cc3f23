"""Where runs can be measured: nodes and device types to choose from, and what keeps a run from where it was sent.

Pure functions over what supervisors stored of the nodes. Draws nothing and asks no node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from app import formatting
from db.nodes import NodeRow
from engine.result import Device
from engine.spec import Measured, SpecError

#: What must be the same for numbers to be compared; a difference in Python's version shows on Compare.
COMPARED_VERSIONS = ("torch", "transformers", "peft")


class Place(NamedTuple):
    """A choice of where: one node, any device of one name, or neither, which is anywhere."""

    node: str | None = None
    device_type: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The spec fields that ask for this place."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def label(place: Place) -> str:
    """A place for people."""
    return place.node or (f"any {place.device_type}" if place.device_type else "any node")


def facts(place: Place, nodes: Sequence[NodeRow]) -> str:
    """What a chosen node has: its GPUs, else its CPU, and which of its versions are not the head's."""
    node = next((node for node in nodes if node.name == place.node), None)
    if node is None:
        return ""
    gpus = [device for device in node.devices if device["kind"] != "cpu"]
    texts = [
        ", ".join([device["name"], formatting.size(device["memory_bytes"]), *_driver(device)])
        for device in gpus or node.devices[:1]
    ]
    counted = [f"{texts.count(text)} x {text}" if texts.count(text) > 1 else text for text in dict.fromkeys(texts)]
    head = next((other.versions for other in nodes if other.is_head), node.versions)
    other = [
        f"{name} {node.versions.get(name)}" for name in COMPARED_VERSIONS if node.versions.get(name) != head.get(name)
    ]
    return " · ".join([*counted, *other])


def _driver(device: Mapping[str, Any]) -> list[str]:
    return [f"driver {device['driver']}"] if device["driver"] else []


def smallest(nodes: Iterable[NodeRow]) -> tuple[Device, ...]:
    """Of each device id the one with the least memory on these nodes: a run that may go to any must fit there."""
    found: dict[str, Device] = {}
    for node in nodes:
        for stored in node.devices:
            device = device_of(stored)
            if device.id not in found or device.memory_bytes < found[device.id].memory_bytes:
                found[device.id] = device
    return tuple(found.values())


def choices(nodes: Sequence[NodeRow]) -> list[Place]:
    """Anywhere, then each node that takes runs, then each type of GPU; only anywhere where there is one node."""
    working = [node for node in nodes if node.state in ("ready", "differs")]
    if len(working) < 2:
        return [Place()]
    # A type is looked for on nodes that take every run.
    open_to_all = [device for node in working if node.state == "ready" for device in node.devices]
    gpus = {device["name"] for device in open_to_all if device["kind"] != "cpu"}
    return [Place(), *(Place(node=node.name) for node in working), *(Place(device_type=name) for name in sorted(gpus))]


def device_of(stored: Mapping[str, Any]) -> Device:
    """A stored device as the record that checks take."""
    return Device(**{**stored, "dtypes": tuple(stored["dtypes"])})


def devices(nodes: Iterable[NodeRow]) -> tuple[Device, ...]:
    """The devices of nodes that take runs, each id once: that of the first node that has it."""
    found: dict[str, Device] = {}
    for node in nodes:
        if node.state in ("ready", "differs"):
            for device in node.devices:
                found.setdefault(device["id"], device_of(device))
    return tuple(found.values())


def nodes_for(spec: Measured, nodes: Sequence[NodeRow]) -> list[NodeRow]:
    """The nodes that would take this spec now."""
    if spec.node is not None:
        named = [node for node in nodes if node.name == spec.node and node.state in ("ready", "differs")]
    else:
        named = [node for node in nodes if node.state == "ready"]
    return [node for node in named if _fitting(spec, node)]


def _fitting(spec: Measured, node: NodeRow) -> list[Mapping[str, Any]]:
    """The devices of a node that a spec asks for. A device type is found whatever its number on that node."""
    if spec.device_type is None:
        return [device for device in node.devices if device["id"] == spec.device]
    kind = spec.device.partition(":")[0]
    return [device for device in node.devices if device["kind"] == kind and device["name"] == spec.device_type]


def problem(spec: Measured, nodes: Sequence[NodeRow]) -> SpecError | None:
    """Why no node would take this spec, naming the field; None where one would or no node is known yet.

    None, too, where there is one machine only and nothing was asked of it by name: its own checks say more.
    """
    if not nodes or nodes_for(spec, nodes):
        return None
    if spec.node is not None:
        node = next((node for node in nodes if node.name == spec.node), None)
        if node is None:
            return SpecError("node", f"there is no {spec.node}; there are {_names(nodes)}")
        if node.state in ("broken", "lost"):
            return SpecError("node", f"{node.name} takes no runs now: {node.problem or node.state}")
        here = formatting.listing(_device_text(device) for device in node.devices)
        field, wanted = ("device_type", spec.device_type) if spec.device_type else ("device", spec.device)
        return SpecError(field, f"{wanted} is not on {node.name}, which has {here}")
    if spec.device_type is not None:
        names = dict.fromkeys(device["name"] for node in nodes if node.state == "ready" for device in node.devices)
        there = formatting.listing(names)
        return SpecError("device_type", f"no node has {spec.device_type} for {spec.device}; there are {there}")
    found = dict.fromkeys(_device_text(device) for node in nodes if node.state == "ready" for device in node.devices)
    if len(nodes) == 1 or not found:
        return None
    there = "there is" if len(found) == 1 else "there are"
    return SpecError("device", f"no node has {spec.device}; {there} {formatting.listing(found)}")


def mixed(specs: Iterable[Measured], nodes: Sequence[NodeRow]) -> str | None:
    """Which versions a sweep would mix, in one sentence; None where all its runs go to nodes of the same versions."""
    by_versions: dict[tuple[str, ...], str] = {}
    for node in dict.fromkeys(node.name for spec in specs for node in nodes_for(spec, nodes)):
        versions = next(row.versions for row in nodes if row.name == node)
        by_versions.setdefault(tuple(versions.get(name, "none") for name in COMPARED_VERSIONS), node)
    if len(by_versions) < 2:
        return None
    differing = [place for place in range(len(COMPARED_VERSIONS)) if len({found[place] for found in by_versions}) > 1]
    parts = [
        f"{node} has {formatting.listing(f'{COMPARED_VERSIONS[place]} {versions[place]}' for place in differing)}"
        for versions, node in by_versions.items()
    ]
    return f"This sweep would mix versions: {'; '.join(parts)}."


def asked_for(spec: Mapping[str, Any]) -> str | None:
    """Where a run is to be measured: "cuda:0 on north", "any NVIDIA L40S"; None for the CPU of whichever node is free.

    Args:
        spec: of any run, as its document; what only reads or predicts names no device.
    """
    device, node, device_type = spec.get("device", "cpu"), spec.get("node"), spec.get("device_type")
    if node is not None:
        return f"{device_type or device} on {node}"
    if device_type is not None:
        return f"any {device_type}"
    return None if device == "cpu" else str(device)


def waits_for(spec: Mapping[str, Any], nodes: Sequence[NodeRow]) -> str | None:
    """What a queued run waits for beyond its turn: a node or a device that is not there now; None if it is there.

    Args:
        spec: of any run, as its document.
        nodes: as stored.
    """
    wanted, device_type = spec.get("node"), spec.get("device_type")
    if wanted is not None:
        node = next((node for node in nodes if node.name == wanted), None)
        if node is None or node.state in ("broken", "lost"):
            return f"waits for the node {wanted}, which is not there"
    elif device_type is not None and not any(
        device["name"] == device_type for node in nodes if node.state == "ready" for device in node.devices
    ):
        return f"waits for a node with {device_type}"
    return None


def _device_text(device: Mapping[str, Any]) -> str:
    return f"{device['id']} ({device['name']})"


def _names(nodes: Sequence[NodeRow]) -> str:
    return formatting.listing(node.name for node in nodes)
