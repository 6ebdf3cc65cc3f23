"""Stored runs, as pages and scripts read and edit them: lists, one run, metrics for charts, names, tags, deletion.

Every function takes a session and leaves the transaction to its caller. Results are plain frozen records that need no
session any more. Run folders on disk are the caller's. Lists and medians have modules of their own (``db.listing``,
``db.medians``) and are offered here; documents in and out are ``db.transfer``'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Text, cast, func, insert, select, update
from sqlalchemy import delete as sql_delete
from sqlalchemy.orm import Session

from db.chunks import chunks
from db.listing import (
    Filters,
    FilterValues,
    RunRow,
    filter_values,
    get_rows,
    list_ids,
    list_runs,
    listing,
    queued_and_running,
    recent,
)
from db.locks import hold
from db.medians import StoredMetric, medians, stored_metrics
from db.models import MemorySample, Metric, Run, Sweep, Tag

__all__ = [
    "Duration",
    "FilterValues",
    "Filters",
    "MetricRow",
    "MetricValue",
    "RunDetail",
    "RunRow",
    "SampleRow",
    "StoredMetric",
    "archive",
    "checks",
    "delete",
    "durations",
    "environment_paths",
    "environments",
    "filter_values",
    "get_rows",
    "get_run",
    "latest_environment",
    "latest_inspection",
    "list_ids",
    "list_runs",
    "measured_hashes",
    "medians",
    "metric_values",
    "queued_and_running",
    "recent",
    "rename",
    "restore",
    "set_note",
    "set_tags",
    "stored_metrics",
]


class MetricRow(NamedTuple):
    """One metric of a known run."""

    name: str
    unit: str
    variant: str | None
    x: float | None
    repeat: int
    value: float


class SampleRow(NamedTuple):
    """One memory sample of a known run."""

    source: str
    time_s: float
    phase: str
    category: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail(RunRow):
    """Everything about one run."""

    supervisor: str | None
    worker_pid: int | None
    worker_process_started_at: float | None
    environment: dict[str, Any] | None
    checks: list[dict[str, Any]] | None
    inspection: dict[str, Any] | None
    metrics: tuple[MetricRow, ...]
    samples: tuple[SampleRow, ...]


class MetricValue(NamedTuple):
    """One metric of one of several runs."""

    run_id: int
    name: str
    unit: str
    variant: str | None
    x: float | None
    repeat: int
    value: float


class Duration(NamedTuple):
    """How long a run that succeeded here took, from its worker's start to its end."""

    kind: str
    model: str
    adapter: str | None
    strategy: str | None
    dtype: str | None
    device: str
    seconds: float
    spec: dict[str, Any]


def get_run(session: Session, run_id: int) -> RunDetail | None:
    """Everything about one run, None if there is none of this id."""
    extra = ("supervisor", "worker_pid", "worker_process_started_at", "environment", "checks", "inspection")
    query = listing().add_columns(*(getattr(Run, name) for name in extra)).where(Run.id == run_id)
    row = session.execute(query).one_or_none()
    if row is None:
        return None
    metrics = session.execute(
        select(Metric.name, Metric.unit, Metric.variant, Metric.x, Metric.repeat, Metric.value)
        .where(Metric.run_id == run_id)
        .order_by(Metric.id)
    )
    samples = session.execute(
        select(MemorySample.source, MemorySample.time_s, MemorySample.phase, MemorySample.category, MemorySample.bytes)
        .where(MemorySample.run_id == run_id)
        .order_by(MemorySample.id)
    )
    return RunDetail(
        **row._mapping,
        tags=tuple(session.scalars(select(Tag.name).where(Tag.run_id == run_id).order_by(Tag.name))),
        metrics=tuple(MetricRow._make(metric) for metric in metrics),
        samples=tuple(SampleRow._make(sample) for sample in samples),
    )


def metric_values(
    session: Session, run_ids: Collection[int], names: Collection[str] | None = None
) -> list[MetricValue]:
    """The metrics of these runs, by run and in measured order."""
    query = select(*(getattr(Metric, name) for name in MetricValue._fields)).order_by(Metric.run_id, Metric.id)
    if names is not None:
        query = query.where(Metric.name.in_(sorted(names)))
    values: list[MetricValue] = []
    for chunk in chunks(sorted(set(run_ids))):
        values.extend(MetricValue._make(row) for row in session.execute(query.where(Metric.run_id.in_(chunk))))
    return values


