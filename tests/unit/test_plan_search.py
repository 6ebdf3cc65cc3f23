"""The search for the largest number that fits: right for whatever grows, and with few looks."""

from __future__ import annotations

import dataclasses
import random

import pytest

from engine.catalog.fitting import Candidate, ranked
from engine.planning.search import largest

LIMIT = 1000.0


@dataclasses.dataclass(frozen=True)
class Growth:
    """A need as it is seen: a floor, then a line or a parabola, in whole blocks."""

    floor: float
    late: float
    slope: float
    square: float

    def __call__(self, number: int) -> float:
        steep = self.late + self.slope * number + self.square * number * number
        return float(round(max(self.floor + 0.4 * self.slope * number, steep)))


def growths() -> list[Growth]:
    chance = random.Random(7)
    return [
        Growth(
            chance.uniform(0, 1200),
            chance.uniform(0, 300),
            chance.uniform(0.3, 90),
            chance.choice([0.0, chance.uniform(0, 0.05)]),
        )
        for _ in range(300)
    ]


@pytest.mark.parametrize("highest", [1, 7, 512])
def test_the_answer_fits_and_the_next_number_does_not(highest: int) -> None:
    for need in growths():
        answer = largest(need, LIMIT, highest)
        assert answer == 0 or need(answer) <= LIMIT
        assert answer == highest or need(answer + 1) > LIMIT


def test_few_looks_are_enough() -> None:
    looks = 0

    def looked(number: int) -> float:
        nonlocal looks
        looks += 1
        return need(number)

    for need in growths():
        largest(looked, LIMIT, 512, {4: need(4)})
    assert looks / len(growths()) < 4


def test_hints_that_are_wrong_change_no_answer() -> None:
    for need in growths():
        assert largest(need, LIMIT, 512, hints={3: 1.0, 100: 2.0, 400: 3.0}) == largest(need, LIMIT, 512)


def test_a_need_that_jumps_is_found_by_halving() -> None:
    assert largest(lambda number: 1e6 if number > 311 else 1.0, LIMIT, 4096) == 311


def test_what_fits_comes_first_then_the_shorter_step() -> None:
    slow, fast = Candidate("fits", 10, 2.0), Candidate("fits", 90, 1.0)
    tight, too_large = Candidate("tight", 95, 0.1), Candidate("will not fit", 101, 0.01)
    assert ranked([Candidate(None, 0), too_large, slow, tight, fast]) == [4, 2, 3, 1, 0]


def test_where_a_time_is_missing_the_smaller_need_comes_first() -> None:
    assert ranked([Candidate("fits", 90, 1.0), Candidate("fits", 10, None)]) == [1, 0]
