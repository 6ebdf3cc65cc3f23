"""Medians, quartiles and the significance tests, against values worked by hand and against SciPy's."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from app.comparison import statistics
from app.comparison.statistics import Reading


def readings(*runs: list[float]) -> list[Reading]:
    """The repeats of each run, from run 1 on."""
    return [
        Reading(run_id, repeat, value) for run_id, values in enumerate(runs, 1) for repeat, value in enumerate(values)
    ]


def test_a_single_run_is_summed_up_over_its_repeats() -> None:
    found = statistics.summary(readings([4.0, 1.0, 3.0, 2.0]))
    assert found == statistics.Summary(2.5, 1.75, 3.25, 4, "repeats")


def test_several_runs_are_summed_up_over_their_medians() -> None:
    found = statistics.summary(readings([1.0, 2.0, 9.0], [4.0], [6.0]))
    assert found == statistics.Summary(4.0, 3.0, 5.0, 3, "runs")


def test_one_value_has_no_quartiles() -> None:
    assert statistics.summary(readings([2.0])) == statistics.Summary(2.0, None, None, 1, "repeats")
    assert statistics.summary([]) is None


def test_pairs_are_the_same_repeat_of_the_same_run() -> None:
    first = [Reading(1, 0, 1.0), Reading(1, 1, 2.0), Reading(2, 0, 3.0)]
    second = [Reading(1, 1, 20.0), Reading(2, 0, 30.0), Reading(3, 0, 40.0)]
    assert statistics.pairs(first, second) == [(2.0, 20.0), (3.0, 30.0)]


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        # Of the 252 ways to choose 5 of 10 ranks two are as extreme as complete separation.
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], 2 / 252),
        # 2 of 20: three against three is never below 0.05.
        ([1, 2, 3], [4, 5, 6], 2 / 20),
        ([1, 2, 3, 4], [5, 6, 7, 8], 2 / 70),
        # Ranks 1 3 against 2 4: 2 of 6 ways sum up to 4 or less, twice that.
        ([1, 3], [2, 4], 4 / 6),
        # All equal: every way is the same.
        ([7, 7, 7], [7, 7], 1.0),
        # Ties: ranks 1.5 1.5 against 3 4 5; one way of ten sums up to 3.
        ([1, 1], [2, 3, 4], 2 / 10),
    ],
)
def test_mann_whitney_by_hand(first: list[float], second: list[float], p: float) -> None:
    assert statistics.mann_whitney_p(first, second) == pytest.approx(p)
    assert statistics.mann_whitney_p(second, first) == pytest.approx(p)


def test_mann_whitney_is_scipys_without_ties() -> None:
    chance = random.Random(1)
    for first, second in [(2, 9), (5, 5), (8, 12), (30, 30)]:
        a = [chance.random() for _ in range(first)]
        b = [chance.random() + 0.2 for _ in range(second)]
        expected = stats.mannwhitneyu(a, b, method="exact").pvalue
        assert statistics.mann_whitney_p(a, b) == pytest.approx(expected)


def test_mann_whitney_is_scipys_full_enumeration_with_ties() -> None:
    chance = random.Random(2)
    for _ in range(12):
        a = [chance.randint(0, 6) for _ in range(chance.randint(2, 6))]
        b = [chance.randint(0, 6) for _ in range(chance.randint(2, 6))]
        expected = stats.mannwhitneyu(a, b, method=stats.PermutationMethod(n_resamples=10_000)).pvalue
        assert statistics.mann_whitney_p(a, b) == pytest.approx(expected)


def test_many_values_take_the_normal_approximation_with_ties_corrected() -> None:
    chance = random.Random(3)
    a = [chance.randint(1, 9) for _ in range(60)]
    b = [chance.randint(2, 9) for _ in range(50)]
    expected = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
    assert statistics.mann_whitney_p(a, b) == pytest.approx(expected)


def test_a_side_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        statistics.mann_whitney_p([], [1.0])


def test_signed_rank_by_hand() -> None:
    # All six of one sign: 2 of 64 ways.
    assert statistics.signed_rank_p([(1.0, 1.0 + step) for step in range(1, 7)]) == pytest.approx(2 / 64)
    # Five pairs can not be significant.
    assert statistics.signed_rank_p([(1.0, 1.0 + step) for step in range(1, 6)]) == pytest.approx(2 / 32)
    # Ranks 1 2 3 with signs + + -: sum 3 of 6 is the middle.
    assert statistics.signed_rank_p([(2.0, 1.0), (4.0, 1.0), (1.0, 8.0)]) == pytest.approx(1.0)


def test_signed_rank_is_scipys() -> None:
    chance = random.Random(4)
    for number in (6, 10, 30, 60):
        found = [(chance.random() + 1, chance.random() + 1.2) for _ in range(number)]
        expected = stats.wilcoxon([math.log(a / b) for a, b in found], method="exact").pvalue
        assert statistics.signed_rank_p(found) == pytest.approx(expected)


def test_many_pairs_take_the_normal_approximation() -> None:
    chance = random.Random(5)
    found = [(chance.randint(1, 9), chance.randint(2, 9)) for _ in range(150)]
    # Twice as much and half of it are a tie.
    logs = [round(math.log(a / b), 12) for a, b in found]
    expected = stats.wilcoxon(logs, correction=True, method="asymptotic").pvalue
    assert statistics.signed_rank_p(found) == pytest.approx(expected, rel=1e-6)


def test_pairs_without_any_difference_are_not_significant() -> None:
    assert statistics.signed_rank_p([(2.0, 2.0)] * 8) == 1.0


def test_pairs_with_zeros_are_compared_by_their_differences() -> None:
    assert statistics.signed_rank_p([(0.0, float(step)) for step in range(1, 7)]) == pytest.approx(2 / 64)


@pytest.mark.parametrize(
    ("first", "second", "can"),
    [
        (3, 3, False),
        (4, 4, True),
        (3, 4, False),
        (3, 5, True),
        (2, 7, False),
        (2, 8, True),
        (1, 39, False),
        (1, 40, True),
    ],
)
def test_few_values_can_never_be_significant(first: int, second: int, can: bool) -> None:
    assert statistics.can_decide(first, second) is can
    best = statistics.mann_whitney_p(range(first), range(100, 100 + second))
    # The best that could be, by the exact distribution (beyond 60 values it is approximate, but not here).
    assert (best < statistics.SIGNIFICANCE) is can


def test_it_says_how_many_are_needed() -> None:
    assert statistics.needed(1, 1) == 4
    assert statistics.needed(3, 3) == 4
    assert statistics.needed(1, 5) == 3
    assert statistics.needed(1, 10) == 2
