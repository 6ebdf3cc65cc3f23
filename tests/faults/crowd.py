"""Many at once on one database: two supervisors, four dashboards, thousands of queued runs, storms of cancels.

The supervisors have homes of their own, which only a database address in common allows. Each step has its faults: a
dashboard is killed while it launches, supervisors, workers and fork servers while runs are cancelled.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.faults.campaign import ANY_TIME, LAUNCH, ROLES, SPECS, Fault, Report
from tests.faults.lab import Dashboard, Lab, wait_until
from tests.faults.losses import losses

DASHBOARDS = 4
_SWEEP = 50
_ENDS_WITHIN_S = 300.0


class Crowd:
    """The processes of one such lab and what they were asked for."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self._lab = lab
        self._chance = random.Random(seed)
        self._dashboards: list[Dashboard] = []
        self._homes = (lab.home, lab.home / "second")
        self._homes[1].mkdir()
        self._launched: dict[str, int] = {}
        self._acknowledged: list[int] = []
        self.report = Report()

    def run(self, count: int, kept: int, faults: int) -> Report:
        """Queue so many runs, cancel all but the ``kept`` in a storm with these faults, and have the rest measured."""
        self._dashboards = [self._lab.dashboard() for _ in range(DASHBOARDS)]
        self._launch_all(count)
        stays = set(self._chance.sample(self._acknowledged, kept))
        goes = [run_id for run_id in self._acknowledged if run_id not in stays]
        self._cancel_all(goes, faults)
        if not wait_until(self._has_ended, _ENDS_WITHIN_S):
            self.report.losses.append(f"{self._lab.unfinished()} runs have not ended after {_ENDS_WITHIN_S:.0f} s")
        self._lab.stop()
        self.report.runs = sum(self._lab.counts().values())
        ended = [victim for _fault, fired in self.report.fired for victim in fired.victims]
        self.report.losses += losses(self._lab, self._launched, self._acknowledged, ended)
        return self.report

    def _launch_all(self, count: int) -> None:
        """Launch from all dashboards at once: first the very same sweep, then others; one is killed while it does."""
        fault = Fault(0, LAUNCH, self._chance.randint(1, LAUNCH.lines), ("self",))
        sweeps = [_sweep(0)] * DASHBOARDS + [_sweep(number) for number in range(1, count // _SWEEP + 1 - DASHBOARDS)]
        self._launched = {name: len(specs) for name, specs in sweeps}
        self._look_after()
        self._with_all_dashboards(sweeps[:DASHBOARDS], self._launch)
        self._lab.arm(fault.number, fault.moment.places, fault.line, fault.victims)
        self._with_all_dashboards(sweeps[DASHBOARDS:], self._launch)
        self._lab.disarm()
        self._note(fault, self._lab.fired())

    def _launch(self, place: int, sweep: tuple[str, list[dict[str, Any]]]) -> None:
        name, specs = sweep
        answer = self._dashboards[place].ask(specs=specs, sweep=name)
        if answer is None:
            self._dashboards[place] = self._lab.dashboard()
        self._acknowledged += answer or ()

    def _cancel_all(self, goes: list[int], faults: int) -> None:
        """Cancel the same runs from all dashboards at once, each in an order of its own, while others are killed."""
        orders = [self._chance.sample(goes, len(goes)) for _ in range(DASHBOARDS)]
        parts = [order[start : start + _SWEEP] for start in range(0, len(goes), _SWEEP) for order in orders]
        storm = threading.Thread(target=self._with_all_dashboards, args=(parts, self._cancel))
        storm.start()
        for number in range(1, faults + 1):
            self._kill_one(number, self._chance.choice(ROLES[:3]))
        storm.join()

    def _kill_one(self, number: int, role: str) -> None:
        """End one process of a role, in the middle of whatever it does, once there is one."""
        wait_until(lambda: self._look_after() or self._lab.processes(role), 30)
        time.sleep(self._chance.uniform(0.0, 0.5))
        found = sorted(self._lab.processes(role).items())
        one = dict(self._chance.sample(found, min(len(found), 1)))
        self._note(Fault(number, ANY_TIME, 1, (role,)), [self._lab.kill(number, one)])

    def _cancel(self, place: int, part: list[int]) -> None:
        if self._dashboards[place].ask(cancel=part) is None:
            self.report.losses.append(f"a dashboard did not answer when it was asked to cancel {len(part)} runs")

    def _with_all_dashboards(self, things: list[Any], use: Callable[[int, Any], None]) -> None:
        """Share the things out among the dashboards, which are asked at the same time and each for one at a time."""

        def use_own(place: int) -> None:
            for thing in things[place::DASHBOARDS]:
                use(place, thing)

        with ThreadPoolExecutor(DASHBOARDS) as pool:
            list(pool.map(use_own, range(DASHBOARDS)))

    def _note(self, fault: Fault, fired: list[Any]) -> None:
        self.report.planned += 1
        self.report.fired += [(fault, one) for one in fired if one.victims]

    def _look_after(self) -> None:
        for home in self._homes:
            self._lab.ensure_supervisor(home)

    def _has_ended(self) -> bool:
        self._look_after()
        return not self._lab.unfinished()


def _sweep(number: int) -> tuple[str, list[dict[str, Any]]]:
    """A sweep's name and its runs, which differ in their seed."""
    return f"sweep {number}", [{**SPECS[0], "seed": number * _SWEEP + place} for place in range(_SWEEP)]
