"""Metrics against a numeric field: medians, ranges, axes, names, and runs that ended out of memory."""

from __future__ import annotations

import functools
import itertools
import math

import pandas as pd
import pytest

from app import figures, formatting
from app.figures import parts

COLOURS = {"LoRA": "#0072B2", "DoRA": "#E69F00"}
draw = functools.partial(figures.lines, colours=COLOURS, title="Step time", unit="s", x_title="rank")


def rows(group: str, values: dict[float, list[float]], adapter: str = "LoRA", state: str = "succeeded") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"group": group, "adapter": adapter, "x": x, "value": value, "run_id": int(x), "state": state}
            for x, found in values.items()
            for value in found
        ]
    )


def trace(figure: object, name: str):  # type: ignore[no-untyped-def]
    return next(trace for trace in figure.data if trace.name == name)  # type: ignore[attr-defined]


def notes(figure: object) -> list[str]:
    return [note.text for note in figure.layout.annotations]  # type: ignore[attr-defined]


def test_a_line_runs_through_the_medians_with_the_quartiles_as_bars() -> None:
    line = trace(draw(rows("LoRA", {4: [1.0, 2.0, 9.0], 8: [4.0]})), "LoRA")
    assert list(line.x) == [4, 8]
    assert list(line.y) == [2.0, 4.0]
    assert list(line.error_y.array) == pytest.approx([3.5, 0.0])
    assert list(line.error_y.arrayminus) == pytest.approx([0.5, 0.0])
    assert line.customdata[0][-1] == "3 repeats, 1 run"


def test_a_field_that_grows_by_factors_has_a_logarithmic_axis_with_its_real_values_as_ticks() -> None:
    axis = draw(rows("LoRA", {4: [1.0], 8: [1.0], 16: [1.0]})).layout.xaxis
    assert axis.type == "log"
    assert list(axis.ticktext) == ["4", "8", "16"]
    assert 10 ** axis.range[0] < 4
    assert 10 ** axis.range[1] > 16


def test_a_field_in_equal_steps_has_a_linear_axis() -> None:
    assert draw(rows("LoRA", {4: [1.0], 5: [1.0], 6: [1.0]})).layout.xaxis.type == "linear"


def test_values_that_span_decades_have_a_logarithmic_axis_and_the_title_says_so() -> None:
    figure = draw(rows("LoRA", {4: [0.1], 8: [90.0]}))
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.title.text == "Step time, log scale, lower is better"


def test_no_line_is_drawn_through_a_run_out_of_memory() -> None:
    frame = pd.concat([rows("LoRA", {4: [1.0], 16: [3.0]}), rows("LoRA", {8: [2.5]}, state="out_of_memory")])
    line, hollow = draw(frame).data
    assert list(line.x) == [4, 16]
    assert "lines" not in hollow.mode
    assert hollow.marker.symbol == "circle-open"
    assert (list(hollow.x), list(hollow.y)) == ([8], [2.5])
    assert hollow.text[0].startswith("out of memory")


@pytest.mark.parametrize(("better", "is_high"), [("lower", True), ("higher", False)])
def test_where_it_is_not_known_what_was_reached_the_marker_lies_at_the_worse_end(better: str, is_high: bool) -> None:
    frame = pd.concat([rows("LoRA", {4: [1.0]}), rows("LoRA", {8: [math.nan]}, state="out_of_memory")])
    hollow = draw(frame, better=better).data[1]
    assert (hollow.y[0] > 1.0) == is_high
    assert (hollow.y[0] < 0.1) != is_high


def test_a_group_without_the_field_is_a_level_line_from_end_to_end() -> None:
    full = rows("Full fine-tuning", {0: [2.0, 2.2]}, adapter="").assign(x=math.nan)
    line = trace(draw(pd.concat([rows("LoRA", {4: [1.0], 64: [1.5]}), full])), "Full fine-tuning")
    assert list(line.x) == [4, 64]
    assert list(line.y) == pytest.approx([2.1, 2.1])


def test_up_to_six_lines_are_named_at_their_ends_and_more_in_a_legend() -> None:
    few = draw(pd.concat([rows(f"g{number}", {4: [1.0], 8: [number]}) for number in range(1, 7)]))
    assert [text.split("</span> ")[1] for text in notes(few)] == [f"g{number}" for number in range(1, 7)]
    assert not few.layout.showlegend
    many = draw(pd.concat([rows(f"g{number}", {4: [1.0], 8: [number]}) for number in range(1, 8)]))
    assert not notes(many)
    assert many.layout.showlegend


def test_a_long_name_goes_to_the_legend_as_it_would_squeeze_the_plot() -> None:
    figure = draw(pd.concat([rows("a" * 60, {4: [1.0]}), rows("b", {4: [2.0]})]))
    assert figure.layout.showlegend
    assert figure.layout.margin.r < 50


