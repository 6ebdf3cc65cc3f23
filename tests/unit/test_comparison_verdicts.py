"""Verdicts: what counts as a difference, in which words, and what it takes."""

from __future__ import annotations

import pytest

from app.comparison import verdicts
from app.comparison.statistics import Reading
from app.comparison.verdicts import Verdict


def in_one_run(values: list[float], run_id: int = 1) -> list[Reading]:
    """Repeats of one variant inside a run."""
    return [Reading(run_id, repeat, value) for repeat, value in enumerate(values)]


def replicas(values: list[float], first_id: int) -> list[Reading]:
    """Runs with one value each."""
    return [Reading(first_id + place, 0, value) for place, value in enumerate(values)]


def decide(metric: str, unit: str, ours: list[Reading], theirs: list[Reading]) -> Verdict:
    found = verdicts.decide(metric, unit, ours, theirs)
    assert found is not None
    return found


def test_five_repeats_in_turns_inside_a_run_decide() -> None:
    found = decide("step_time_s", "s", in_one_run([88, 87, 89, 86, 90]), in_one_run([100, 99, 101, 98, 102]))
    assert (found.word, found.tone) == ("faster", "good")
    assert found.change == pytest.approx(-0.12)
    assert found.evidence == "n = 5 repeats, p = 0.008"


def test_three_repeats_do_not_and_it_says_how_many_do() -> None:
    found = decide("step_time_s", "s", in_one_run([1, 2, 3]), in_one_run([11, 12, 13]))
    assert (found.word, found.tone, found.p) == ("not enough data", "open", None)
    assert found.evidence == "3 repeats, needs 4"


def test_pairs_see_through_a_drifting_machine() -> None:
    drift = [100.0, 120.0, 140.0, 160.0, 180.0, 200.0]
    found = decide("step_time_s", "s", in_one_run([value * 0.95 for value in drift]), in_one_run(drift))
    assert found.word == "faster"
    assert found.evidence == "n = 6 repeats, p = 0.031"


def test_a_baseline_that_was_slower_in_another_run_makes_no_difference_beside_it() -> None:
    here = [12.00, 12.01, 12.02, 12.03, 12.04]
    ours = in_one_run([value * 1.004 for value in here], run_id=2)
    theirs = [*in_one_run([10.0] * 5, run_id=1), *in_one_run(here, run_id=2)]
    found = decide("decode_tokens_per_s", "tokens/s", ours, theirs)
    assert found.p is not None
    assert found.p < 0.05
    assert found.change == pytest.approx(0.096, abs=0.001)
    assert found.word == "no difference"


def test_repeats_of_different_runs_are_no_replicas() -> None:
    ours, theirs = in_one_run([1.0] * 9, run_id=1), in_one_run([2.0] * 9, run_id=2)
    found = decide("step_time_s", "s", ours, theirs)
    assert found.word == "not enough data"
    assert found.evidence == "1 run each, needs 4 each"


def test_three_replicas_against_three_can_never_decide() -> None:
    found = decide("init_time_s", "s", replicas([1, 1.1, 1.2], 1), replicas([9, 9.1, 9.2], 11))
    assert (found.word, found.evidence) == ("not enough data", "3 runs each, needs 4 each")


def test_four_replicas_against_four_can() -> None:
    found = decide("init_time_s", "s", replicas([9, 9.1, 9.2, 9.3], 1), replicas([1, 1.1, 1.2, 1.3], 11))
    assert (found.word, found.tone) == ("slower", "bad")
    assert found.p == pytest.approx(2 / 70)
    assert found.evidence == "n = 4 runs each, p = 0.029"


def test_a_run_counts_once_however_many_repeats_it_has() -> None:
    ours = [reading for run in range(4) for reading in in_one_run([1.0, 1.0 + run / 100, 50.0], run)]
    theirs = [reading for run in range(4) for reading in in_one_run([2.0, 2.0 + run / 100, 2.1], 10 + run)]
    found = decide("init_time_s", "s", ours, theirs)
    assert found.evidence == "n = 4 runs each, p = 0.029"
    assert found.word == "faster"


def test_a_significant_change_below_the_least_effect_is_no_difference() -> None:
    ours = in_one_run([0.985 + step / 10_000 for step in range(8)])
    theirs = in_one_run([1.0 + step / 10_000 for step in range(8)])
    found = decide("step_time_s", "s", ours, theirs)
    assert found.p is not None
    assert found.p < 0.05
    assert (found.word, found.tone) == ("no difference", "neutral")


def test_a_large_change_that_is_not_significant_is_no_difference() -> None:
    found = decide("step_time_s", "s", in_one_run([1, 9, 2, 8, 5.5]), in_one_run([3, 7, 4, 6, 5]))
    assert found.word == "no difference"
    assert found.change == pytest.approx(0.1)


def test_bytes_need_one_per_cent_and_times_two() -> None:
    assert (verdicts.least_effect("bytes"), verdicts.least_effect("s"), verdicts.least_effect("ratio")) == (
        0.01,
        0.02,
        0.02,
    )


