"""What people did to what is stored: who, when, and to which runs. Rows are only ever added.

Whether somebody may do it is not known here. No secret belongs into a row: names, counts and run numbers only.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Action

ActionName = Literal[
    "launch",
    "cancel",
    "edit",
    "archive",
    "restore",
    "delete",
    "import",
    "prune",
    "load sample data",
    "remove sample data",
]
ACTIONS: tuple[str, ...] = get_args(ActionName)
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class ActionRow:
    """One thing that somebody did. ``done_at`` is UTC epoch seconds, ``run_ids`` text such as "3, 7-12"."""

    done_at: float
    person: str
    action: str
    run_ids: str
    detail: str


def os_user() -> str:
    """The name of the account that this process runs under; who works on this machine itself."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number without a name
        return f"user {os.getuid()}"


def record(session: Session, person: str, action: ActionName, run_ids: Iterable[int] = (), detail: str = "") -> None:
    """Add what somebody does, in the transaction that does it."""
    row = Action(
        done_at=time.time(), person=_line(person), action=action, run_ids=ranges(run_ids), detail=_line(detail)
    )
    session.add(row)
    session.flush()


def recent(session: Session, limit: int = 200) -> Sequence[ActionRow]:
    """What was done last, newest first."""
    columns = (Action.done_at, Action.person, Action.action, Action.run_ids, Action.detail)
    rows = session.execute(select(*columns).order_by(Action.id.desc()).limit(limit))
    return [ActionRow(*row) for row in rows]


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as people write them: "3, 7-12"."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _line(text: str) -> str:
    """One line that every database stores, cut where it is very long."""
    return "".join(character for character in text if character.isprintable())[:_LONGEST]
