"""Thins out memory samples so that a chart stays small and keeps its peaks. Pure functions, no database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_SAMPLES_PER_SERIES = 600


class Sample(NamedTuple):
    """Memory at one moment, as ``engine.result.Sample`` has it."""

    source: str
    time_s: float
    phase: str
    category: str
    bytes: int


def downsample(samples: Sequence[Sample], limit: int = MAX_SAMPLES_PER_SERIES) -> list[Sample]:
    """At most ``limit`` (>= 4) samples of each (source, category), in their given order.

    Every category keeps its own maximum. The categories of a source are thinned to the same moments, because charts
    stack them; among these are the first, the last and the one at which their sum peaks.
    """
    by_source: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_source[sample.source].append(sample)
    kept: set[int] = set()
    for own in by_source.values():
        kept.update(id(sample) for sample in _thin(own, limit))
    return [sample for sample in samples if id(sample) in kept]


def _thin(samples: list[Sample], limit: int) -> Iterable[Sample]:
    """The samples of one source to keep."""
    by_category: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_category[sample.category].append(sample)
    if max(map(len, by_category.values())) <= limit:
        return samples
    peaks = {category: max(own, key=lambda sample: sample.bytes) for category, own in by_category.items()}
    # One place in each category stays free for that category's own peak.
    moments = _moments(samples, [peak.time_s for peak in peaks.values()], limit - 1)
    kept: list[Sample] = []
    for category, own in by_category.items():
        largest: dict[float, Sample] = {}
        for sample in own:
            before = largest.get(sample.time_s)
            if sample.time_s in moments and (before is None or sample.bytes > before.bytes):
                largest[sample.time_s] = sample
        largest[peaks[category].time_s] = peaks[category]
        kept.extend(largest.values())
    return kept


def _moments(samples: list[Sample], peak_times: list[float], limit: int) -> set[float]:
    """At most ``limit`` times to keep: the ends, the peaks, and the extremes of the sum in equal parts of the rest."""
    totals = _totals(samples)
    times = sorted(totals)
    moments = dict.fromkeys([times[0], times[-1], max(times, key=totals.__getitem__), *peak_times][:limit])
    parts = (limit - len(moments)) // 2
    for part in range(parts):
        within = times[part * len(times) // parts : (part + 1) * len(times) // parts]
        if within:
            moments[max(within, key=totals.__getitem__)] = None
            moments[min(within, key=totals.__getitem__)] = None
    return set(moments)


def _totals(samples: list[Sample]) -> dict[float, int]:
    """The sum over the categories at each time; a category without a sample there counts as it last was."""
    last: dict[str, int] = {}
    total = 0
    totals: dict[float, int] = {}
    for sample in sorted(samples, key=lambda sample: sample.time_s):
        total += sample.bytes - last.get(sample.category, 0)
        last[sample.category] = sample.bytes
        totals[sample.time_s] = total
    return totals