def test_counted_bytes_that_are_the_same_in_every_run_need_no_test() -> None:
    found = decide("peak_bytes", "bytes", replicas([88, 88], 1), replicas([100, 100, 100], 11))
    assert (found.word, found.tone, found.p) == ("smaller", "good", None)
    assert found.evidence == "counted, 5 runs, equal within each group"


def test_counted_bytes_that_differ_between_replicas_are_tested() -> None:
    assert decide("peak_bytes", "bytes", replicas([88, 89], 1), replicas([100, 100], 11)).word == "not enough data"


@pytest.mark.parametrize("metric", ["peak_rss_bytes", "peak_reserved_bytes", "unattributed_bytes"])
def test_bytes_seen_from_outside_are_not_counted(metric: str) -> None:
    assert decide(metric, "bytes", replicas([88], 1), replicas([100], 11)).word == "not enough data"


def test_equal_counts_are_no_difference() -> None:
    found = decide("adapter_parameters", "parameters", replicas([640], 1), replicas([640], 11))
    assert (found.word, found.change, found.evidence) == ("no difference", 0.0, "counted, 1 run each")


@pytest.mark.parametrize(
    ("metric", "unit", "ours", "word", "tone"),
    [
        ("decode_tokens_per_s", "tokens/s", 90, "slower", "bad"),
        ("decode_tokens_per_s", "tokens/s", 110, "faster", "good"),
        ("merge_peak_extra_bytes", "bytes", 110, "larger", "bad"),
        ("merge_peak_extra_weights", "W", 90, "smaller", "good"),
        ("trainable_parameters", "parameters", 110, "more", "neutral"),
        ("overhead_ratio", "ratio", 90, "better", "good"),
        ("overhead_ratio", "ratio", 110, "worse", "bad"),
        ("gpu_utilization_share", "share", 110, "better", "good"),
        ("init_peak_extra_rss_bytes@anonymous", "bytes", 110, "larger", "bad"),
        ("something_new", "ratio", 110, "higher", "neutral"),
    ],
)
def test_words_and_tone_follow_the_metric(metric: str, unit: str, ours: float, word: str, tone: str) -> None:
    found = decide(metric, unit, in_one_run([ours] * 5), in_one_run([100] * 5))
    assert (found.word, found.tone) == (word, tone)


def test_a_baseline_of_zero_has_no_change_but_a_verdict() -> None:
    found = decide("merge_peak_extra_bytes", "bytes", replicas([5], 1), replicas([0], 11))
    assert (found.word, found.change, found.difference) == ("larger", None, 5.0)
    assert verdicts.change_text(found.change) == "–"


def test_nothing_measured_has_no_verdict() -> None:
    assert verdicts.decide("step_time_s", "s", [], in_one_run([1.0])) is None


def sentence(found: Verdict) -> str:
    return verdicts.sentence(found, "Fused", "Stock", "88 ms", "100 ms")


def test_sentences_name_effect_and_evidence() -> None:
    ours, theirs = in_one_run([88, 87, 89, 86, 90]), in_one_run([100, 99, 101, 98, 102])
    faster, slower = decide("step_time_s", "s", ours, theirs), decide("step_time_s", "s", theirs, ours)
    assert sentence(faster) == "Fused is 12 % faster than Stock: 88 ms against 100 ms (n = 5 repeats, p = 0.008)."
    assert "14 % slower" in sentence(slower)


def test_sentences_of_factors_say_times() -> None:
    found = decide("step_time_s", "s", in_one_run([310] * 5), in_one_run([100] * 5))
    assert "is 3.10× slower than" in sentence(found)
    assert "is 3.10× faster than" in sentence(decide("step_time_s", "s", in_one_run([100] * 5), in_one_run([310] * 5)))


def test_sentences_without_enough_data_say_what_would_be() -> None:
    found = decide("step_time_s", "s", replicas([88], 1), replicas([100], 11))
    assert sentence(found) == (
        "Not enough data on Fused against Stock: 88 ms against 100 ms, −12 % so far (1 run each, needs 4 each)."
    )


def test_no_difference_shown_is_not_said_to_be_none() -> None:
    found = decide("step_time_s", "s", in_one_run([1, 9, 2, 8, 5.5]), in_one_run([3, 7, 4, 6, 5]))
    assert sentence(found).startswith("No difference shown between Fused and Stock")


@pytest.mark.parametrize(
    ("p", "text"), [(0.0079, "p = 0.008"), (0.029, "p = 0.029"), (0.42, "p = 0.42"), (1e-6, "p < 0.0001")]
)
def test_p_values_are_short(p: float, text: str) -> None:
    assert verdicts.p_text(p) == text


def test_the_rule_names_its_own_numbers() -> None:
    for word in ("0.05", "2 %", "1 %", "Wilcoxon", "Mann-Whitney", "From 6 repeats", "4 runs"):
        assert word in verdicts.RULE
