"""Take queued runs from the database, have workers measure them, and keep what they found.

One process per database, held by a file lock; the queue stays correct if two race. Claims, starts, samples, cancels,
times out, and recovers runs whose supervisor died: their workers are adopted if they live, their results taken if they
left one, and only otherwise is a run ``lost``. Does not measure anything itself and never retries a measurement.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any

from db import nodes, predictions, queue, runs, session
from engine.executors import Ending, Executor, Lock, Node, Work, Worker
from engine.executors.endings import document_without_result
from engine.executors.processes import is_same_process, process_start_s, try_lock_file
from engine.measure.environment import node_name
from engine.result import Device
from engine.spec import MEASURED_KINDS, REQUEST_KINDS

LOCK_FILE = "supervisor.lock"
_POLL_S = 0.1
_HEARTBEAT_S = 2.0
_CONTROL_S = 0.25
_RECOVER_S = 10.0
_NODES_S = 60.0
#: A node, or a supervisor of another machine, that gave no sign for so long is gone.
_SILENT_S = 3 * _NODES_S
#: A run claimed this long ago whose worker never wrote who it is has none.
_START_GRACE_S = 15.0

_log = logging.getLogger("engine.supervisor")


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


def hold_lock(home: Path) -> int:
    """Take the one supervisor lock of a home folder for as long as this process lives.

    Raises:
        AlreadySupervised: naming the process that has it.
    """
    path = home / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
        self._id = f"{os.getpid()}@{process_start_s(os.getpid()):.2f}@{node_name()}"
        self._active: dict[int, _Active] = {}
        self._nodes: list[Node] = []
        self._nodes_stored_s = -_NODES_S
        self._stopping = False
        self._worked_s = time.monotonic()
        self._next_claim_s = 0.0

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Finish the current round and return from ``run``. Workers go on; the next supervisor adopts them."""
        self._stopping = True

    def run(self, idle_exit_s: float | None = None) -> None:
        """Serve the queue until stopped, or until nothing was queued or running for ``idle_exit_s`` seconds."""
        # Before the first claim: workers of a dead supervisor may still be using the devices.
        self._recover()
        devices = self._executor.start()
        _log.info("ready: %s", ", ".join(f"{device.id} ({device.name})" for device in devices) or "no device")
        next_heartbeat_s = next_control_s = next_recover_s = 0.0
        while not self._stopping:
            now_s = time.monotonic()
            self._collect_ended()
            if now_s >= next_control_s:
                next_control_s = now_s + _CONTROL_S
                self._see_nodes(now_s)
                self._obey_cancels()
                self._store_progress()
            if now_s >= next_heartbeat_s:
                next_heartbeat_s = now_s + _HEARTBEAT_S
                self._beat()
            if now_s >= next_recover_s:
                next_recover_s = now_s + _RECOVER_S
                self._recover()
            if now_s >= self._next_claim_s:
                self._next_claim_s = now_s + (_CONTROL_S if self._active else _POLL_S)
                while not self._stopping and self._claim_one():
                    pass
            if self._active:
                self._worked_s = now_s
            elif idle_exit_s is not None and now_s - self._worked_s > idle_exit_s:
                _log.info("nothing to do for %.0f s", idle_exit_s)
                return
            self._wait()

    def _see_nodes(self, now_s: float) -> None:
        """Note which machines there are, for claims and for pages: when that changes, and every minute as a sign."""
        found = self._executor.nodes()
        if found == self._nodes and now_s < self._nodes_stored_s + _NODES_S:
            return
        before, self._nodes, self._nodes_stored_s = {node.name for node in self._nodes}, found, now_s
        seen_at, names = time.time(), {node.name for node in found}
        with self._database.writing() as db:
            nodes.store(db, [self._row(node, seen_at) for node in found])
            for row in nodes.nodes(db):
                if row.name in names or row.state == "lost":
                    continue
                if row.name in before:
                    nodes.mark_lost(db, row.name, "It left the cluster, or cannot be reached any more")
                elif row.seen_at < seen_at - _SILENT_S:
                    nodes.mark_lost(db, row.name, "No supervisor sees it any more")

    def _row(self, node: Node, seen_at: float) -> nodes.NodeRow:
        return nodes.NodeRow(
            name=node.name,
            is_head=node.is_head,
            state="broken" if node.problem else "differs" if self._differs(node) else "ready",
            problem=node.problem,
            versions=node.versions,
            seen_at=seen_at,
            devices=tuple(asdict(device) for device in node.devices),
        )

    def _differs(self, node: Node) -> bool:
        """Whether its numbers would not compare with the head's: other versions of what is measured."""
        return any(head.is_head and head.versions != node.versions for head in self._nodes)

    def _beat(self) -> None:
        """Say that the loop goes round: in the lock file's time always, in the database while runs are watched."""
        if self._active:
            with self._database.writing() as db:
                queue.heartbeat(db, list(self._active))
        # A sign for people only: whoever took the file away must not end a measurement.
        with suppress(OSError):
            os.utime(self._home / LOCK_FILE)

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
            return False
        try:
            return self._start(lock, MEASURED_KINDS, node, device)
        finally:
            # The worker has its own copy by now.
            lock.close()

    def _start(
        self, lock: Lock | None, kinds: Collection[str], node: Node | None = None, device: Device | None = None
    ) -> bool:
        """Claim and start a run on a device that is kept for it; a request, which needs none, here."""
        with self._database.writing() as db:
            claimed = queue.claim(
                db,
                supervisor=self._id,
                devices=[device.id if device else "cpu"],
                kinds=kinds,
                node=node.name if node else None,
                device_type=device.name if device else None,
                # A sweep must not mix versions because a node happened to be free.
                only_named=node is not None and self._differs(node),
            )
        if claimed is None:
            return False
        work = Work(claimed.spec, claimed.spec_hash, run_folder(self._home, claimed.uid))
        try:
            worker = self._executor.submit(work, lock)
        except OSError as error:
            ending: Ending = ("failed", f"The worker could not be started: {error}")
            self._finish(claimed.id, document_without_result(work, ending))
            return True
        self._active[claimed.id] = _Active(claimed.id, claimed.spec, worker)
        with self._database.writing() as db:
            queue.started(
                db,
                claimed.id,
                worker_pid=worker.pid,
                worker_process_started_at=worker.process_start_s,
                run_folder=str(work.folder),
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
        moved = []
        for active in self._active.values():
            progress = active.worker.progress()
            if progress is not None:
                shown = f"{progress.phase} {progress.done * 20 // max(progress.total, 1)}"
                if shown != active.stored_progress:
                    active.stored_progress = shown
                    moved.append((active.run_id, asdict(progress)))
        if moved:
            with self._database.writing() as db:
                for run_id, document in moved:
                    queue.progress(db, run_id, document)

    def _wait(self) -> None:
        """Sleep until a worker ends or it is time to look again; never spin beside a measurement."""
        sentinels = [a.worker.sentinel for a in self._active.values() if a.worker.sentinel is not None]
        if sentinels:
            connection.wait(sentinels, timeout=_POLL_S)
        else:
            time.sleep(_POLL_S)

    # --- ending -----------------------------------------------------------------------------------------------------

    def _collect(self, active: _Active) -> None:
        self._finish(active.run_id, active.worker.collect())
        del self._active[active.run_id]
        self._next_claim_s = 0.0  # a device is free: the next run need not wait for the next look at the queue

    def _finish(self, run_id: int, document: Mapping[str, Any]) -> None:
        with self._database.writing() as db:
            stored = queue.finish(db, run_id, _without_predictions(document))
            if stored and (entries := _predictions(document)):
                predictions.store(db, entries, document["spec"].get("card"))
                # Whoever asked finds the answers there; among the runs the request would only be in the way.
                runs.archive(db, [run_id])
        _log.info("run %d %s", run_id, document["state"] if stored else "was already finished")

    # --- recovering -------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Adopt, collect or declare lost every running run whose supervisor is gone."""
        with self._database.reading() as db:
            running = queue.running(db)
        for row in running:
            if row.id in self._active or _supervisor_lives(row, self._id):
                continue
            work = Work(row.spec, row.spec_hash, run_folder(self._home, row.uid))
            worker = self._executor.adopt(work)
            if worker is None:
                if time.time() - (row.claimed_at or 0.0) >= _START_GRACE_S:
                    text = "The supervisor ended before the run's worker had begun"
                    self._finish(row.id, document_without_result(work, ("lost", text)))
            elif not worker.is_alive():
                self._finish(row.id, worker.collect())
            else:
                _log.info("run %d: adopted its worker, process %d", row.id, worker.pid)
                with self._database.writing() as db:
                    adopted = queue.adopt(db, row.id, self._id)
                if adopted:
                    self._active[row.id] = _Active(row.id, row.spec, worker)


def run_folder(home: Path, uid: str) -> Path:
    """Where a run keeps its files: ``<home>/runs/<uid>``."""
    return home / "runs" / uid


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


def _supervisor_lives(row: queue.RunningRun, own: str) -> bool:
    """Whether the supervisor that claimed a run still answers for it; that of another machine while it gives signs."""
    if row.supervisor == own:
        return True
    process, _, host = (row.supervisor or "").rpartition("@")
    if host != own.rpartition("@")[2]:
        return time.time() - (row.heartbeat_at or 0.0) < _SILENT_S
    pid, _, started_s = process.partition("@")
    return is_same_process(int(pid), float(started_s))
