"""Thinning out memory samples."""

from __future__ import annotations

from collections import Counter

import pytest

from db.downsampling import MAX_SAMPLES_PER_SERIES, Sample, downsample


def series(sizes: list[int], category: str = "weights", source: str = "tensors") -> list[Sample]:
    return [Sample(source, index / 100, "attach", category, size) for index, size in enumerate(sizes)]


def test_a_short_series_is_kept_whole() -> None:
    samples = series([1, 2, 3] * 200)
    assert downsample(samples) == samples
    assert downsample([]) == []


@pytest.mark.parametrize("peak_at", [0, 1, 4999, 9998, 9999])
def test_a_long_series_keeps_its_peak_and_its_ends_wherever_the_peak_is(peak_at: int) -> None:
    sizes = [index % 50 for index in range(10_000)]
    sizes[peak_at] = 1000
    samples = series(sizes)
    thinned = downsample(samples)
    assert MAX_SAMPLES_PER_SERIES // 2 < len(thinned) <= MAX_SAMPLES_PER_SERIES
    assert max(thinned, key=lambda sample: sample.bytes) == samples[peak_at]
    assert thinned[0] == samples[0]
    assert thinned[-1] == samples[-1]


def test_order_and_values_stay_as_they_were() -> None:
    samples = series([(index * 7919) % 1000 for index in range(3000)])
    thinned = downsample(samples)
    assert set(thinned) <= set(samples)
    assert [sample.time_s for sample in thinned] == sorted(sample.time_s for sample in thinned)


def test_every_source_and_category_has_its_own_limit_and_its_own_peak() -> None:
    samples = (
        series([*range(2000)], "weights")
        + series([*range(2000, 0, -1)], "gradients")
        + series([5] * 900 + [6] + [5] * 900, "anonymous", "process")
    )
    thinned = downsample(samples, 100)
    counts = Counter((sample.source, sample.category) for sample in thinned)
    assert set(counts) == {("tensors", "weights"), ("tensors", "gradients"), ("process", "anonymous")}
    assert max(counts.values()) <= 100
    peaks = {category: max(s.bytes for s in thinned if s.category == category) for _, category in counts}
    assert peaks == {"weights": 1999, "gradients": 2000, "anonymous": 6}


def test_stacked_categories_keep_the_moment_at_which_their_sum_peaks() -> None:
    rising = [index % 90 for index in range(5000)]
    falling = [89 - index % 90 for index in range(5000)]
    rising[3333], falling[3333] = 80, 80
    thinned = downsample(series(rising, "a") + series(falling, "b"), 50)
    sums = Counter[float]()
    for sample in thinned:
        sums[sample.time_s] += sample.bytes
    assert max(sums.values()) == 160
    assert {sample.time_s for sample in thinned if sample.category == "a"} == {
        sample.time_s for sample in thinned if sample.category == "b"
    }


def test_a_category_that_moves_rarely_counts_as_it_last_was() -> None:
    weights = [Sample("tensors", 0.0, "load", "weights", 1000)]
    work = series([*[10] * 800, 500, *[10] * 800], "temporary")
    thinned = downsample(weights + work, 20)
    assert weights[0] in thinned
    assert max(sample.bytes for sample in thinned if sample.category == "temporary") == 500


def test_many_categories_and_equal_times_stay_within_the_limit() -> None:
    samples = [Sample("tensors", 1.0, "p", f"c{index % 40}", index) for index in range(4000)]
    thinned = downsample(samples, 10)
    assert max(Counter(sample.category for sample in thinned).values()) <= 10
    assert {sample.bytes for sample in thinned} >= set(range(3960, 4000))
