"""Run workers on the nodes of a Ray cluster: the supervisor is its driver, and stays the only one with the database.

On each node an actor keeps a warm local executor (``node_agent``). Each run is one Ray task, which takes the node's
whole CPU or one GPU, has that actor start the worker and holds it on a leash. Requests, which measure nothing and use
this machine's files, run here, in the local executor. Needs ``ray``, which ``make cluster`` installs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from engine import worker
from engine.executors import Ending, Executor, ExecutorError, Lock, Node, Work, Worker
from engine.executors.endings import document_without_result
from engine.executors.gone import NODE_FILE
from engine.executors.node_agent import ANY_GPU, NodeAgent
from engine.leash import hold_run
from engine.measure.environment import as_node_name, versions
from engine.result import Device, Progress

VARIABLE = "PEFT_LAB_EXECUTOR"

_CONNECT_S = 5.0
_START_S = 120.0
_NODES_EVERY_S = 2.0
_LOOK_EVERY_S = 0.25
_WAIT_S = 0.1
_ANSWER_S = 2.0
_CANCEL_S = 10.0
#: How every HTTP/2 connection begins, which Ray's server speaks: an empty SETTINGS frame, answered with its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4

_log = logging.getLogger("engine.executors.ray")

_remote: Any = ray.remote  # Ray's annotations know less than it can.
# A process of its own for every run, which is never tried again.
_hold_run = _remote(max_calls=1, max_retries=0)(hold_run)
_node_agent = _remote(num_cpus=0, max_concurrency=4)(NodeAgent)


@dataclass(eq=False)
class _Node:
    """One node of the cluster as it was found, and its agent once that has answered."""

    id: str
    name: str
    is_head: bool
    cpus: float
    gpus: float
    #: The type of its GPUs in Ray's words, where Ray knows it.
    accelerator: str | None
    agent: Any = None
    starting: Any = None
    looking: Any = None
    next_look_s: float = 0.0
    address: str = ""
    key: bytes = b""
    devices: tuple[Device, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    def slots(self, device: str) -> float:
        """How many runs may use a device at a time: each has the whole CPU, or a GPU."""
        return self.gpus if device == ANY_GPU else 1


@dataclass(eq=False)
class RayLock:
    """A device of one node that is kept for one run."""

    device: str
    node: _Node
    #: What the node calls it.
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    given_to_a_run: bool = False

    def close(self) -> None:
        """Give the device up, unless a run was started on it: then its node gives it up with the run."""
        if not self.given_to_a_run:
            self.node.agent.release.remote(self.token)


class RayWorker:
    """One run on a node. ``executors.Worker``; what it says is what the node told last."""

    sentinel: int | None
    pid: int | None = None
    process_start_s: float | None = None

    def __init__(self, work: Work, kept: RayLock, task: Any) -> None:
        self.work, self.kept, self.node, self.task = work, kept, kept.node, task
        self.collecting: Any = None
        self.log_bytes = 0
        self.ending: Ending | None = None
        self._submitted_s = time.monotonic()
        self._progress = Progress("waiting", node=kept.node.name)
        self._document: dict[str, Any] | None = None
        self.ended = threading.Event()
        # Readable once the run has ended, so that the supervisor need not ask.
        self.sentinel, self._signal = os.pipe()

    @property
    def run(self) -> str:
        """What its node calls the run."""
        return self.work.folder.name

    @property
    def age_s(self) -> float:
        """Seconds since it was given to the node."""
        return time.monotonic() - self._submitted_s

    def is_alive(self) -> bool:
        """Whether the run is still going on, or its result still on the way."""
        return not self.ended.is_set()

    def progress(self) -> Progress:
        """Where the job says it is, a quarter of a second ago."""
        return self._progress

    def cancel(self, ending: Ending, grace_s: float = 1.0) -> None:
        """End the worker on its node, and wait until it is gone and what it left is here."""
        if self.ended.is_set():
            return
        self.ending = self.ending or ending
        ray.wait([self.node.agent.cancel.remote(self.run, ending, grace_s)], timeout=grace_s + _CANCEL_S)
        # Has ended a worker's task by now; one that still waits for the node, or hangs, is ended here.
        if not self.ended.wait(_ANSWER_S):
            ray.cancel(self.task, force=True)
        if not self.ended.wait(_CANCEL_S):
            self.end(None)

    def collect(self) -> dict[str, Any]:
        """The result document that its node gave back, or else one of how it ended."""
        assert self._document is not None, "collected while it runs"
        if self.sentinel is not None:
            os.close(self.sentinel)
            self.sentinel = None
        return self._document

    # --- for the executor's thread ----------------------------------------------------------------------------------

    def saw(self, seen: dict[str, Any]) -> None:
        """Take in what the node told of the run."""
        self._progress = Progress(**{**(seen["progress"] or {"phase": "starting"}), "node": self.node.name})
        self.append_log(seen["log"])

    def append_log(self, piece: bytes) -> None:
        """Keep the log here as it is there."""
        self.log_bytes += len(piece)
        # A log that cannot be kept is no reason to lose the measurement.
        with contextlib.suppress(OSError), (self.work.folder / worker.LOG_FILE).open("ab") as file:
            file.write(piece)

    def end(self, document: dict[str, Any] | None) -> None:
        """The run is over. ``None`` where nothing came back of it."""
        if self.ended.is_set():
            return
        lost: Ending = ("lost", f"The node {self.node.name} was lost before it gave a result back")
        self._document = document or document_without_result(
            self.work, self.ending or lost, environment=self.node.environment
        )
        self.ended.set()
        os.close(self._signal)


class RayExecutor:
    """Sends measured runs to the nodes of one cluster, and keeps an eye on them from a thread of its own."""

    def __init__(self, address: str, local: Executor) -> None:
        self._address = address
        self._local = local
        self._nodes: dict[str, _Node] = {}
        self._workers: list[RayWorker] = []
        self._changed = threading.Lock()
        self._next_nodes_s = 0.0

    def start(self) -> list[Device]:
        """Join the cluster, start an agent on each node, and return the devices of the first that answers.

        The others are found as they answer or join. One that cannot run workers is left out, and the log says why.

        Raises:
            ExecutorError: if there is no such cluster, or this machine cannot join it.
        """
        connect(self._address)
        self._local.start()
        self._find_nodes()
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s:
            nodes = self._nodes.values()
            if any(node.devices for node in nodes) or not any(node.starting for node in nodes):
                break
            self._turn()
        threading.Thread(target=self._keep_turning, name="ray", daemon=True).start()
        return [device for node in self.nodes() for device in node.devices]

    def nodes(self) -> list[Node]:
        """The head and every node that has answered, those that cannot run workers among them, with the reason."""
        with self._changed:
            found = [node for node in self._nodes.values() if node.is_head or node.starting is None]
        return [Node(node.name, node.devices, node.versions, node.is_head, node.problem) for node in found]

    def lock(self, device: str, node: str | None = None) -> Lock | None:
        """Keep a device of a node for a run; None if a measurement uses it or the node does not answer at once."""
        with self._changed:
            place = next((found for found in self._nodes.values() if found.name == node), None)
            at_work = sum(one.node is place and one.kept.device == device for one in self._workers)
        if place is None or at_work >= place.slots(device):
            return None
        lock = RayLock(device, place)
        try:
            return lock if ray.get(place.agent.lock.remote(device, lock.token), timeout=_ANSWER_S) else None
        except exceptions.ActorDiedError as error:
            self._lose_agent(place, _first_line(error))
        except exceptions.RayError:
            lock.close()
        return None

    def submit(self, work: Work, lock: Lock | None) -> Worker:
        """Give a run to the node of its lock; without one, to this machine.

        Raises:
            OSError: if its folder cannot be written here, or the worker not be started here.
        """
        if lock is None:
            return self._local.submit(work, None)
        kept = cast(RayLock, lock)
        node = kept.node
        work.folder.mkdir(parents=True, exist_ok=True)
        for name in (worker.RESULT_FILE, worker.WORKER_FILE, worker.LOG_FILE):
            (work.folder / name).unlink(missing_ok=True)
        (work.folder / "spec.json").write_text(json.dumps(dict(work.spec), indent=2))
        (work.folder / NODE_FILE).write_text(json.dumps({"node": node.name}))
        request = {
            "run": work.folder.name,
            "device": kept.device,
            "token": kept.token,
            "spec": dict(work.spec),
            "spec_hash": work.spec_hash,
        }
        task = _task(node, kept.device).remote(node.address, node.key, request)
        kept.given_to_a_run = True
        started = RayWorker(work, kept, task)
        with self._changed:
            self._workers.append(started)
        return started

    def adopt(self, work: Work) -> Worker | None:
        """What is left of a run whose supervisor died: a request goes on here, a run on a node died with its driver."""
        return self._local.adopt(work)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _keep_turning(self) -> None:
        while True:
            try:
                if time.monotonic() >= self._next_nodes_s:
                    self._find_nodes()
                self._turn()
            except Exception as error:  # without this thread no run would ever end
                _log.warning("%s: %s", type(error).__name__, _first_line(error))
                time.sleep(_WAIT_S)

    def _turn(self) -> None:
        """Ask what is to be asked, and take in what has come, waiting a moment for it."""
        now_s = time.monotonic()
        with self._changed:
            workers, nodes = list(self._workers), list(self._nodes.values())
        for node in nodes:
            theirs = {w.run: w.log_bytes for w in workers if w.node is node and w.collecting is None}
            if theirs and node.looking is None and now_s >= node.next_look_s:
                node.next_look_s = now_s + _LOOK_EVERY_S
                node.looking = node.agent.look.remote(theirs)
        waiting: dict[Any, _Node | RayWorker] = {
            **{node.starting: node for node in nodes if node.starting is not None},
            **{node.looking: node for node in nodes if node.looking is not None},
            **{w.collecting or w.task: w for w in workers},
        }
        if not waiting:
            time.sleep(_WAIT_S)
            return
        ready, _ = ray.wait(list(waiting), timeout=_WAIT_S)
        for reference in ready:
            subject = waiting[reference]
            if isinstance(subject, RayWorker):
                self._ended(subject, reference)
            elif reference is subject.starting:
                subject.starting = None
                self._started(subject, reference)
            else:
                subject.looking = None
                self._looked(subject, reference, workers)

    def _find_nodes(self) -> None:
        """Start an agent on each node that is new, and forget those that are gone."""
        self._next_nodes_s = time.monotonic() + _NODES_EVERY_S
        alive = {row["NodeID"]: row for row in ray.nodes() if row["Alive"]}
        with self._changed:
            for gone in set(self._nodes) - set(alive):
                _log.warning("node %s is gone", self._nodes.pop(gone).name)
            names = dict(_names(list(alive.values())))
            for node_id in set(alive) - set(self._nodes):
                self._nodes[node_id] = _new_node(alive[node_id], names[node_id])

    def _started(self, node: _Node, reference: Any) -> None:
        try:
            answer = ray.get(reference)
        except exceptions.RayError as error:
            node.problem = _start_problem(error)
            _log.warning("node %s: %s", node.name, node.problem)
            return
        node.address, node.key = answer["address"], answer["key"]
        node.environment, node.versions = answer["environment"], answer["versions"]
        # A node that gives Ray no CPU, or no GPU, is not to be measured on. Ray chooses which GPU a run gets.
        given = {"cpu": node.cpus >= 1, ANY_GPU: node.gpus >= 1}
        found = (Device(**{**row, "dtypes": tuple(row["dtypes"])}) for row in answer["devices"])
        with self._changed:
            node.devices = devices = tuple(device for device in found if given.get(device.id))
        _log.info("node %s: %s", node.name, ", ".join(f"{d.id} ({d.name})" for d in devices) or "no device")

    def _looked(self, node: _Node, reference: Any, workers: list[RayWorker]) -> None:
        try:
            seen = ray.get(reference)
        except exceptions.ActorDiedError as error:
            self._lose_agent(node, _first_line(error))
            return
        except exceptions.RayError:  # the network hiccups; the next look may do
            return
        for one in workers:
            if one.node is node and one.run in seen and one.collecting is None:
                one.saw(seen[one.run])

    def _lose_agent(self, node: _Node, reason: str) -> None:
        """Without its agent nobody holds a worker to its limits: end what runs there. The next look makes a new one."""
        _log.warning("node %s: its agent ended: %s", node.name, reason)
        with self._changed:
            theirs = [one for one in self._workers if one.node is node]
            self._nodes.pop(node.id, None)
        for one in theirs:
            one.ending = one.ending or ("lost", f"The agent of node {node.name} ended while the run was measured")
            ray.cancel(one.task, force=True)

    def _ended(self, ended: RayWorker, reference: Any) -> None:
        """The task of a run has ended, or what it left has come."""
        if ended.collecting is None:
            ending = None
            try:
                problem = ray.get(reference)
                if problem is not None:
                    ended.ending = ended.ending or ("failed", f"The worker could not be started: {problem}")
            except exceptions.RayError as error:
                ending = ended.ending = ended.ending or _task_ending(error, ended.node.name)
            ended.collecting = ended.node.agent.collect.remote(ended.run, ended.kept.token, ended.log_bytes, ending)
            return
        document = None
        with contextlib.suppress(exceptions.RayError):
            answer = ray.get(reference)
            if answer is not None:
                document = answer["document"]
                ended.append_log(answer["log"])
        with self._changed:
            self._workers.remove(ended)
        ended.end(document)


# --- Ray ------------------------------------------------------------------------------------------------------------


def connect(address: str) -> None:
    """Make this process a driver of the cluster whose head has this address.

    Raises:
        ExecutorError: in one sentence, if nothing answers there, something else does, or the versions differ.
    """
    host, separator, port = address.rpartition(":")
    if not separator or "/" in host or not host or not port.isdecimal():
        raise ExecutorError(f"{VARIABLE}: must be local or a Ray head's address, like 10.0.0.1:6379, not {address!r}")
    # Ray itself would try for two minutes and then end this process.
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_S) as connection:
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ExecutorError(f"{VARIABLE}: no Ray cluster answers at {address}: {reason.lower()}") from None
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ExecutorError(f"{VARIABLE}: what answers at {address} is not the head of a Ray cluster")
    with _own_signals():
        try:
            ray.init(address=address, namespace="peft-lab", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise ExecutorError(f"{VARIABLE}: {_connect_problem(error, address)}") from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets a handler of its own for SIGTERM; the supervisor has one that ends its loop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _connect_problem(error: Exception, address: str) -> str:
    text = str(error)
    if "Version mismatch" in text:
        found = [line.strip() for line in text.splitlines() if line.strip().startswith(("Ray:", "Python:"))]
        versions = [entry.replace(":", "") for entry in found]
        return (
            f"the cluster at {address} has {' and '.join(versions[:2])}, this machine {' and '.join(versions[2:])}; "
            "install the same on both"
        )
    if "No node info found" in text:
        return f"this machine is no node of the cluster at {address}; run `ray start --address={address}` here first"
    return f"the cluster at {address} cannot be joined: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    if isinstance(error, exceptions.RayTaskError):
        error = error.cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _start_problem(error: exceptions.RayError) -> str:
    """Why a node cannot run workers, in one sentence."""
    text = str(error)
    if "No module named 'engine" in text:
        return "PEFT Lab is not installed there, or not where its Ray was started"
    # What was raised there, or the end of the traceback that Ray made of it.
    lines = str(getattr(error, "cause", None) or text).strip().splitlines() or [type(error).__name__]
    return f"no worker can be started there: {lines[-1].strip()}"


def _task_ending(error: exceptions.RayError, node: str) -> Ending:
    if isinstance(error, exceptions.OutOfMemoryError):
        return "out_of_memory", f"Ray ended the run because node {node} ran out of memory"
    if isinstance(error, exceptions.NodeDiedError):
        return "lost", f"The node {node} was lost while the run was measured"
    return "lost", f"The task that held the run on node {node} ended: {_first_line(error)}"


def _task(node: _Node, device: str) -> Any:
    """The Ray task of a run on this node, with its whole CPU or one of its GPUs."""
    takes: dict[str, Any] = {"num_cpus": node.cpus}
    if device == ANY_GPU:
        takes = {"num_cpus": 0, "num_gpus": 1, "accelerator_type": node.accelerator}
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return _hold_run.options(scheduling_strategy=strategy, **takes)


def _new_node(row: dict[str, Any], name: str) -> _Node:
    resources = row["Resources"]
    typed = [key.partition(":")[2] for key in resources if key.startswith("accelerator_type:")]
    strategy = NodeAffinitySchedulingStrategy(row["NodeID"], soft=False)
    node = _Node(
        id=row["NodeID"],
        name=name,
        is_head=row["NodeID"] == ray.get_runtime_context().get_node_id(),
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        accelerator=typed[0] if typed else None,
    )
    if node.is_head:
        # What the others are compared with before it has answered.
        node.versions = versions()
    if node.cpus >= 1 or node.gpus >= 1:
        node.agent = _node_agent.options(scheduling_strategy=strategy).remote(name)
        node.starting = node.agent.start.remote()
    elif not node.is_head:
        node.problem = "it gives Ray neither a CPU nor a GPU"
    return node


def _names(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The name of each node by its id: the one it was given, else its host's; with its port where two have the same."""
    plain = {
        row["NodeID"]: row["NodeManagerHostname"] if row["NodeName"] == row["NodeManagerAddress"] else row["NodeName"]
        for row in rows
    }
    for row in rows:
        name = plain[row["NodeID"]]
        alone = list(plain.values()).count(name) == 1
        yield row["NodeID"], as_node_name(name if alone else f"{name}-{row['NodeManagerPort']}")
