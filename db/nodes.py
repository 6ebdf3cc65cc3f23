"""The machines that runs can be measured on, and their devices, as supervisors last saw them.

Every function takes a session and leaves the transaction to its caller. Looks at no machine itself and decides nothing:
which run a node is given is ``db.queue.claim``'s, which node is refused the supervisor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from db.locks import take_turn
from db.models import Device, Node

FORGET_AFTER_S = 3600.0
"""A node that nobody saw for so long goes when another supervisor stores what it sees."""

NodeState = Literal["ready", "differs", "broken", "lost"]
"""``ready``: takes every run. ``differs``: its versions are not the head's, so it takes only runs that name it.
``broken``: the engine cannot work there. ``lost``: it was there and is gone."""

_DEVICE_COLUMNS = (Device.id, Device.kind, Device.name, Device.memory_bytes, Device.dtypes, Device.driver)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One machine: what is installed there, what is wrong with it, and its devices, the CPU first.

    A device is ``{"id", "kind", "name", "memory_bytes", "dtypes", "driver"}``; ``seen_at`` is UTC epoch seconds.
    """

    name: str
    is_head: bool
    state: NodeState
    versions: Mapping[str, str]
    seen_at: float
    devices: tuple[dict[str, Any], ...]
    problem: str | None = None


def store(session: Session, found: Iterable[NodeRow]) -> None:
    """Store these nodes in the place of what was known of them, and forget those that nobody saw for an hour."""
    rows = list(found)
    take_turn(session, "devices")
    names = [row.name for row in rows]
    newest_s = max((row.seen_at for row in rows), default=0.0)
    gone = select(Node.name).where(Node.name.in_(names) | (Node.seen_at < newest_s - FORGET_AFTER_S))
    for model, column in ((Device, Device.node), (Node, Node.name)):
        session.execute(delete(model).where(column.in_(gone)).execution_options(synchronize_session=False))
    for row in rows:
        session.execute(
            insert(Node).values(
                name=row.name,
                is_head=row.is_head,
                state=row.state,
                problem=row.problem,
                versions=dict(row.versions),
                seen_at=row.seen_at,
            )
        )
        for device in row.devices:
            values = {column.key: device.get(column.key) for column in _DEVICE_COLUMNS}
            session.execute(insert(Device).values(node=row.name, **{**values, "dtypes": list(device["dtypes"])}))


def mark_lost(session: Session, name: str, sentence: str) -> None:
    """Say that a node is gone, and why as far as that is known; its devices stay listed."""
    session.execute(update(Node).where(Node.name == name).values(state="lost", problem=sentence))


def nodes(session: Session) -> list[NodeRow]:
    """All known nodes, the head first, then by name."""
    devices: dict[str, list[dict[str, Any]]] = {}
    rows = session.execute(select(Device.node, *_DEVICE_COLUMNS).order_by(Device.kind != "cpu", Device.id))
    for row in rows:
        values = dict(row._mapping)
        devices.setdefault(values.pop("node"), []).append(values)
    return [
        NodeRow(
            name=node.name,
            is_head=node.is_head,
            state=node.state,  # type: ignore[arg-type]
            problem=node.problem,
            versions=node.versions,
            seen_at=node.seen_at,
            devices=tuple(devices.get(node.name, ())),
        )
        for node in session.scalars(select(Node).order_by(Node.is_head.desc(), Node.name))
    ]