def environments(session: Session, run_ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """The environment of each of these runs that has one."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks(run_ids):
        rows = session.execute(select(Run.id, Run.environment).where(Run.id.in_(chunk)))
        found.update({run_id: environment for run_id, environment in rows if environment})
    return found


def checks(session: Session, run_ids: Collection[int]) -> dict[int, list[dict[str, Any]]]:
    """The checks of each of these runs that has any, as they were stored."""
    found: dict[int, list[dict[str, Any]]] = {}
    for chunk in chunks(run_ids):
        rows = session.execute(select(Run.id, Run.checks).where(Run.id.in_(chunk)))
        found.update({run_id: made for run_id, made in rows if made})
    return found


def environment_paths(session: Session) -> tuple[tuple[str, ...], ...]:
    """The path of every value that some run's environment has, sorted."""
    # Thousands of runs share a few environments, so these are compared as text and read once each.
    texts = session.scalars(select(cast(Run.environment, Text)).distinct().where(Run.environment.is_not(None)))
    return tuple(sorted({path for text in texts for path in _paths(json.loads(text))}))


def measured_hashes(session: Session) -> dict[str, int]:
    """How often each spec, by its hash, was measured here with success."""
    rows = session.execute(
        select(Run.spec_hash, func.count())
        .where(Run.state == "succeeded", Run.origin == "local")
        .group_by(Run.spec_hash)
    )
    return {spec_hash: count for spec_hash, count in rows}


def durations(session: Session, *, limit: int = 5000) -> list[Duration]:
    """How long the last runs that succeeded on this machine took, newest first."""
    seconds = Run.finished_at - Run.started_at
    rows = session.execute(
        select(Run.kind, Run.model, Run.adapter, Run.strategy, Run.dtype, Run.device, seconds, Run.spec)
        .where(Run.state == "succeeded", Run.origin == "local", seconds.is_not(None))
        .order_by(Run.id.desc())
        .limit(limit)
    )
    return [Duration._make(row) for row in rows]


def latest_environment(session: Session) -> dict[str, Any] | None:
    """What the newest run measured here recorded of its worker's machine and settings, None before the first."""
    return session.scalar(
        select(Run.environment)
        .where(Run.origin == "local", Run.environment.is_not(None))
        .order_by(Run.id.desc())
        .limit(1)
    )


def latest_inspection(session: Session, model: str) -> dict[str, Any] | None:
    """What the last successful inspection of this model found here, None if there was none."""
    return session.scalar(
        select(Run.inspection)
        .where(Run.kind == "inspect", Run.model == model, Run.state == "succeeded", Run.inspection.is_not(None))
        .where(Run.origin == "local")
        .order_by(Run.id.desc())
        .limit(1)
    )


def rename(session: Session, run_id: int, name: str | None) -> None:
    """Give a run a name; an empty one takes it away."""
    session.execute(update(Run).where(Run.id == run_id).values(name=(name or "").strip() or None))


def set_note(session: Session, run_id: int, note: str | None) -> None:
    """Replace a run's note; an empty one takes it away."""
    session.execute(update(Run).where(Run.id == run_id).values(note=(note or "").strip() or None))


def set_tags(session: Session, run_ids: Collection[int], tags: Iterable[str]) -> None:
    """Replace the tags of these runs that exist. Spaces around a tag, empty and repeated tags are dropped."""
    names = sorted({tag.strip() for tag in tags} - {""})
    hold(session, run_ids)
    for chunk in chunks(run_ids):
        session.execute(sql_delete(Tag).where(Tag.run_id.in_(chunk)))
        existing = session.scalars(select(Run.id).where(Run.id.in_(chunk))).all()
        rows = [{"run_id": run_id, "name": name} for run_id in existing for name in names]
        if rows:
            session.execute(insert(Tag), rows)


def archive(session: Session, run_ids: Collection[int]) -> None:
    """Hide these runs from lists and charts; they stay stored."""
    hold(session, run_ids)
    for chunk in chunks(run_ids):
        hidden = update(Run).where(Run.id.in_(chunk), Run.archived_at.is_(None))
        session.execute(hidden.values(archived_at=time.time()))


def restore(session: Session, run_ids: Collection[int]) -> None:
    """Show archived runs again."""
    hold(session, run_ids)
    for chunk in chunks(run_ids):
        session.execute(update(Run).where(Run.id.in_(chunk)).values(archived_at=None))


def delete(session: Session, run_ids: Collection[int]) -> list[str]:
    """Delete those of these runs that are archived, with all that was measured; running ones must be cancelled first.

    Returns the uids of the deleted runs, which name the folders that the caller may now remove.
    """
    hold(session, run_ids)
    uids: list[str] = []
    for chunk in chunks(run_ids):
        gone = (
            sql_delete(Run)
            .where(Run.id.in_(chunk), Run.archived_at.is_not(None), Run.state != "running")
            .returning(Run.uid)
        )
        uids.extend(session.scalars(gone.execution_options(synchronize_session=False)))
    session.execute(sql_delete(Sweep).where(~select(Run.id).where(Run.sweep_id == Sweep.id).exists()))
    return uids


def _paths(value: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(value, dict):
        yield before
        return
    for name, inner in value.items():
        yield from _paths(inner, (*before, name))
