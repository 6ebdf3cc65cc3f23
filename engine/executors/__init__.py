"""Where workers run: one module per place, all behind the two protocols below.

Each place starts the same ``engine.worker`` in a fresh process, holds it to its limits where it runs (``watch``), and
gives back one result document, whatever became of the worker. None knows the queue or the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.result import Device, Progress, State
from engine.spec import Spec, spec_hash

#: The state and the sentence of a run that left no result of its own.
Ending = tuple[State, str]


class ExecutorError(RuntimeError):
    """Workers cannot be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Work:
    """One spec to run, as JSON and with its hash, and the folder that its files go into."""

    spec: Mapping[str, Any]
    spec_hash: str
    folder: Path

    @classmethod
    def of(cls, spec: Spec, folder: Path) -> Work:
        """What to run of a spec that was parsed."""
        return cls(spec.model_dump(mode="json"), spec_hash(spec), folder)


@dataclass(frozen=True, slots=True)
class Node:
    """One machine: the devices that runs can be given, the versions that decide what its numbers compare with.

    ``problem`` says why no run can be given to it; the head is where the supervisor is.
    """

    name: str
    devices: tuple[Device, ...]
    versions: Mapping[str, str]
    is_head: bool = False
    problem: str | None = None


class Lock(Protocol):
    """A device that is kept for one run. The worker gets a copy that lives as long as it does."""

    device: str

    def close(self) -> None:
        """Give up this process's copy; the device is free when no process has one."""


class Worker(Protocol):
    """One run under way, or over, somewhere."""

    #: Why it was ended, if somebody ended it: its watch, or who called ``cancel``.
    ending: Ending | None
    #: What ``multiprocessing.connection.wait`` can wait for until the worker ends; None where there is nothing.
    sentinel: int | None

    @property
    def pid(self) -> int | None:
        """The number of the worker's process; None where it is on another machine."""

    @property
    def process_start_s(self) -> float | None:
        """When that process started (seconds since boot), which tells it from a later one of this number."""

    @property
    def age_s(self) -> float:
        """Seconds since the worker's process started."""

    def is_alive(self) -> bool:
        """Whether the worker is still at it. Once it is not, ``collect`` says what came of it."""

    def progress(self) -> Progress | None:
        """Where the job says it is; None before it said anything."""

    def cancel(self, ending: Ending, grace_s: float = 1.0) -> None:
        """End the worker and every process below it, and return when they are gone.

        ``ending`` is what the run is called if there is no result and nobody ended it before.
        """

    def collect(self) -> dict[str, Any]:
        """The result document of a worker that is not alive: the one it left whole, or else one of how it ended."""


class Executor(Protocol):
    """A place where workers run."""

    def start(self) -> list[Device]:
        """Make the place ready and return its devices.

        Raises:
            ExecutorError: if workers cannot be started there.
        """

    def nodes(self) -> list[Node]:
        """The machines where workers can run now, and those where they should but cannot."""

    def lock(self, device: str, node: str | None = None) -> Lock | None:
        """Keep a device (of a node, where there are several) for a run, or return None at once if it is in use."""

    def submit(self, work: Work, lock: Lock | None) -> Worker:
        """Start a worker. It gets its own copy of ``lock``.

        Raises:
            OSError: if the worker cannot be started.
        """

    def adopt(self, work: Work) -> Worker | None:
        """Take over the worker, alive or gone, of a run whose supervisor died; None if none ever said who it is."""
