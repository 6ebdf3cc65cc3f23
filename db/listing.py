"""Lists of stored runs: which runs match, in which order, and their rows.

Every function takes a session and changes nothing. Ids are cheap for all runs, rows are for those that are shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import Session

from db.chunks import chunks
from db.conditions import Column, Condition, Order
from db.documents import FINAL_STATES
from db.filters import arranged
from db.models import Run, Sweep, Tag

NEWEST_FIRST = Order(Column("id"), is_descending=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as lists show it. Names that end in ``_at`` are seconds since 1970 (UTC)."""

    id: int
    uid: str
    kind: str
    state: str
    priority: int
    origin: str
    spec: dict[str, Any]
    spec_hash: str
    model: str
    adapter: str | None
    adapter_type: str | None
    strategy: str | None
    dtype: str | None
    device: str
    sweep_id: int | None
    sweep_name: str | None
    replica: int
    created_at: float
    claimed_at: float | None
    started_at: float | None
    finished_at: float | None
    heartbeat_at: float | None
    archived_at: float | None
    run_folder: str | None
    progress: dict[str, Any] | None
    cancel_requested: bool
    error_kind: str | None
    error_text: str | None
    failed_checks: int | None
    background_cpu_share: float | None
    name: str | None
    note: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FilterValues:
    """What the stored runs can be filtered by: the values that occur, sorted."""

    states: tuple[str, ...]
    kinds: tuple[str, ...]
    models: tuple[str, ...]
    adapters: tuple[str, ...]
    devices: tuple[str, ...]
    tags: tuple[str, ...]


class Filters(TypedDict, total=False):
    """What a list is narrowed by; a run must match everything that is given, and None narrows nothing.

    A run matches ``tags`` when it has any of them. Each word of ``search`` must occur in the run's name, note, model,
    adapter, strategy, sweep or error, in any case. Archived runs are left out unless they are asked for.
    """

    states: Collection[str] | None
    kinds: Collection[str] | None
    models: Collection[str] | None
    adapters: Collection[str] | None
    devices: Collection[str] | None
    tags: Collection[str] | None
    spec_hashes: Collection[str] | None
    search: str | None
    where: Condition | None
    include_archived: bool


_COLUMNS = (
    *(getattr(Run, name) for name in RunRow.__slots__ if name not in ("sweep_name", "tags")),
    Sweep.name.label("sweep_name"),
)


def list_runs(
    session: Session, *, order: Order = NEWEST_FIRST, limit: int | None = None, **filters: Unpack[Filters]
) -> list[RunRow]:
    """The runs that match, by default the newest first."""
    return _rows(session, _matching(listing(), filters, order).limit(limit))


def list_ids(session: Session, *, order: Order = NEWEST_FIRST, **filters: Unpack[Filters]) -> list[int]:
    """The ids of all runs that match, by default the newest first."""
    query = select(Run.id).outerjoin(Sweep, Sweep.id == Run.sweep_id)
    return list(session.scalars(_matching(query, filters, order)))


def get_rows(session: Session, run_ids: Sequence[int]) -> list[RunRow]:
    """The runs with these ids, archived or not, in the order given; those that do not exist are left out."""
    found: dict[int, RunRow] = {}
    for chunk in chunks(run_ids):
        rows = session.execute(listing().where(Run.id.in_(chunk))).all()
        found.update({row.id: row for row in _tagged(session, rows, Tag.run_id.in_(chunk))})
    return [found[run_id] for run_id in run_ids if run_id in found]


def queued_and_running(session: Session) -> list[RunRow]:
    """Running runs by the time of their claim, then queued ones in the order in which they will be claimed."""
    running = listing().where(Run.state == "running").order_by(Run.claimed_at, Run.id)
    queued = listing().where(Run.state == "queued").order_by(Run.priority.desc(), Run.id)
    return _rows(session, running) + _rows(session, queued)


def recent(session: Session, *, limit: int) -> list[RunRow]:
    """The runs that ended last, newest first, without archived ones."""
    query = listing().where(Run.state.in_(FINAL_STATES), Run.finished_at.is_not(None), Run.archived_at.is_(None))
    return _rows(session, query.order_by(Run.finished_at.desc(), Run.id.desc()).limit(limit))


def filter_values(session: Session) -> FilterValues:
    """The values that the runs have in the columns that lists filter by."""

    def distinct(column: Any) -> tuple[str, ...]:
        return tuple(sorted(value for value in session.scalars(select(column).distinct()) if value is not None))

    return FilterValues(
        states=distinct(Run.state),
        kinds=distinct(Run.kind),
        models=distinct(Run.model),
        adapters=distinct(Run.adapter),
        devices=distinct(Run.device),
        tags=distinct(Tag.name),
    )


def listing() -> Select[Any]:
    """Runs with the columns of ``RunRow`` but their tags, outer-joined with their sweeps."""
    return select(*_COLUMNS).outerjoin(Sweep, Sweep.id == Run.sweep_id)


def _matching(query: Select[Any], filters: Filters, order: Order) -> Select[Any]:
    for column, values in (
        (Run.state, filters.get("states")),
        (Run.kind, filters.get("kinds")),
        (Run.model, filters.get("models")),
        (Run.adapter, filters.get("adapters")),
        (Run.device, filters.get("devices")),
        (Run.spec_hash, filters.get("spec_hashes")),
    ):
        if values is not None:
            query = query.where(column.in_(sorted(values)))
    if (tags := filters.get("tags")) is not None:
        query = query.where(Run.id.in_(select(Tag.run_id).where(Tag.name.in_(sorted(tags)))))
    searched = (Run.name, Run.note, Run.model, Run.adapter, Run.strategy, Sweep.name, Run.error_text)
    for word in (filters.get("search") or "").split():
        query = query.where(or_(*(column.icontains(word, autoescape=True) for column in searched)))
    if not filters.get("include_archived"):
        query = query.where(Run.archived_at.is_(None))
    return arranged(query, filters.get("where"), order)


def _rows(session: Session, query: Select[Any]) -> list[RunRow]:
    """Run the listing, with the tags of all its runs in one more query."""
    found = session.execute(query).all()
    if not found:
        return []
    lowest, highest = min(row.id for row in found), max(row.id for row in found)
    return _tagged(session, found, Tag.run_id.between(lowest, highest))


def _tagged(session: Session, found: Sequence[Any], which: ColumnElement[bool]) -> list[RunRow]:
    """Rows of the listing with their tags, which are among those selected."""
    tags: dict[int, list[str]] = defaultdict(list)
    for run_id, name in session.execute(select(Tag.run_id, Tag.name).where(which).order_by(Tag.name)):
        tags[run_id].append(name)
    return [RunRow(**row._mapping, tags=tuple(tags.get(row.id, ()))) for row in found]
