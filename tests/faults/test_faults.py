"""Whoever is killed, and whenever: no run is lost, doubled, half or unfinished, and no process is left.

A seeded part of what ``make faults`` does in full: real processes, ended by SIGKILL in lines of the code that runs.
"""

from __future__ import annotations

from pathlib import Path

from tests.faults import migrating
from tests.faults.campaign import Campaign, plan
from tests.faults.lab import Lab

SEED = 8


def test_nothing_is_lost_when_workers_supervisors_fork_servers_and_dashboards_are_killed(lab: Lab) -> None:
    report = Campaign(lab, SEED).run(plan(7, SEED))
    assert report.losses == []
    assert len(report.fired) >= 4
    assert len({victim.role for _fault, fired in report.fired for victim in fired.victims}) >= 2


def test_nothing_is_lost_when_migrations_are_killed(tmp_path: Path) -> None:
    report = migrating.run(tmp_path / "migrations", 4, SEED)
    assert report.losses == []
    assert len(report.fired) >= 3
