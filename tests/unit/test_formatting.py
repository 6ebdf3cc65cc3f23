"""What numbers, sizes and times look like on screen."""

from __future__ import annotations

from datetime import UTC

import pytest

from app import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.42134, "0.421"),
        (9.996, "10.0"),
        (1234.5, "1230"),
        (0.000123456, "0.000123"),
        (0, "0"),
        (99.96, "100"),
        (-3.14159, "-3.14"),
    ],
)
def test_three_significant_digits_and_never_an_exponent(value: float, text: str) -> None:
    assert formatting.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.7, "9.70 s"),
        (0.42, "420 ms"),
        (0.9997, "1.00 s"),
        (0.0004, "0.400 ms"),
        (140.2, "140 s"),
        (0, "0 s"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_measured_times_are_milliseconds_below_a_second_and_seconds_above(value: float | None, text: str) -> None:
    assert formatting.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.50 KiB"),
        (230 * 2**20, "230 MiB"),
        (1020 * 2**20, "0.996 GiB"),
        (2**30, "1.00 GiB"),
        (14.5 * 2**30, "14.5 GiB"),
        (141 * 2**30, "141 GiB"),
        (None, "–"),
    ],
)
def test_bytes_are_shown_in_binary_units_only(value: float | None, text: str) -> None:
    assert formatting.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3, "under 1 s"),
        (40, "40 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (3900, "1 h 05 min"),
        (7199, "2 h 00 min"),
        (None, "–"),
        (-1, "–"),
    ],
)
def test_waiting_times_read_as_people_say_them(value: float | None, text: str) -> None:
    assert formatting.duration(value) == text


def test_parameter_counts_are_shortened() -> None:
    assert [formatting.count(value) for value in (640, 12_300, 50_462_720, 1_100_048_384)] == [
        "640",
        "12.3 k",
        "50.5 M",
        "1.10 B",
    ]


def test_a_single_value_says_one_run_and_more_say_how_many() -> None:
    assert formatting.evidence(1, 1) == "1 run"
    assert formatting.evidence(5, 1) == "5 repeats, 1 run"
    assert formatting.evidence(10, 2) == "10 repeats, 2 runs"
    assert formatting.evidence(5, 5) == "5 runs"


def test_every_state_has_words_an_icon_and_a_colour() -> None:
    from engine.result import STATES

    for state in STATES:
        assert formatting.state_text(state)[0].isupper()
        assert formatting.state_icon(state).startswith(":material/")
        assert formatting.state_colour(state) in {"gray", "blue", "green", "red", "orange"}
    assert formatting.state_text("out_of_memory") == "Out of memory"


def test_metric_names_lose_their_unit_and_keep_their_words() -> None:
    assert formatting.metric_title("init_peak_extra_rss_bytes") == "Peak extra RSS"
    assert formatting.metric_title("some_rss_bytes") == "Some RSS"
    assert formatting.metric_title("adapted_modules") == "Adapted modules"


def test_every_metric_of_the_kinds_has_a_title_and_most_a_better_direction() -> None:
    assert formatting.metric_title("overhead_ratio") == "Time per token against base"
    assert formatting.better("decode_tokens_per_s") == "higher"
    assert formatting.better("peak_bytes") == "lower"
    assert formatting.better("trainable_parameters") is None
    assert formatting.better("a_metric_of_later") is None


@pytest.mark.parametrize(
    ("name", "value", "unit", "text"),
    [
        ("relative_weight_error", 0.00312, "ratio", "0.312 %"),
        ("relative_logit_error", 1e-9, "ratio", "under 0.0001 %"),
        ("overhead_ratio", 1.42, "ratio", "1.42×"),
        ("decode_tokens_per_s", 9.2, "tokens/s", "9.20 tokens/s"),
        ("peak_bytes", 2**30, "bytes", "1.00 GiB"),
        ("peak_bytes", None, "bytes", "–"),
        ("graph_breaks", 3, "count", "3"),
    ],
)
def test_metrics_are_written_in_the_unit_that_people_use(name: str, value: float | None, unit: str, text: str) -> None:
    assert formatting.metric_text(name, value, unit) == text


def test_memory_in_weights_keeps_small_values_short() -> None:
    assert [formatting.measured(value, "W") for value in (6.018, 0.03, 0.0)] == ["6.02 W", "0.030 W", "0 W"]


def test_a_sentence_ends_with_one_full_stop() -> None:
    assert formatting.sentence("It failed") == "It failed."
    assert formatting.sentence("It failed. ") == "It failed."
    assert formatting.sentence("") == ""


def test_text_from_outside_cannot_become_markdown() -> None:
    escaped = formatting.plain("**bold** [link](http://x) $x$ :red[y] <b>")
    assert "\\*\\*bold\\*\\*" in escaped
    assert "\\[link\\]" in escaped
    assert "\\:red\\[" in escaped
    assert "\\$x\\$" in escaped


def test_moments_and_ages_are_short() -> None:
    assert formatting.moment(0, UTC) == "1970-01-01 00:00"
    assert formatting.moment(None) == "–"
    assert [formatting.ago(1000.0 - age, 1000.0) for age in (5, 300)] == ["just now", "5 min ago"]
    assert formatting.ago(0, 86400 * 3) == "3 days ago"
    assert formatting.ago(2000, 1000) == "just now"


def test_long_target_lists_are_cut_and_short_ones_kept() -> None:
    assert formatting.targets_text("all-linear") == "all-linear"
    assert formatting.targets_text(["q_proj", "v_proj"]) == "q_proj, v_proj"
    assert formatting.targets_text(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert formatting.targets_text(None) == "–"


@pytest.mark.parametrize("address", ["https://host.example/x", "HTTP://host", "www.host.example", "me@host.example"])
def test_an_address_is_split_so_that_markdown_makes_no_link_of_it(address: str) -> None:
    shown = formatting.plain(address).replace("\\", "")
    assert address not in shown
    assert shown.replace("\u2060", "") == address


def test_an_at_sign_that_is_no_address_stays_as_it_is_typed() -> None:
    assert "\u2060" not in formatting.plain("peak_bytes@adapter")


def test_an_indented_line_does_not_become_a_block_of_code() -> None:
    assert formatting.plain("note\n\n    code\n\ttab") == "note\n\ncode\ntab"


def test_a_badge_gets_no_brackets_escaped_because_it_escapes_them_itself() -> None:
    assert formatting.plain_badge("[a] <b>") == "[a] \\<b\\>"
