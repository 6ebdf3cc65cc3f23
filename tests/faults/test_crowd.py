"""Many at once on one database: nothing is lost, doubled or left."""

from __future__ import annotations

from tests.faults.crowd import Crowd
from tests.faults.lab import Lab

SEED = 8


def test_two_supervisors_and_four_dashboards_lose_nothing_in_a_storm_of_cancels(lab: Lab) -> None:
    report = Crowd(lab, SEED).run(1000, kept=3, faults=2)
    assert report.losses == []
    assert report.runs >= 900
    assert report.fired
