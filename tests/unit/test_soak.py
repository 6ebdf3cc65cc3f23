"""What the soak calls flat: a trend decides, not a single look."""

from __future__ import annotations

import pytest

from tests.benchmarks.soak import MIB, Look, Stored, bytes_per_run, growth


def looks(memory_mib: list[float], handles: list[int]) -> list[Look]:
    """One look every five seconds."""
    pairs = enumerate(zip(memory_mib, handles, strict=True))
    return [Look(number * 5.0, int(memory * MIB), open_now, 8) for number, (memory, open_now) in pairs]


def test_a_process_that_goes_up_and_down_is_flat() -> None:
    found = growth(looks([300.0, 304.0, 299.0, 303.0] * 20, [20, 26, 22, 31] * 20))
    assert found["memory"].is_flat
    assert found["handles"].is_flat


def test_one_large_look_makes_no_trend() -> None:
    found = growth(looks([300.0] * 79 + [900.0], [20] * 79 + [500]))
    assert found["memory"].by == pytest.approx(0)
    assert found["handles"].by == pytest.approx(0)


def test_memory_that_grows_by_more_than_a_twentieth_is_found_under_its_noise() -> None:
    found = growth(looks([300.0 + step * 0.3 + step % 5 for step in range(80)], [20] * 80))
    assert not found["memory"].is_flat
    assert found["memory"].by == pytest.approx(79 * 0.3 * MIB, rel=0.1)
    assert found["handles"].is_flat


def test_handles_that_are_never_closed_are_found() -> None:
    assert not growth(looks([300.0] * 80, [20 + step // 20 for step in range(80)]))["handles"].is_flat


def test_what_a_run_takes_is_shared_among_the_runs_between() -> None:
    assert bytes_per_run(Stored(0, 1000, 0, 10), Stored(60, 9000, 0, 50)) == 200
