"""Take queued runs from the database, have workers measure them, and keep what they found.

One process per home folder, held by a file lock; the queue stays correct if several race. Claims, starts, cancels, and
recovers runs whose supervisor died: their workers are adopted if they live, their results taken if they left one, what
never began is queued again a few times, and only otherwise is a run ``lost``. While the database cannot be used
(locked, on a full disk) runs under way go on, and what is to be written about them is kept until it can be. Does not
measure anything itself, holds no run to its limits (``executors.watch`` does) and never retries a measurement.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from db import nodes, predictions, queue, runs, session
from engine import trouble
from engine.executors import Executor, Lock, Node, Work, Worker
from engine.executors.endings import document_without_result
from engine.executors.processes import is_same_process, process_start_s, try_lock_file
from engine.result import Device
from engine.spec import (
    MEASURED_KINDS,
    REQUEST_KINDS,
    InspectSpec,
    MergeFilesSpec,
    PlanSpec,
    PredictSpec,
    SpecError,
    parse_spec,
    prediction_key,
)

LOCK_FILE = "supervisor.lock"
_POLL_S = 0.1
_HEARTBEAT_S = 2.0
_CONTROL_S = 0.25
_RECOVER_S = 10.0
_NODES_S = 60.0
#: A node that no supervisor stored for so long is gone.
_UNSEEN_S = 3 * _NODES_S
#: A run claimed this long ago whose worker never wrote who it is has none.
_START_GRACE_S = 15.0
#: A run whose supervisor ended so often before it began is taken for the reason, and is not tried again.
_ABANDONED_CLAIMS = 5
#: The supervisor of another machine is given up after so long without a heartbeat: it may have been asleep.
_FOREIGN_SILENCE_S = 300.0
#: How long to leave alone what cannot be used at the moment.
_TROUBLE_S = 1.0

_log = logging.getLogger("engine.supervisor")
Result = TypeVar("Result")


class AlreadySupervised(RuntimeError):
    """Another supervisor serves this database."""


@dataclass
class _Active:
    run_id: int
    spec: Mapping[str, Any]
    worker: Worker
    stored_progress: str = ""

    @property
    def is_request(self) -> bool:
        return self.spec["kind"] in REQUEST_KINDS


class _Every:
    """Says when an interval is over, from the first time on."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next_s = 0.0

    def is_due(self, now_s: float) -> bool:
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._interval_s
        return True


def hold_lock(home: Path) -> int:
    """Take the one supervisor lock of a home folder for as long as this process lives.

    Raises:
        AlreadySupervised: naming the process that has it.
        DatabaseError: when nothing can be written there.
    """
    path = home / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise session.DatabaseError(f"{path}: cannot be written: {error.strerror}") from None
    if not try_lock_file(descriptor):
        owner = path.read_text().strip() or "unknown"
        os.close(descriptor)
        raise AlreadySupervised(f"supervisor: process {owner} already serves {home}")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


