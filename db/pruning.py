"""Memory samples of runs that ended long ago: how much they take, and their removal.

Metrics, checks, notes and everything else of a run stay. Run folders on disk are the caller's. Sample data is left
alone: it goes as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from db.documents import FINAL_STATES
from db.locks import hold
from db.models import MemorySample, Run
from db.session import Database

#: A run has up to some thousand samples. A supervisor that wants to write waits for one such part, not for all.
_RUNS_AT_ONCE = 20
#: Of a row besides its words: id, run, time, bytes, the record's header, and the entry in the index on the run.
_BYTES_BESIDE_WORDS = 48


@dataclass(frozen=True, slots=True)
class OldSamples:
    """The samples of old runs. ``size_bytes`` is about what they take in the database."""

    run_ids: tuple[int, ...]
    samples: int
    size_bytes: int


def old_samples(session: Session, ended_before: float) -> OldSamples:
    """The samples of runs that ended before this time (UTC epoch seconds)."""
    words = func.length(MemorySample.source) + func.length(MemorySample.phase) + func.length(MemorySample.category)
    rows = session.execute(
        select(MemorySample.run_id, func.count(), func.sum(words))
        .join(Run, Run.id == MemorySample.run_id)
        .where(*_is_old(ended_before))
        .group_by(MemorySample.run_id)
        .order_by(MemorySample.run_id)
    ).all()
    samples = sum(count for _, count, _ in rows)
    size_bytes = samples * _BYTES_BESIDE_WORDS + sum(int(length) for _, _, length in rows)
    return OldSamples(tuple(run_id for run_id, _, _ in rows), samples, size_bytes)


def old_uids(session: Session, ended_before: float) -> list[str]:
    """The uids of runs that ended before this time; they name the runs' folders."""
    return list(session.scalars(select(Run.uid).where(*_is_old(ended_before)).order_by(Run.id)))


def delete_samples(database: Database, run_ids: Sequence[int]) -> int:
    """Delete the samples of those of these runs that have ended, a few runs at a time. Returns how many samples."""
    deleted = 0
    for start in range(0, len(run_ids), _RUNS_AT_ONCE):
        with database.writing() as session:
            some = run_ids[start : start + _RUNS_AT_ONCE]
            hold(session, some)
            ended = select(Run.id).where(Run.id.in_(some), Run.state.in_(FINAL_STATES))
            gone = delete(MemorySample).where(MemorySample.run_id.in_(ended)).returning(MemorySample.id)
            deleted += len(session.scalars(gone.execution_options(synchronize_session=False)).all())
    return deleted


def _is_old(ended_before: float) -> tuple[ColumnElement[bool], ...]:
    ended_at = func.coalesce(Run.finished_at, Run.created_at)
    return Run.state.in_(FINAL_STATES), Run.origin != "sample", ended_at < ended_before
