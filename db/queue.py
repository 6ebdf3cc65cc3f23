"""The queue, which is the runs table: enqueue, claim, report, cancel, finish.

Every function takes a session and leaves the transaction to its caller, who opens it with ``Database.writing()`` where
something changes. Starts no process and decides nothing about runs that went missing; that is the supervisor's.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CursorResult, Update, func, insert, literal, select, update
from sqlalchemy.orm import Session

from db import postgresql
from db.chunks import chunks
from db.documents import DocumentRefused, parse_result
from db.locks import has_several_writers, hold, take_turn
from db.models import Run, Sweep
from db.results import insert_measurements, result_columns


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to queue: its spec as JSON, and the columns that pages filter by. Requests have priority 1, others 0."""

    kind: str
    spec: Mapping[str, Any]
    spec_hash: str
    model: str
    device: str
    adapter: str | None = None
    adapter_type: str | None = None
    strategy: str | None = None
    dtype: str | None = None
    node: str | None = None
    device_type: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """What a supervisor needs to start the run that it has just claimed."""

    id: int
    uid: str
    kind: str
    spec: dict[str, Any]
    spec_hash: str
    device: str


@dataclass(frozen=True, slots=True)
class RunningRun:
    """What a supervisor needs to find the worker of a run again. The worker's fields are None until it has started."""

    id: int
    uid: str
    kind: str
    device: str
    spec: dict[str, Any]
    spec_hash: str
    supervisor: str | None
    worker_pid: int | None
    worker_process_started_at: float | None
    run_folder: str | None
    claimed_at: float | None
    started_at: float | None
    heartbeat_at: float | None
    cancel_requested: bool
    abandoned_claims: int


def enqueue(session: Session, specs: Sequence[NewRun], sweep_name: str | None = None) -> list[int]:
    """Queue runs in the given order, in one sweep if it has a name. Returns their ids in the same order."""
    if not specs:
        return []
    take_turn(session, "new runs")
    now = time.time()
    sweep_id = None
    if sweep_name is not None:
        sweep = Sweep(name=sweep_name, created_at=now)
        session.add(sweep)
        session.flush()
        sweep_id = sweep.id
    replicas = next_replicas(session, {new.spec_hash for new in specs})
    rows = []
    for new in specs:
        rows.append(
            {
                "uid": uuid.uuid4().hex,
                "kind": new.kind,
                "state": "queued",
                "priority": new.priority,
                "spec": dict(new.spec),
                "spec_hash": new.spec_hash,
                "model": new.model,
                "adapter": new.adapter,
                "adapter_type": new.adapter_type,
                "strategy": new.strategy,
                "dtype": new.dtype,
                "device": new.device,
                "node": new.node,
                "device_type": new.device_type,
                "sweep_id": sweep_id,
                "replica": replicas[new.spec_hash],
                "created_at": now,
            }
        )
        replicas[new.spec_hash] += 1
    ids = session.scalars(insert(Run).returning(Run.id, sort_by_parameter_order=True), rows)
    return list(ids)


