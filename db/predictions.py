"""Predictions, each stored once under the key of what decides it: kept from requests, found for pages.

A sentence that says why a spec cannot be predicted is an answer like any other. Every function takes a session and
leaves the transaction to its caller. Knows nothing of how a key is made and reads no meaning out of a prediction.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from db.chunks import chunks
from db.locks import take_turn
from db.models import Prediction

_COURSE = "course"


def store(session: Session, entries: Iterable[Mapping[str, Any]], card: str | None = None) -> tuple[str, ...]:
    """Keep a request's entries, each in the place of an earlier one of its key. Entries without a key are left out.

    Args:
        session: inside a writing transaction.
        entries: ``key``, ``spec_hash`` and what was predicted, as ``engine.jobs.predict`` gives them.
        card: the card that they were predicted for, if any.

    Returns:
        The keys that were kept.
    """
    now = time.time()
    rows = {
        str(entry["key"]): {
            "key": str(entry["key"]),
            "spec_hash": str(entry["spec_hash"]),
            "card": card,
            "document": {name: value for name, value in entry.items() if name not in ("key", _COURSE)},
            "course": list(entry.get(_COURSE) or ()),
            "created_at": now,
        }
        for entry in entries
        if entry.get("key") and entry.get("spec_hash")
    }
    take_turn(session, "predictions")
    for chunk in chunks(rows):
        session.execute(delete(Prediction).where(Prediction.key.in_(chunk)))
    if rows:
        session.execute(insert(Prediction), list(rows.values()))
    return tuple(rows)


def find(session: Session, keys: Collection[str], *, with_course: bool = False) -> dict[str, dict[str, Any]]:
    """The entries of these keys that are stored, by key, each with the time at which it came (``created_at``).

    Args:
        session: to read with.
        keys: as the entries carry them.
        with_course: also the ``course`` of memory, which is most of an entry.
    """
    columns = [Prediction.key, Prediction.document, Prediction.created_at]
    columns += [Prediction.course] if with_course else []
    found: dict[str, dict[str, Any]] = {}
    for chunk in chunks(set(keys)):
        for row in session.execute(select(*columns).where(Prediction.key.in_(chunk))):
            course = {_COURSE: row.course} if with_course else {}
            found[row.key] = {"key": row.key, **row.document, **course, "created_at": row.created_at}
    return found