class Supervisor:
    """The loop and what it holds. ``run`` returns when told to stop or, if asked, after a time without work."""

    def __init__(self, database: session.Database, home: Path, executor: Executor) -> None:
        self._database = database
        self._home = home
        self._executor = executor
        self._host = socket.gethostname()
        self._id = f"{os.getpid()}@{process_start_s(os.getpid()):.2f}@{self._host}"
        self._active: dict[int, _Active] = {}
        self._nodes: list[Node] = []
        self._nodes_stored_s = -_NODES_S
        #: What is to be written, oldest first. Each item is one transaction that may be tried again.
        self._owed: deque[Callable[[Session], object]] = deque()
        self._trouble = ""
        #: The trouble as pages know it; nobody knows what the last supervisor left there.
        self._told: str | None = None
        #: Signs of life of runs that are not ours, each with when it was seen first: clocks may be set.
        self._signs: dict[int, tuple[float | None, float]] = {}
        self._heartbeat, self._control, self._recovery = _Every(_HEARTBEAT_S), _Every(_CONTROL_S), _Every(_RECOVER_S)
        self._stopping = False
        self._worked_s = time.monotonic()
        self._next_claim_s = 0.0

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Finish the current round and return from ``run``. Workers go on; the next supervisor adopts them."""
        self._stopping = True

    def run(self, idle_exit_s: float | None = None) -> None:
        """Serve the queue until stopped, or until nothing was queued or running for ``idle_exit_s`` seconds."""
        # Before the first claim: workers of a dead supervisor may still be using the devices.
        while not self._stopping and not self._could(self._recover):
            time.sleep(_TROUBLE_S)
        devices = self._executor.start()
        self._worked_s = time.monotonic()
        _log.info("ready: %s", ", ".join(f"{device.id} ({device.name})" for device in devices) or "no device")
        while not self._stopping:
            now_s = time.monotonic()
            if not self._could(self._go_round):
                time.sleep(_TROUBLE_S)
            elif self._active or self._owed:
                self._worked_s = now_s
            elif idle_exit_s is not None and now_s - self._worked_s > idle_exit_s:
                _log.info("nothing to do for %.0f s", idle_exit_s)
                return
            self._wait()
        self._could(self._settle)

    def _go_round(self) -> None:
        now_s = time.monotonic()
        # For people only: whoever took the file away must not end a measurement.
        if beats := self._heartbeat.is_due(now_s):
            with suppress(OSError):
                os.utime(self._home / LOCK_FILE)
        self._settle()
        self._collect_ended()
        if self._control.is_due(now_s):
            self._see_nodes(now_s)
            self._obey_cancels()
            self._store_progress()
        if beats and self._active:
            self._write(lambda db: queue.heartbeat(db, list(self._active)))
        if self._recovery.is_due(now_s):
            self._recover()
        if now_s >= self._next_claim_s:
            self._next_claim_s = now_s + (_CONTROL_S if self._active else _POLL_S)
            while not self._stopping and self._claim_one():
                pass

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _see_nodes(self, now_s: float) -> None:
        """Note which machines there are, for claims and for pages: when that changes, and every minute as a sign."""
        found = self._executor.nodes()
        if found == self._nodes and now_s < self._nodes_stored_s + _NODES_S:
            return
        gone = {node.name for node in self._nodes} - {node.name for node in found}
        self._nodes, self._nodes_stored_s = found, now_s
        self._owe(partial(_store_nodes, found=[_row(node, found) for node in found], gone=gone))

    # --- writing ----------------------------------------------------------------------------------------------------

    def _could(self, step: Callable[[], None]) -> bool:
        """Do one step; False if the database cannot be used for it now. Nothing is lost then: it is done again."""
        try:
            step()
        except session.DatabaseUnavailable as error:
            if not self._trouble:
                _log.warning("%s. Runs under way go on; their results are kept until it can be used again", error)
            self._trouble = str(error)
            return False
        finally:
            if self._told != self._trouble and trouble.tell(self._home, self._trouble):
                self._told = self._trouble
        return True

    def _write(self, action: Callable[[Session], Result]) -> Result:
        with self._database.writing() as db:
            result = action(db)
        if self._trouble:
            self._trouble = ""
            _log.info("the database can be used again")
        return result

    def _owe(self, action: Callable[[Session], object]) -> None:
        """Have something written now or, where that is not possible, as soon as it is."""
        self._owed.append(action)
        self._settle()

    def _settle(self) -> None:
        while self._owed:
            self._write(self._owed[0])
            self._owed.popleft()

    # --- starting ---------------------------------------------------------------------------------------------------

    def _claim_one(self) -> bool:
        """Claim and start one run that can start now; False if there is none."""
        with self._database.reading() as db:
            waiting = queue.queue_depth(db)
        if not waiting:
            return False
        # One of each kind at once: someone who waits for an inspection need not wait for hours of merging files.
        at_work = {active.spec["kind"] for active in self._active.values()}
        if any(kind not in at_work and self._start(None, (kind,)) for kind in REQUEST_KINDS):
            return True
        return any(self._start_on(node, device) for node in self._nodes for device in node.devices)

    def _start_on(self, node: Node, device: Device) -> bool:
        lock = self._executor.lock(device.id, node.name)
        if lock is None:
            # It is measured on; what waits for it is work.
            self._worked_s = time.monotonic()
            return False
        try:
            return self._start(
                lock,
                MEASURED_KINDS,
                node=node.name,
                device=device.id,
                device_type=device.name,
                # A sweep must not mix versions because a node happened to be free.
                only_named=_differs(node, self._nodes),
            )
        finally:
            # The worker has its own copy by now.
            lock.close()

    def _start(self, lock: Lock | None, kinds: Collection[str], device: str = "cpu", **place: Any) -> bool:
        """Claim a run of these kinds and start it; one that needs no lock of a device is a request."""
        place = {**place, "supervisor": self._id, "runs_folder": str(runs_folder(self._home))}
        claimed = self._write(lambda db: queue.claim(db, devices=[device], kinds=kinds, **place))
        if claimed is None:
            return False
        work = Work(claimed.spec, claimed.spec_hash, run_folder(self._home, claimed.uid))
        try:
            worker = self._executor.submit(work, lock)
        except OSError as error:
            # The machine's trouble (a full disk, no process to be had) and not the run's: nothing of it ran.
            _log.warning("run %d could not be started and is queued again: %s", claimed.id, error)
            self._next_claim_s = time.monotonic() + _START_GRACE_S
            self._owe(partial(queue.put_back, run_id=claimed.id))
            return False
        self._active[claimed.id] = _Active(claimed.id, claimed.spec, worker)
        self._owe(
            partial(
                queue.started,
                run_id=claimed.id,
                worker_pid=worker.pid,
                worker_process_started_at=worker.process_start_s,
                run_folder=str(work.folder),
            )
        )
        return True

    # --- watching ---------------------------------------------------------------------------------------------------

    def _collect_ended(self) -> None:
        for active in list(self._active.values()):
            if not active.worker.is_alive():
                self._collect(active)

    def _obey_cancels(self) -> None:
        if not self._active:
            return
        with self._database.reading() as db:
            requested = queue.cancel_requests(db, list(self._active))
        for run_id in requested:
            active = self._active[run_id]
            active.worker.cancel(("cancelled", "Cancelled while it was running"))
            self._collect(active)

    def _store_progress(self) -> None:
        moved = {}
        for active in self._active.values():
            progress = active.worker.progress()
            if progress is not None:
                shown = f"{progress.phase} {progress.done * 20 // max(progress.total, 1)}"
                if shown != active.stored_progress:
                    active.stored_progress = shown
                    moved[active.run_id] = asdict(progress)
        if moved:
            self._write(lambda db: queue.progress(db, moved))

    def _wait(self) -> None:
        """Sleep until a worker ends or it is time to look again; never spin beside a measurement."""
        sentinels = [a.worker.sentinel for a in self._active.values() if a.worker.sentinel is not None]
        if sentinels:
            connection.wait(sentinels, timeout=_POLL_S)
        else:
            time.sleep(_POLL_S)

    # --- ending -----------------------------------------------------------------------------------------------------

    def _collect(self, active: _Active) -> None:
        document = active.worker.collect()
        del self._active[active.run_id]
        self._next_claim_s = 0.0  # a device is free: the next run need not wait for the next look at the queue
        self._finish(active.run_id, document)

    def _finish(self, run_id: int, document: Mapping[str, Any]) -> None:
        self._owe(partial(_store_end, run_id=run_id, document=document))

    # --- recovering -------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Adopt, collect, queue again or declare lost every running run whose supervisor is gone."""
        with self._database.reading() as db:
            running = queue.running(db)
        self._signs = {row.id: self._signs[row.id] for row in running if row.id in self._signs}
        for row in running:
            if row.id not in self._active and not self._supervisor_lives(row):
                self._recover_run(row)

    def _recover_run(self, row: queue.RunningRun) -> None:
        # Its supervisor may have had another home.
        folder = Path(row.run_folder) if row.run_folder else run_folder(self._home, row.uid)
        work = Work(row.spec, row.spec_hash, folder)
        worker = self._executor.adopt(work)
        if worker is not None and worker.is_alive():
            _log.info("run %d: adopted its worker, process %d", row.id, worker.pid)
            if self._write(partial(queue.adopt, run_id=row.id, supervisor=self._id)):
                self._active[row.id] = _Active(row.id, row.spec, worker)
        elif worker is not None:
            self._finish(row.id, worker.collect())
        elif row.started_at is not None:
            text = "The supervisor and the worker both ended before there was a result, and the run's folder is gone"
            self._finish(row.id, document_without_result(work, ("lost", text)))
        elif max(self._silent_s(row, row.claimed_at), time.time() - (row.claimed_at or 0.0)) >= _START_GRACE_S:
            if row.abandoned_claims + 1 < _ABANDONED_CLAIMS or row.cancel_requested:
                _log.info("run %d had not begun when its supervisor ended: queued again", row.id)
                self._owe(partial(queue.put_back, run_id=row.id, is_abandoned=True))
            else:
                text = f"{_ABANDONED_CLAIMS} times a supervisor claimed the run and ended before it began"
                self._finish(row.id, document_without_result(work, ("lost", text)))

    def _supervisor_lives(self, row: queue.RunningRun) -> bool:
        """Whether the supervisor that claimed a run still answers for it, as far as can be told from here."""
        if row.supervisor == self._id:
            return True
        pid, started_s, *host = (row.supervisor or "0@0").split("@", 2)
        # Before there were several hosts its name was not part of it.
        if host in ([], [self._host]):
            return is_same_process(int(pid), float(started_s))
        return self._silent_s(row, row.heartbeat_at) < _FOREIGN_SILENCE_S

    def _silent_s(self, row: queue.RunningRun, sign: float | None) -> float:
        """For how many seconds this sign of a run has been seen here without a change: no clock that can be set."""
        now_s = time.monotonic()
        known = self._signs.get(row.id)
        if known is None or known[0] != sign:
            known = self._signs[row.id] = (sign, now_s)
        return now_s - known[1]


