"""A seeded plan of faults, and a lab that lives through it.

A fault ends one or two of worker, supervisor, fork server and dashboard in a line of a named moment, or at any time.
Runs are launched meanwhile, and what was ended is started again, as whoever uses the dashboard does.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.lab import Dashboard, Fired, Lab, Victim, wait_until
from tests.faults.losses import losses
from tests.faults.trap import roles

_FIRES_WITHIN_S = 45.0
_ENDS_WITHIN_S = 150.0
_SWEEP = 4
_QUEUED_AT_LEAST = 2


class Moment(NamedTuple):
    """Where in the code a fault strikes: in which functions, and at the latest in which line that is run there."""

    name: str
    places: tuple[str, ...]
    lines: int


LAUNCH = Moment("launch", ("app/widgets/launching.py:launch", "db/queue.py:enqueue", "db/actions.py:record"), 60)
CLAIM = Moment("claim", ("engine/supervisor.py:_claim_one", "engine/supervisor.py:_start", "db/queue.py:claim"), 60)
START = Moment("start of a worker", ("engine/executors/local.py:submit", "db/queue.py:started"), 25)
BEGINNING = Moment("beginning of a worker", ("engine/worker.py:main", "engine/worker.py:_send_output_to"), 25)
MEASUREMENT = Moment("measurement", ("engine/jobs/",), 250)
SAMPLING = Moment(
    "sampling",
    (
        *(f"engine/executors/watch.py:{function}" for function in ("_run", "_look_at", "_keep_reserve")),
        "engine/executors/local.py:sample",
    ),
    90,
)
WRITING = Moment("writing the result", ("engine/worker.py:write_atomically", "engine/worker.py:_run"), 45)
STORING = Moment(
    "storing the result",
    ("engine/supervisor.py:_collect", "engine/supervisor.py:_finish", "db/queue.py:finish", "db/results.py:"),
    60,
)
RECOVERY = Moment("recovery", ("engine/supervisor.py:_recover", "engine/executors/local.py:adopt"), 15)
ANY_TIME = Moment("any time", (), 0)

#: Each moment with the role that comes to it. Others can be ended with it or instead of it.
MOMENTS = (
    (LAUNCH, roles.DASHBOARD),
    (CLAIM, roles.SUPERVISOR),
    (START, roles.SUPERVISOR),
    (BEGINNING, roles.WORKER),
    (MEASUREMENT, roles.WORKER),
    (SAMPLING, roles.SUPERVISOR),
    (WRITING, roles.WORKER),
    (STORING, roles.SUPERVISOR),
    (RECOVERY, roles.SUPERVISOR),
)
ROLES = (roles.WORKER, roles.SUPERVISOR, roles.FORK_SERVER, roles.DASHBOARD)
#: Alone twice as often as in each pair.
VICTIMS = (*((role,) for role in ROLES * 2), *itertools.combinations(ROLES, 2))
_SMALL = {"model": "tiny-test", "repeats": 3, "warmup": 0}
SPECS = (
    {"kind": "init", **_SMALL},
    {"kind": "train", **_SMALL, "train": {"context_length": 16}},
    {"kind": "merge", **_SMALL},
    {"kind": "inspect", "model": "tiny-test"},
)


class Fault(NamedTuple):
    """One planned fault."""

    number: int
    moment: Moment
    line: int
    victims: tuple[str, ...]


def plan(count: int, seed: int) -> list[Fault]:
    """So many faults: every moment with every set of victims, in an order and at lines that the seed decides."""
    chance = random.Random(seed)
    moments = [moment for moment, _role in MOMENTS] + [ANY_TIME] * 3
    pairs = [(moment, victims) for moment in moments for victims in VICTIMS]
    chance.shuffle(pairs)
    return [
        Fault(number, moment, chance.randint(1, max(moment.lines, 1)), victims)
        for number, (moment, victims) in enumerate(itertools.islice(itertools.cycle(pairs), count))
    ]


@dataclass
class Report:
    """What a campaign did and what it cost."""

    planned: int = 0
    runs: int = 0
    fired: list[tuple[Fault, Fired]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)


class Campaign:
    """Faults in one lab, one after the other."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._lab = lab
        self._chance = random.Random(seed)
        self._dashboard: Dashboard | None = None
        self._launched: dict[str, int] = {}
        self._acknowledged: list[int] = []
        self._ended: list[Victim] = []
        self.report = Report()

    def run(self, faults: list[Fault]) -> Report:
        """Inject the faults, let everything come to its end, and look for losses."""
        for fault in faults:
            self.report.planned += 1
            for fired in self._inject(fault):
                self._ended += fired.victims
                if fired.victims:
                    self.report.fired.append((fault, fired))
        self._lab.disarm()
        if not wait_until(self._has_ended, _ENDS_WITHIN_S):
            self.report.losses.append(f"{self._lab.unfinished()} runs have not ended after {_ENDS_WITHIN_S:.0f} s")
        self._lab.stop()
        self.report.runs = sum(self._lab.counts().values())
        self.report.losses += losses(self._lab, self._launched, self._acknowledged, self._ended)
        return self.report

    def _inject(self, fault: Fault) -> Iterator[Fired]:
        self._look_after()
        if fault.moment is RECOVERY:
            # There is something to recover when a supervisor was killed.
            wait_until(lambda: self._look_after() or self._lab.processes(roles.WORKER), _FIRES_WITHIN_S)
            yield self._lab.kill(fault.number, self._lab.processes(roles.SUPERVISOR))
        elif fault.moment is ANY_TIME:
            wait_until(lambda: self._look_after() or self._has(fault.victims), _FIRES_WITHIN_S)
            time.sleep(self._chance.uniform(0.0, 0.4))
            yield self._lab.kill(fault.number, self._lab.processes(*fault.victims))
            return
        self._lab.arm(fault.number, fault.moment.places, fault.line, fault.victims)
        deadline_s = time.monotonic() + _FIRES_WITHIN_S
        while time.monotonic() < deadline_s:
            if fired := self._lab.fired():
                yield from fired
                return
            self._look_after()
            if fault.moment is LAUNCH:
                self._launch()
            time.sleep(0.1)
        self._lab.disarm()
        yield from self._lab.fired()

    def _has(self, victims: tuple[str, ...]) -> bool:
        return set(victims) <= set(self._lab.processes(*victims).values())

    def _look_after(self) -> None:
        """Start again what is gone, and launch what there is too little of."""
        self._lab.ensure_supervisor()
        if self._dashboard is None or not self._dashboard.is_alive():
            self._dashboard = self._lab.dashboard()
        if self._lab.counts().get("queued", 0) < _QUEUED_AT_LEAST:
            self._launch()

    def _launch(self) -> None:
        assert self._dashboard is not None
        name = f"sweep {len(self._launched)}"
        specs = [SPECS[0], *(self._chance.choice(SPECS) for _ in range(_SWEEP - 1))]
        self._launched[name] = len(specs)
        self._acknowledged += self._dashboard.ask(specs=specs, sweep=name) or ()

    def _has_ended(self) -> bool:
        if self._lab.unfinished():
            self._lab.ensure_supervisor()
            return False
        return True
