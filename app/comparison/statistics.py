"""Medians, quartiles and the two significance tests that verdicts use. Numbers in, numbers out.

Which test fits which data is the rule of ``app.comparison.verdicts``. The significance tests are
written out here because SciPy's take up to 0.3 s for one pair of samples with ties, which repeats often have, and up to
3 s to import; their results are held to SciPy's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

SIGNIFICANCE = 0.05
# With more values the normal approximation is as good, and counting slow.
_MOST_EXACT = 60
# The continuity correction of sums of doubled ranks, which have steps of two.
_HALF_A_STEP = 1


class Reading(NamedTuple):
    """One measured value: of which run, and in which of its repeats (from 0)."""

    run_id: int
    repeat: int
    value: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A median with its quartiles, in stored units, and what it is over: ``n`` runs (by their medians), or repeats.

    A single value has no quartiles.
    """

    median: float
    lower_quartile: float | None
    upper_quartile: float | None
    n: int
    of: Literal["runs", "repeats"]


def summary(readings: Sequence[Reading]) -> Summary | None:
    """Over the repeats of a single run, over the medians of several runs; None where there is no value."""
    medians = run_medians(readings)
    if not medians:
        return None
    of: Literal["runs", "repeats"] = "repeats" if len(medians) == 1 else "runs"
    values = [reading.value for reading in readings] if of == "repeats" else medians
    values.sort()
    lower, middle, upper = (_quantile(values, share) for share in (0.25, 0.5, 0.75))
    if len(values) == 1:
        return Summary(middle, None, None, 1, of)
    return Summary(middle, lower, upper, len(values), of)


def run_medians(readings: Sequence[Reading]) -> list[float]:
    """The median of each run, in the order of the runs' first readings."""
    by_run: dict[int, list[float]] = {}
    for reading in readings:
        by_run.setdefault(reading.run_id, []).append(reading.value)
    return [statistics.median(values) for values in by_run.values()]


def _quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values, interpolated between neighbours as NumPy and pandas do; theirs take 50 µs for five numbers."""
    place = share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def pairs(first: Sequence[Reading], second: Sequence[Reading]) -> list[tuple[float, float]]:
    """The values that two variants have of the same repeat of the same run."""
    others = {(reading.run_id, reading.repeat): reading.value for reading in second}
    return [
        (reading.value, others[reading.run_id, reading.repeat])
        for reading in first
        if (reading.run_id, reading.repeat) in others
    ]


def mann_whitney_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of the Mann-Whitney U test; exact up to 60 values, also with ties.

    Raises:
        ValueError: when a side is empty.
    """
    if not first or not second:
        raise ValueError("both sides need at least one value")
    ranks = _doubled_ranks([*first, *second])
    # Only ranks matter, and complete separation is common, so equal patterns are computed once.
    return _mann_whitney_p(tuple(sorted(ranks)), len(first), sum(ranks[: len(first)]))


@lru_cache(maxsize=4096)
def _mann_whitney_p(ranks: tuple[int, ...], chosen: int, rank_sum: int) -> float:
    """Twice the smaller tail: how often ``chosen`` of the ranks, drawn at random, sum up to this or less, or more."""
    number, total = len(ranks), sum(ranks)
    if number > _MOST_EXACT:
        mean = total / number
        variance = sum((rank - mean) ** 2 for rank in ranks) * chosen * (number - chosen) / (number * (number - 1))
        distance = max(abs(rank_sum - mean * chosen) - _HALF_A_STEP, 0.0)
        return math.erfc(distance / math.sqrt(2 * variance)) if variance else 1.0
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(chosen))]
    for rank in ranks:
        for size in range(chosen, 0, -1):
            for reached, count in ways[size - 1].items():
                ways[size][reached + rank] = ways[size].get(reached + rank, 0) + count
    below = sum(count for reached, count in ways[chosen].items() if reached <= rank_sum)
    above = sum(count for reached, count in ways[chosen].items() if reached >= rank_sum)
    return min(2 * min(below, above) / math.comb(number, chosen), 1.0)


def signed_rank_p(pairs: Sequence[tuple[float, float]]) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test on the logarithms of the ratios of pairs; exact up to 60.

    Ratios, as a disturbance slows a long time down by more seconds than a short one. Where a value is not positive
    the differences are taken. Pairs without a difference are left out.
    """
    if all(first > 0 and second > 0 for first, second in pairs):
        # Rounded, as three times as much and a third of it are a tie, and floating point makes them two numbers.
        differences = [round(math.log(first / second), 12) for first, second in pairs]
    else:
        differences = [first - second for first, second in pairs]
    differences = [difference for difference in differences if difference]
    ranks = _doubled_ranks([abs(difference) for difference in differences])
    positive = sum(rank for rank, difference in zip(ranks, differences, strict=True) if difference > 0)
    return _signed_rank_p(tuple(sorted(ranks)), positive)


@lru_cache(maxsize=4096)
def _signed_rank_p(ranks: tuple[int, ...], positive: int) -> float:
    """Twice the smaller tail: how often the ranks that random signs make positive sum up to this or less, or more."""
    if len(ranks) > _MOST_EXACT:
        deviation = math.sqrt(sum(rank**2 for rank in ranks)) / 2
        distance = max(abs(positive - sum(ranks) / 2) - _HALF_A_STEP, 0.0)
        return math.erfc(distance / deviation / math.sqrt(2))
    ways = {0: 1}
    for rank in ranks:
        more = dict(ways)
        for reached, count in ways.items():
            more[reached + rank] = more.get(reached + rank, 0) + count
        ways = more
    below = sum(count for reached, count in ways.items() if reached <= positive)
    above = sum(count for reached, count in ways.items() if reached >= positive)
    return min(2 * min(below, above) / float(2 ** len(ranks)), 1.0)


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each value from 1, which is whole also where equal values share their mean rank."""
    ordered = sorted(values)
    first: dict[float, int] = {}
    last: dict[float, int] = {}
    for place, value in enumerate(ordered, start=1):
        first.setdefault(value, place)
        last[value] = place
    return [first[value] + last[value] for value in values]


def can_decide(first: int, second: int) -> bool:
    """Whether the Mann-Whitney test could be significant at all with this many values on either side."""
    return first > 0 and second > 0 and 2 / math.comb(first + second, first) < SIGNIFICANCE


def needed(first: int, second: int) -> int:
    """How many values each side needs before the Mann-Whitney test can be significant: 4 where both have few."""
    wanted = 1
    while not can_decide(max(first, wanted), max(second, wanted)):
        wanted += 1
    return wanted