def test_names_at_the_ends_do_not_overlap() -> None:
    figure = draw(pd.concat([rows(f"g{number}", {4: [1.0], 8: [1.0]}) for number in range(6)]))
    heights = sorted(note.y for note in figure.layout.annotations)
    margin = figure.layout.margin
    gap_px = min(after - before for before, after in itertools.pairwise(heights)) * (
        figure.layout.height - margin.t - margin.b
    )
    assert gap_px >= 17.9
    assert max(heights) <= 1.0


def test_one_adapter_has_one_hue_in_shades_with_symbols_of_their_own_and_the_baseline_is_dashed() -> None:
    figure = draw(pd.concat([rows("a", {4: [1.0]}), rows("b", {4: [2.0]})]), baseline="b")
    first, second = figure.data
    assert first.line.color != second.line.color
    assert first.marker.symbol != second.marker.symbol
    assert (first.line.dash, second.line.dash) == ("solid", "dash")
    assert draw(rows("a", {4: [1.0]})).data[0].line.color == COLOURS["LoRA"]
    assert draw(rows("a", {4: [1.0]}, adapter="new")).data[0].line.color == formatting.GREY


def test_typed_markup_is_shown_letter_by_letter_everywhere() -> None:
    bad = "<b>bold</b> %{y} & <a href='https://x'>x</a>"
    figure = draw(pd.concat([rows(bad, {4: [1.0]}), rows(bad, {8: [1.0]}, state="out_of_memory"), rows("b", {4: [1]})]))
    document = figure.to_json()
    assert "<b>bold" not in document.replace("\\u003c", "<")
    assert all(bad not in (trace.hovertemplate or "") for trace in figure.data)
    assert figure.data[0].name.startswith("&lt;b&gt;bold")


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_nothing_but_zeros_or_nothing_at_all_is_still_a_chart(value: float) -> None:
    figure = draw(rows("LoRA", {4: [value], 8: [value]}))
    assert figure.layout.yaxis.range[1] > figure.layout.yaxis.range[0]


def test_negative_values_are_within_the_axis() -> None:
    axis = draw(rows("LoRA", {4: [-2.0], 8: [3.0]})).layout.yaxis
    assert axis.range[0] <= -2
    assert any(text.startswith("−") for text in axis.ticktext)


def test_names_are_moved_apart_as_little_as_needed_and_keep_their_order() -> None:
    assert parts.apart([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])
    moved = parts.apart([0.99, 0.98, 0.5], 0.1)
    assert moved == pytest.approx([1.0, 0.9, 0.5])


def test_a_label_keeps_its_letters_when_it_is_wrapped_and_cut() -> None:
    assert parts.wrapped("a &lt;b&gt; c", 5) == "a &lt;b&gt;<br>c"
    assert parts.wrapped("word " * 40, 20).endswith("…")
    assert parts.wrapped("word " * 40, 20).count("<br>") == 1


_OF_A_SWEEP = [
    f"DoRA · Stock PEFT, SmolLM2 135M, bfloat16, rank {rank}, alpha 32, {modules}"
    for rank, modules in ((8, "qv"), (16, "qv"), (16, "all-linear"))
]


def test_labels_that_would_be_cut_alike_leave_out_what_they_share() -> None:
    assert len({parts.wrapped(label, 44, lines=1) for label in _OF_A_SWEEP}) == 1
    assert parts.wrapped_apart(_OF_A_SWEEP, 44, lines=1) == [
        "DoRA · Stock PEFT, SmolLM2 135M … rank 8",
        "DoRA · Stock PEFT … rank 16 … qv",
        "DoRA · Stock PEFT, SmolLM2 135M … all-linear",
    ]


def test_what_tells_labels_apart_is_said_once() -> None:
    labels = [f"LoRA · Fast, GPT-2, rank {rank}, alpha 16, all-linear" for rank in (8, 16)]
    assert parts.wrapped_apart(labels, 26, lines=1) == ["LoRA · Fast, GPT-2, rank 8", "LoRA · Fast … rank 16"]


def test_what_tells_labels_apart_is_cut_only_where_there_is_no_room_for_it() -> None:
    assert parts.wrapped_apart(_OF_A_SWEEP[1:], 30, lines=1) == [
        "DoRA · Stock PEFT … qv",
        "DoRA · Stock PEFT … all-linear",
    ]
    assert parts.wrapped_apart(_OF_A_SWEEP[1:], 24, lines=1) == ["DoRA · Stock PEFT … qv", "DoRA · Stock PEFT … …"]


def test_labels_that_read_different_stay_whole() -> None:
    assert parts.wrapped_apart(["LoRA", _OF_A_SWEEP[0]], 44, lines=1) == [
        "LoRA",
        parts.wrapped(_OF_A_SWEEP[0], 44, lines=1),
    ]


def test_labels_that_nothing_tells_apart_are_cut_all_the_same() -> None:
    alike = ["word " * 20 + "one", "word " * 20 + "two"]
    assert parts.wrapped_apart(alike, 20, lines=1) == [parts.wrapped(label, 20, lines=1) for label in alike]