def runs_folder(home: Path) -> Path:
    """Where the runs of a supervisor of this home have their folders."""
    return home / "runs"


def run_folder(home: Path, uid: str) -> Path:
    """Where a run keeps its files: ``<home>/runs/<uid>``."""
    return runs_folder(home) / uid


def _store_end(db: Session, run_id: int, document: Mapping[str, Any]) -> None:
    if document["state"] == "out_of_memory":
        document = _with_what_was_predicted(db, document)
    stored = queue.finish(db, run_id, _without_predictions(document))
    if stored and (entries := _predictions(document)):
        predictions.store(db, entries, document["spec"].get("card"))
        # Whoever asked finds the answers there; among the runs the request would only be in the way.
        runs.archive(db, [run_id])
    _log.info("run %d %s", run_id, document["state"] if stored else "was already finished")


def _with_what_was_predicted(db: Session, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result of a run that ran out of memory, saying also what was predicted of it if that is known."""
    try:
        spec = parse_spec(document["spec"])
    except SpecError:
        return document
    if isinstance(spec, InspectSpec | PredictSpec | PlanSpec | MergeFilesSpec):
        return document
    key = prediction_key(spec)
    metrics = predictions.find(db, [key]).get(key, {}).get("metrics") or ()
    peaks = [metric["value"] for metric in metrics if metric["name"] == "peak_bytes"]
    if not peaks:
        return document
    error = dict(document["error"])
    error["text"] = f"{error['text']}; predicted was a peak of {max(peaks) / 2**30:.3g} GiB of tensors"
    return {**document, "error": error}


def _store_nodes(db: Session, found: list[nodes.NodeRow], gone: set[str]) -> None:
    nodes.store(db, found)
    names, oldest_s = {row.name for row in found}, time.time() - _UNSEEN_S
    for row in nodes.nodes(db):
        if row.name in gone:
            nodes.mark_lost(db, row.name, "It left the cluster, or cannot be reached any more")
        elif row.name not in names and row.state != "lost" and row.seen_at < oldest_s:
            nodes.mark_lost(db, row.name, "No supervisor sees it any more")


def _row(node: Node, among: list[Node]) -> nodes.NodeRow:
    return nodes.NodeRow(
        name=node.name,
        is_head=node.is_head,
        state="broken" if node.problem else "differs" if _differs(node, among) else "ready",
        problem=node.problem,
        versions=node.versions,
        seen_at=time.time(),
        devices=tuple(asdict(device) for device in node.devices),
    )


def _differs(node: Node, among: list[Node]) -> bool:
    """Whether its numbers would not compare with the head's: other versions of what is measured."""
    return any(head.is_head and head.versions != node.versions for head in among)


def _predictions(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of a predict request that succeeded."""
    if document["state"] != "succeeded" or document["spec"]["kind"] != "predict":
        return []
    return list((document.get("inspection") or {}).get("predictions") or ())


def _without_predictions(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A predict request's result without what is kept apart: of each entry only under which key it is found."""
    entries = _predictions(document)
    if not entries:
        return document
    keys = [{"key": entry.get("key"), "spec_hash": entry.get("spec_hash")} for entry in entries]
    return {**document, "inspection": {"predictions": keys}}
