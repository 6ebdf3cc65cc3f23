"""Keeps writers apart that must not pass each other, where the database lets in several at a time.

SQLite has one writer at a time, so there is nothing to do there. On PostgreSQL whoever reads before he writes (the next
replica's number, whether a run is known) takes his turn, and whoever changes several runs takes them in one order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import postgresql
from db.chunks import chunks
from db.models import Run


def take_turn(session: Session, what: Literal["new runs", "predictions", "devices"]) -> None:
    """Wait until no other transaction has this turn, and keep it until this one ends."""
    if has_several_writers(session):
        postgresql.wait_for_turn(session.connection(), what)


def hold(session: Session, run_ids: Collection[int]) -> None:
    """Keep these runs as they are for others until the transaction ends.

    All who change several runs take them in the order of their ids: two who take the same in different orders would
    wait for each other for good.
    """
    if has_several_writers(session):
        for chunk in chunks(sorted(set(run_ids))):
            session.execute(select(Run.id).where(Run.id.in_(chunk)).order_by(Run.id).with_for_update()).all()


def has_several_writers(session: Session) -> bool:
    """Whether this is PostgreSQL."""
    return session.get_bind().dialect.name == "postgresql"
