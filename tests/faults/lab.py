"""A lab to be broken: its own home, real supervisors and dashboards, and the traps that end them.

Starts, arms, ends and looks. Decides neither what is broken when (``campaign``) nor what a loss is (``losses``).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from app.supervision import is_locked
from db import queue
from db.session import Database, open_database
from engine.executors.processes import process_start_s
from tests.faults.trap import roles

ROOT = Path(__file__).resolve().parents[2]
_TRAP = Path(__file__).with_name("trap")
#: Migrations in one process take turns, whichever database they are for: Alembic keeps what it works on in globals.
ALEMBIC = threading.Lock()


class Victim(NamedTuple):
    """A process that a fault ended. ``run`` is the uid of the run that a worker had begun to measure."""

    pid: int
    role: str
    run: str


@dataclass(frozen=True)
class Fired:
    """A fault that took place: its number, the line of the project where it did, and whom it ended."""

    number: int
    where: str
    victims: tuple[Victim, ...]


class Dashboard:
    """A process that launches sweeps with the dashboard's own code, asked through its standard input."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def is_alive(self) -> bool:
        """Whether it was not killed yet."""
        return self.process.poll() is None

    def ask(self, **question: Any) -> Any:
        """What it answers; None when it is killed before it does."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            return json.loads(stdout.readline() or b"null")
        except (OSError, ValueError):
            return None


class Lab:
    """A home folder with everything that runs on it. ``url`` names another database than the home's own."""

    def __init__(self, home: Path, url: str | None = None) -> None:
        self.home = home
        self.url = url or f"sqlite:///{home / 'peft-lab.sqlite3'}"
        self._traps = home / "traps"
        # Device locks of its own, in a folder with a short name: it is part of sockets' addresses.
        temporary = home / "t"
        for folder in (self._traps, temporary):
            folder.mkdir(parents=True)
        self._environment = {
            **os.environ,
            "PEFT_LAB_HOME": str(home),
            "PEFT_LAB_DATABASE_URL": self.url,
            roles.VARIABLE: str(self._traps),
            "PYTHONPATH": os.pathsep.join([str(_TRAP), str(ROOT)]),
            "TMPDIR": str(temporary),
            "OMP_NUM_THREADS": "1",
        }
        self._started: list[subprocess.Popen[bytes]] = []
        self._supervisors: dict[Path, subprocess.Popen[bytes]] = {}
        self._fired = 0

    @functools.cached_property
    def database(self) -> Database:
        """The lab's database, which is migrated when this is first asked for."""
        with ALEMBIC:
            return open_database(self.url)

    # --- processes --------------------------------------------------------------------------------------------------

    def start(self, *arguments: str, home: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a Python process of this lab, by default on its home; what it says goes to ``processes.log`` there."""
        environment = {**self._environment, "PEFT_LAB_HOME": str(home or self.home)}
        with (self.home / "processes.log").open("ab") as log:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": log, **options}
            command = [sys.executable, *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, **pipes)
        self._started.append(process)
        return process

    def ensure_supervisor(self, home: Path | None = None) -> None:
        """Start a supervisor for a home, by default the lab's, if none serves it."""
        home = home or self.home
        starting = self._supervisors.get(home)
        if (starting is None or starting.poll() is not None) and not is_locked(home / "supervisor.lock"):
            self._supervisors[home] = self.start("-m", "engine", "supervise", home=home)

    def dashboard(self) -> Dashboard:
        """Start a dashboard without a browser."""
        return Dashboard(self.start("-m", "tests.faults.dashboard", stdin=subprocess.PIPE, stdout=subprocess.PIPE))

    def processes(self, *wanted: str) -> dict[int, str]:
        """The living processes of this lab with their roles, by pid; of some roles only, if any are named."""
        for process in self._started:
            process.poll()  # or those that were killed would seem to live
        found = roles.processes(str(self._traps)).items()
        return {pid: role for pid, role in found if (not wanted or role in wanted) and process_start_s(pid) is not None}

    def stop(self) -> None:
        """Stop the supervisors and dashboards as a person does, and wait until they and their fork servers are gone."""
        for pid in self.processes(roles.SUPERVISOR, roles.DASHBOARD):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not self.processes(), 20)

    def close(self) -> None:
        """End whatever is left, and close the database."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()
        if "database" in vars(self):
            self.database.close()

    # --- faults -----------------------------------------------------------------------------------------------------

    def arm(self, number: int, places: Sequence[str], line: int, victims: Sequence[str]) -> None:
        """Have the process that comes to the ``line``-th line of these places end the victims there."""
        document = {"number": number, "places": list(places), "line": line, "victims": list(victims)}
        temporary = self._traps / "armed.tmp"
        temporary.write_text(json.dumps(document))
        temporary.replace(self._traps / "armed.json")

    def disarm(self) -> None:
        """Take the trap away, if nobody stepped on it."""
        (self._traps / "armed.json").unlink(missing_ok=True)

    def kill(self, number: int, victims: Mapping[int, str]) -> Fired:
        """End these processes now, which are named as ``processes`` does."""
        ended = tuple(Victim(pid, role, roles.run_of(pid)) for pid, role in victims.items())
        for victim in ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
        return Fired(number, "any time", ended)

    def fired(self) -> list[Fired]:
        """The traps that went off since this was last asked."""
        path = self._traps / "fired.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        new, self._fired = lines[self._fired :], len(lines)
        return [_fired(json.loads(line)) for line in new]

    # --- runs -------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        with self.database.reading() as session:
            return queue.counts_by_state(session)

    def unfinished(self) -> int:
        """How many runs wait or run."""
        counts = self.counts()
        return counts.get("queued", 0) + counts.get("running", 0)


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Whether the condition came to hold in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _fired(document: Mapping[str, Any]) -> Fired:
    return Fired(document["number"], document["where"], tuple(Victim(**victim) for victim in document["victims"]))