def claim(
    session: Session,
    *,
    supervisor: str,
    devices: Collection[str],
    kinds: Collection[str] | None = None,
    node: str | None = None,
    device_type: str | None = None,
    only_named: bool = False,
    runs_folder: str | None = None,
) -> ClaimedRun | None:
    """Take the next queued run of these devices (and kinds): highest priority first, then the oldest. None if none is.

    One statement, so that two supervisors can never take the same run.

    Args:
        session: inside a writing transaction.
        supervisor: who takes it.
        devices: ids of the devices that are free.
        kinds: of runs; None for all.
        node: where the devices are; a run that names another node is left.
        device_type: the name of the device; a run that asks for another is left.
        only_named: whether a run that names no node is left, too.
        runs_folder: where this supervisor makes a folder for each run, named by its uid. It is noted with the claim, so
            that another supervisor finds the worker of one that ended before it could say more.
    """
    names_node = Run.node == node
    candidates = select(Run.id).where(
        Run.state == "queued",
        Run.cancel_requested.is_(False),
        Run.device.in_(sorted(devices)),
        names_node if only_named else Run.node.is_(None) | names_node,
        Run.device_type.is_(None) | (Run.device_type == device_type),
    )
    if kinds is not None:
        candidates = candidates.where(Run.kind.in_(sorted(kinds)))
    # SQLite has the one writer that BEGIN IMMEDIATE admits and leaves FOR UPDATE out. On PostgreSQL a supervisor
    # passes by what others are taking just now, in place of waiting for them.
    first = candidates.order_by(Run.priority.desc(), Run.id).limit(1).with_for_update(skip_locked=True)
    if has_several_writers(session):
        postgresql.forbid_sorting(session.connection())
    now = time.time()
    row = session.execute(
        update(Run)
        .where(Run.id == first.scalar_subquery())
        .values(
            state="running",
            supervisor=supervisor,
            claimed_at=now,
            heartbeat_at=now,
            run_folder=None if runs_folder is None else literal(f"{runs_folder}/") + Run.uid,
        )
        .returning(Run.id, Run.uid, Run.kind, Run.spec, Run.spec_hash, Run.device)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else ClaimedRun(*row)


def started(
    session: Session, run_id: int, worker_pid: int | None, worker_process_started_at: float | None, run_folder: str
) -> bool:
    """Record the worker of a claimed run: its pid, and the start time that tells it from a later owner of that pid.

    Both are None where it is on another machine.

    Returns False when the run is not running any more.
    """
    now = time.time()
    values = {
        "worker_pid": worker_pid,
        "worker_process_started_at": worker_process_started_at,
        "run_folder": run_folder,
        "started_at": now,
        "heartbeat_at": now,
    }
    return _changed(session, _running(run_id).values(values)) == 1


def adopt(session: Session, run_id: int, supervisor: str) -> bool:
    """Make this supervisor the one that watches a running run. Returns False when the run is not running any more."""
    return _changed(session, _running(run_id).values(supervisor=supervisor, heartbeat_at=time.time())) == 1


def put_back(session: Session, run_id: int, *, is_abandoned: bool = False) -> bool:
    """Queue a claimed run again of which nothing was run, at the place that it had; one to be cancelled is cancelled.

    That its supervisor ended in between (``is_abandoned``) is counted.

    Returns False, and changes nothing, when the run is not running or a worker was started for it: what was measured
    once is not measured again by itself.
    """
    # The worker of a run on another machine has no number here.
    claimed = _running(run_id).where(Run.started_at.is_(None))
    cancelled = claimed.where(Run.cancel_requested.is_(True))
    if _changed(session, cancelled.values(state="cancelled", finished_at=time.time())) == 1:
        return True
    if is_abandoned:
        claimed = claimed.values(abandoned_claims=Run.abandoned_claims + 1)
    nobody = {"supervisor": None, "claimed_at": None, "heartbeat_at": None, "run_folder": None}
    return _changed(session, claimed.values(state="queued", **nobody)) == 1


def progress(session: Session, documents: Mapping[int, Mapping[str, Any]]) -> int:
    """Record where running runs are ({"phase", "done", "total", "eta_s", "node"} by id); also a heartbeat.

    Returns how many of them are still running.
    """
    hold(session, documents)
    now = time.time()
    return sum(
        _changed(session, _running(run_id).values(progress=dict(document), heartbeat_at=now))
        for run_id, document in documents.items()
    )


def heartbeat(session: Session, run_ids: Collection[int]) -> None:
    """Record that these running runs are alive."""
    hold(session, run_ids)
    for chunk in chunks(run_ids):
        _changed(session, _running(*chunk).values(heartbeat_at=time.time()))


def request_cancel(session: Session, run_ids: Collection[int]) -> int:
    """Cancel queued runs at once and ask for the end of running ones. Returns how many runs this changed."""
    hold(session, run_ids)
    changed = 0
    for chunk in chunks(run_ids):
        queued = update(Run).where(Run.id.in_(chunk), Run.state == "queued")
        changed += _changed(session, queued.values(state="cancelled", finished_at=time.time()))
        asked = _running(*chunk).where(Run.cancel_requested.is_(False))
        changed += _changed(session, asked.values(cancel_requested=True))
    return changed


def cancel_requests(session: Session, run_ids: Collection[int]) -> set[int]:
    """Which of these runs someone asked to cancel."""
    asked: set[int] = set()
    for chunk in chunks(run_ids):
        asked.update(session.scalars(select(Run.id).where(Run.id.in_(chunk), Run.cancel_requested.is_(True))))
    return asked


def finish(session: Session, run_id: int, document: Mapping[str, Any]) -> bool:
    """Store the result document of a running run, with its metrics and at most 600 samples per series.

    Returns False, and changes nothing, when the run is not running: a final state is never overwritten. A document that
    cannot be stored (a metric that is not finite, say) ends the run as ``failed`` with the reason, so that no run
    stays running for ever.
    """
    try:
        result = parse_result(document)
    except DocumentRefused as refusal:
        error = {"kind": "result_refused", "text": f"The result cannot be stored: {refusal}"}
        result = parse_result({"state": "failed", "error": error})
    values = {**result_columns(result), "finished_at": time.time()}
    if _changed(session, _running(run_id).values(values)) != 1:
        return False
    insert_measurements(session, run_id, result)
    return True


def running(session: Session) -> list[RunningRun]:
    """Every run in state ``running``, oldest claim first."""
    rows = session.execute(
        select(
            Run.id,
            Run.uid,
            Run.kind,
            Run.device,
            Run.spec,
            Run.spec_hash,
            Run.supervisor,
            Run.worker_pid,
            Run.worker_process_started_at,
            Run.run_folder,
            Run.claimed_at,
            Run.started_at,
            Run.heartbeat_at,
            Run.cancel_requested,
            Run.abandoned_claims,
        )
        .where(Run.state == "running")
        .order_by(Run.claimed_at, Run.id)
    )
    return [RunningRun(**row._mapping) for row in rows]


def queue_depth(session: Session) -> int:
    """How many runs are queued."""
    return session.scalar(select(func.count()).select_from(Run).where(Run.state == "queued")) or 0


def counts_by_state(session: Session) -> dict[str, int]:
    """How many runs, archived ones too, are in each state that some run is in."""
    rows = session.execute(select(Run.state, func.count()).group_by(Run.state))
    return {run_state: count for run_state, count in rows}


def next_replicas(session: Session, spec_hashes: Iterable[str], origin: str = "local") -> Counter[str]:
    """For each spec, the replica number that its next run of this origin gets; 0 for the first.

    What was imported and what is sample data count apart: they are no replicas of what is measured here.
    """
    numbers: Counter[str] = Counter()
    for chunk in chunks(sorted(spec_hashes)):
        rows = session.execute(
            select(Run.spec_hash, func.max(Run.replica))
            .where(Run.spec_hash.in_(chunk), Run.origin == origin)
            .group_by(Run.spec_hash)
        )
        numbers.update({spec_hash: replica + 1 for spec_hash, replica in rows})
    return numbers


def _running(*run_ids: int) -> Update:
    return update(Run).where(Run.id.in_(run_ids), Run.state == "running")


def _changed(session: Session, statement: Update) -> int:
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount
