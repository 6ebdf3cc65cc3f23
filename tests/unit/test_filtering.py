"""Filter expressions: what they mean, and where they are wrong."""

from __future__ import annotations

import random
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.filtering import FilterError, Known, parse, pointed
from app.filtering.fields import columns, spec_fields
from app.filtering.values import number, period
from db.conditions import And, Column, Compare, Condition, EnvironmentField, MetricField, Not, Or, SpecField
from db.runs import StoredMetric

KNOWN = Known.of(
    [StoredMetric("step_time_s", ("stock",), "s"), StoredMetric("my_own_metric", (), "count")],
    [("cores",), ("packages", "peft")],
)
STATE = Compare(Column("state"), "=", "failed")
TAG = Compare(Column("tag"), "=", "paper")
ONE = Compare(Column("id"), "=", 1.0)


def read(text: str) -> Condition | None:
    return parse(text, KNOWN, ZoneInfo("UTC"))


def error(text: str) -> FilterError:
    with pytest.raises(FilterError) as caught:
        read(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (" \n ", None),
        ("state = failed", STATE),
        ("STATE == 'Failed'", Compare(Column("state"), "=", "failed")),
        ("state=failed and tag=paper", And((STATE, TAG))),
        ("state = failed OR tag = paper AND id = 1", Or((STATE, And((TAG, ONE))))),
        ("(state = failed Or tag = paper) aNd id = 1", And((Or((STATE, TAG)), ONE))),
        ("not state = failed and tag = paper", And((Not(STATE), TAG))),
        ("NOT (state = failed or tag = paper)", Not(Or((STATE, TAG)))),
        ("not not state = failed", Not(Not(STATE))),
        ("((((state = failed))))", STATE),
        ("id in (1, 2)", Or((ONE, Compare(Column("id"), "=", 2.0)))),
        ("id not in (1)", Not(ONE)),
        ('tag != "paper"', Not(TAG)),
        ("name ~ 'before upgrade'", Compare(Column("name"), "~", "before upgrade")),
        ("""name = "it's" """, Compare(Column("name"), "=", "it's")),
        ("name = android", Compare(Column("name"), "=", "android")),
        ("name = 'and'", Compare(Column("name"), "=", "and")),
        ("strategy = none", Compare(Column("strategy"), "=", None)),
        ("strategy = 'none'", Compare(Column("strategy"), "=", "none")),
        ("failed_checks > 0", Compare(Column("failed_checks"), ">", 0.0)),
        ("background_cpu_share > 10%", Compare(Column("background_cpu_share"), ">", 0.1)),
        ("train.context_length >= 1024", Compare(SpecField(("train", "context_length")), ">=", 1024.0)),
        ("adapter.options.use_dora = true", Compare(SpecField(("adapter", "options", "use_dora")), "=", "true")),
        ("adapter.rank = '16'", Compare(SpecField(("adapter", "rank")), "=", "16")),
        ("timeout_s > 2min", Compare(SpecField(("timeout_s",)), ">", 120.0)),
        ("environment.packages.peft = 0.21.2", Compare(EnvironmentField(("packages", "peft")), "=", "0.21.2")),
        ("environment.cores >= 2", Compare(EnvironmentField(("cores",)), ">=", 2.0)),
        ("step_time_s < 500ms", Compare(MetricField("step_time_s"), "<", 0.5)),
        ("step_time_s < 500 ms", Compare(MetricField("step_time_s"), "<", 0.5)),
        ("step_time_s@stock <= 1.5", Compare(MetricField("step_time_s", "stock"), "<=", 1.5)),
        ("step_time_s@other <= 1.5", Compare(MetricField("step_time_s", "other"), "<=", 1.5)),
        ("peak_bytes < 2GiB", Compare(MetricField("peak_bytes"), "<", 2.0**31)),
        ("my_own_metric > 12.5M", Compare(MetricField("my_own_metric"), ">", 12.5e6)),
        ("decode_tokens_per_s > 1e1", Compare(MetricField("decode_tokens_per_s"), ">", 10.0)),
    ],
)
def test_an_expression_becomes_its_condition(text: str, expected: Condition | None) -> None:
    assert read(text) == expected


def test_a_json_field_is_compared_with_a_bare_number_as_number_and_as_text() -> None:
    rank = SpecField(("adapter", "rank"))
    assert read("adapter.rank = 16") == Or((Compare(rank, "=", 16.0), Compare(rank, "=", "16")))


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("state = 'Out of memory'", "out_of_memory"),
        ("kind = 'merge files'", "merge_files"),
        ("model = 'TinyLlama 1.1B'", "tinyllama-1.1b"),
        ("model = /models/mine", "/models/mine"),
        ("strategy = 'Zero-B norm'", "zero_b_norm"),
    ],
)
def test_what_pages_show_stands_for_what_is_stored(text: str, stored: str) -> None:
    condition = read(text)
    assert isinstance(condition, Compare)
    assert condition.value == stored


def test_a_day_is_from_its_start_to_its_end_in_the_readers_zone() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 3, 29, tzinfo=berlin).timestamp()
    end = datetime(2026, 3, 30, tzinfo=berlin).timestamp()
    assert end - start == 23 * 3600, "the clock is put forward on that day"
    finished = Column("finished")
    assert parse("finished = 2026-03-29", KNOWN, berlin) == And(
        (Compare(finished, ">=", start), Compare(finished, "<", end))
    )
    assert parse("finished > 2026-03-29", KNOWN, berlin) == Compare(finished, ">=", end)
    assert parse("finished <= 2026-03-29", KNOWN, berlin) == Compare(finished, "<", end)
    assert parse("finished < 2026-03-29T00:01", KNOWN, berlin) == Compare(finished, "<", start + 60)


@pytest.mark.parametrize(
    ("text", "position", "sentence"),
    [
        ("stat = failed", 0, "stat is no field; did you mean state"),
        ("id = 1 and context_length = 5", 11, "did you mean train.context_length"),
        ("use_dora = true", 0, "did you mean adapter.options.use_dora"),
        ("peft = 1", 0, "did you mean environment.packages.peft"),
        ("zzzzzzzz = 1", 0, "zzzzzzzz is no field; the help"),
        ("state", 5, "An operator is expected"),
        ("state failed", 6, "An operator is expected"),
        ("state = ", 7, "A value is expected"),
        ("state = and", 8, "A value is expected"),
        ("state = < 3", 8, "A value is expected"),
        ("state = 'failed", 8, "never closed"),
        ("(state = failed", 15, "closing parenthesis is missing"),
        ("state = failed)", 14, "closes nothing"),
        ("state = failed tag = paper", 15, "AND or OR"),
        ("state = failed or", 17, "A field is expected"),
        ("and state = failed", 0, "A field is expected"),
        ("()", 1, "A field is expected"),
        ("id in 3", 6, "A list in parentheses"),
        ("id in (3", 8, "closing parenthesis is missing"),
        ("id in (3 4)", 9, "A comma or a closing parenthesis"),
        ("state < failed", 8, "state is text"),
        ("state = done", 8, "state is one of cancelled"),
        ("step_time_s ~ 3", 14, "step_time_s is a number"),
        ("step_time_s < 2GiB", 14, "expects a time such as"),
        ("peak_bytes < 2GB", 13, "expects a size such as 2GiB"),
        ("step_time_s < none", 14, "by = or != only"),
        ("train.context_length > long", 23, "expects a number"),
        ("environment.packages.peft > 0.21", 28, "is a version"),
        ("finished > yesterday", 11, "expects a day such as"),
        ("finished > 2026-02-30", 11, "expects a day such as"),
        ("finished > 9999-12-31", 11, "expects a day such as"),
        ("id = inf", 5, "expects a number"),
        ("id = 1e999", 5, "expects a finite number"),
        ("id = 1; DROP TABLE runs", 8, "AND or OR"),
        ("id = 1;", 5, "expects a number"),
        ("name = a\x00b", 8, "U+0000"),
        ("name = a\ud800b", 8, "U+D800"),
        ("id = 1 or " * 300, 2000, "at most 2000 characters, not 3000"),
        ("not " * 30 + "id = 1", None, "at most 20 levels"),
        ("(id = 1 and not " * 15 + "id = 1" + ")" * 15, None, "at most 20 levels"),
        ("id in (" + "1," * 200 + "1)", 0, "at most 200 values"),
        (" or ".join(f"step_time_s@v{number} = 1" for number in range(9)), None, "at most 8 metrics"),
    ],
)
def test_an_error_says_what_would_be_right_and_where(text: str, position: int | None, sentence: str) -> None:
    found = error(text)
    assert sentence in found.sentence
    assert position is None or found.position == position
    assert found.sentence.endswith((".", "?"))
    assert "\n" not in found.sentence


def test_a_thousand_parentheses_are_read_or_refused_but_never_too_much() -> None:
    assert read("(" * 900 + "id = 1" + ")" * 900) == ONE
    assert "A field is expected" in error("(" * 2000).sentence


def test_no_text_at_all_breaks_the_parser() -> None:
    random.seed(0)
    pieces = [*"=~(),\"'1%é@. ", "!=", "state", "in", "and", "OR", "not", "GiB"]
    for _ in range(3000):
        text = "".join(random.choice(pieces) + random.choice(("", " ")) for _ in range(random.randint(1, 12)))
        position = position_of_error(text)
        assert position is None or pointed(text, position), text


def position_of_error(text: str) -> int | None:
    try:
        read(text)
    except FilterError as problem:
        return problem.position if 0 <= problem.position <= len(text) else pytest.fail(text)
    return None


def test_the_caret_stands_under_the_character_also_after_wide_ones() -> None:
    assert pointed("id = x", 5) == "id = x\n     ^"
    assert pointed("name = 'é日' x", 12) == "name = 'é日' x\n" + " " * 13 + "^"
    assert pointed("a\nb\x00c", 4) == "a b c\n    ^"


def test_of_a_long_expression_only_the_part_around_the_error_is_shown() -> None:
    text = "a" * 500 + "!" + "b" * 500
    line, caret = pointed(text, 500).split("\n")
    assert len(line) < 120
    assert line[caret.index("^")] == "!"
    assert line.startswith("…")
    assert line.endswith("…")


def test_numbers_without_a_unit_are_in_stored_units() -> None:
    assert number("2", "time") == number("2s", "time") == 2.0
    assert number("1 KiB", "memory") == 1024.0
    assert number("-.5", "plain") == -0.5


def test_a_minute_lasts_sixty_seconds_and_a_second_one() -> None:
    utc = ZoneInfo("UTC")
    assert period("1970-01-01T00:01", utc) == (60.0, 120.0)
    assert period("1970-01-01 00:01:30", utc) == (90.0, 91.0)


def test_the_spec_fields_are_those_of_all_kinds() -> None:
    fields = set(spec_fields())
    assert {"train.context_length", "inference.batch_size", "adapter.rank", "adapter.path", "repeats", "base"} <= fields
    assert "adapter.options.use_dora" in fields
    assert "model" not in fields, "that is a column"


@pytest.mark.parametrize("path", ["docs/filters.md", "app/widgets/filter_box.py"])
def test_every_documented_example_can_be_read(path: str) -> None:
    text = (Path(__file__).resolve().parents[2] / path).read_text()
    examples = text.split("```text\n")[1].split("```")[0].splitlines()
    assert len(examples) >= 7
    for example in examples:
        assert read(example) is not None


def test_every_column_is_documented() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/filters.md").read_text()
    assert [name for name in columns() if f"`{name}`" not in text] == []
