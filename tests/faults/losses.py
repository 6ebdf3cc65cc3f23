"""What was lost: looks at a lab in which everything has ended, and says in sentences what is not as it should be.

Reads what the pages read, beside it the run folders and the list of running processes. Changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import backups, runs
from db.models import Action, Metric, Run, Sweep
from db.runs import RunDetail
from db.session import DatabaseError
from tests.faults.lab import Lab, Victim

#: What differs from run to run of one spec: the share is not taken where the system cannot tell it.
_OPTIONAL_METRICS = {"background_cpu_share"}


def losses(
    lab: Lab, launched: Mapping[str, int], acknowledged: Collection[int], ended: Collection[Victim] = ()
) -> list[str]:
    """Everything that is lost, doubled, left over or half in a lab whose processes were stopped.

    Args:
        lab: the lab, with nothing queued or running.
        launched: how many runs each sweep was launched with, by its name, also those whose launch was killed.
        acknowledged: the runs whose launch was answered.
        ended: the processes that were killed.
    """
    found = [f"process {pid} ({role or 'of no role'}) is left over" for pid, role in lab.processes().items()]
    if lab.database.sqlite_file is not None:
        try:
            backups.check(lab.database.sqlite_file)
        except DatabaseError as error:
            return [*found, f"the database does not pass its check: {error}"]
    with lab.database.reading() as session:
        claimed = {run_id: claimed_at for run_id, claimed_at in session.execute(select(Run.id, Run.claimed_at))}
        rows = [row for run_id in sorted(claimed) if claimed[run_id] and (row := runs.get_run(session, run_id))]
        found += [f"run {run_id} was launched and is not there" for run_id in sorted({*acknowledged} - {*claimed})]
        found += [*_torn_sweeps(session, launched), *_unrecorded(session), *_doubled(session), *_not_ended(session)]
    whole = _WholeResults()
    for row in rows:
        found += [f"run {row.id} ({row.kind}, {row.state}): {sentence}" for sentence in _of_run(lab, row, ended, whole)]
    return found


def _torn_sweeps(session: Session, launched: Mapping[str, int]) -> Iterator[str]:
    """A sweep of which there is a part: it is there whole or, when its launch was killed, not at all."""
    query = select(Sweep.name, func.count(Run.id)).outerjoin(Run, Run.sweep_id == Sweep.id)
    for name, count in session.execute(query.group_by(Sweep.id, Sweep.name)):
        if count != launched[name]:
            yield f"{name} has {count} of its {launched[name]} runs"


def _unrecorded(session: Session) -> Iterator[str]:
    """A sweep without the record of who launched it, and a record without its sweep."""
    launches = Counter(session.scalars(select(Action.detail).where(Action.action == "launch")))
    sweeps = Counter(session.scalars(select(Sweep.name)))
    for name in sorted({*launches, *sweeps}):
        if launches[name] != sweeps[name]:
            yield f"{name} is there {sweeps[name]} times and was recorded {launches[name]} times"


def _doubled(session: Session) -> Iterator[str]:
    """Runs of one spec that have the same replica number, and measurements that a run has twice."""
    replica = (Run.spec_hash, Run.replica)
    for spec_hash, number in session.execute(select(*replica).group_by(*replica).having(func.count() > 1)):
        yield f"several runs of the spec {spec_hash[:8]} are its replica {number}"
    value = (Metric.run_id, Metric.name, Metric.variant, Metric.x, Metric.repeat)
    twice = select(*value).group_by(*value).having(func.count() > 1).subquery()
    for run_id in session.scalars(select(twice.c.run_id).distinct()):
        yield f"run {run_id} has its measurements twice"


def _not_ended(session: Session) -> Iterator[str]:
    query = select(Run.id, Run.state).where(Run.state.in_(("queued", "running")))
    for run_id, state in session.execute(query.order_by(Run.id)):
        yield f"run {run_id} is {state} for ever"


class _WholeResults:
    """What a whole result of each spec has: the first that is seen says so, and any run with more."""

    def __init__(self) -> None:
        self._names: dict[str, set[tuple[Any, ...]]] = {}

    def lacks(self, row: RunDetail) -> bool:
        """Whether this run has not all that others of its spec have."""
        names = {
            (metric.name, metric.variant, metric.x, metric.repeat)
            for metric in row.metrics
            if metric.name not in _OPTIONAL_METRICS
        }
        return names != self._names.setdefault(row.spec_hash, names)


def _of_run(lab: Lab, row: RunDetail, ended: Collection[Victim], whole: _WholeResults) -> Iterator[str]:
    if row.state in ("queued", "running"):
        return
    folder = Path(row.run_folder) if row.run_folder else lab.home / "runs" / row.uid
    log = folder / "log.txt"
    attempts = log.read_text(errors="replace").count("job started at") if log.exists() else 0
    if attempts > 1:
        yield f"was measured {attempts} times"
    if row.state == "succeeded":
        yield from _not_whole(row, folder / "result.json", whole)
    elif row.metrics or row.checks:
        yield "shows measurements although it has no result"
    if row.state in ("lost", "failed", "out_of_memory", "timed_out") and not _was_hit(row, ended):
        yield f"ended although its worker was not killed: {row.error_text}"


def _not_whole(row: RunDetail, result: Path, whole: _WholeResults) -> Iterator[str]:
    if not result.exists():
        yield "has no result file"
        return
    document = json.loads(result.read_text())
    if Counter(metric["name"] for metric in document["metrics"]) != Counter(metric.name for metric in row.metrics):
        yield "shows other measurements than its worker left"
    if not row.environment or (row.kind == "inspect") != bool(row.inspection):
        yield "lacks a part of its result"
    if whole.lacks(row):
        yield "lacks measurements that others of its spec have"


def _was_hit(row: RunDetail, ended: Collection[Victim]) -> bool:
    workers = [victim for victim in ended if victim.role == "worker"]
    return any(victim.run == row.uid or victim.pid == row.worker_pid for victim in workers)
