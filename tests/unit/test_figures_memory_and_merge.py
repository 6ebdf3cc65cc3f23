"""Memory against context length with devices and runs out of memory, and the peak of a merge in bytes and in W."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from app import figures

GIB = 2**30
COLOURS = {"LoRA": "#0072B2", "DoRA": "#E69F00"}


def stacks(groups: dict[str, dict[int, dict[str, float]]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"group": group, "x": x, "part": part, "value": value * GIB, "state": "succeeded"}
            for group, lengths in groups.items()
            for x, found in lengths.items()
            for part, value in found.items()
        ]
    )


TWO = {
    "Full": {512: {"activations": 1, "parameters": 4}, 1024: {"activations": 2, "parameters": 4}},
    "LoRA": {512: {"activations": 1, "parameters": 2}, 1024: {"activations": 2, "parameters": 2}},
}


def context(frame: pd.DataFrame, **options: object):  # type: ignore[no-untyped-def]
    return figures.context_memory(frame, title="Peak memory", **options)  # type: ignore[arg-type]


def bars(figure: object) -> list[object]:
    return [trace for trace in figure.data if trace.type == "bar"]  # type: ignore[attr-defined]


def totals(figure: object) -> list[str]:
    lines = [trace for trace in figure.data if trace.type == "scatter"]  # type: ignore[attr-defined]
    return [text for trace in lines if trace.mode == "text" for text in trace.text]


def test_each_method_has_a_panel_with_its_categories_stacked_in_one_order() -> None:
    figure = context(stacks(TWO))
    assert [note.text for note in figure.layout.annotations] == ["Full", "LoRA"]
    assert [bar.name for bar in bars(figure)] == ["parameters", "activations"] * 2
    assert figure.layout.barmode == "stack"
    assert totals(figure) == ["5.00", "6.00", "3.00", "4.00"]
    assert figure.layout.title.text == "Peak memory, GiB, lower is better"


def test_lengths_are_on_a_scale_of_doublings_with_the_real_lengths_as_ticks() -> None:
    frame = stacks({"LoRA": {length: {"parameters": 1} for length in (512, 1024, 1536, 4096)}})
    figure = context(frame)
    assert list(figure.layout.xaxis.ticktext) == ["512", "1024", "1536", "4096"]
    assert list(figure.layout.xaxis.tickvals) == pytest.approx([9, 10, math.log2(1536), 12])
    widest = bars(figure)[0].width
    assert widest < math.log2(1536) - 10, "bars of neighbouring lengths would overlap"


def test_panels_share_one_y_range_up_to_the_largest_total() -> None:
    figure = context(stacks(TWO))
    ranges = {tuple(axis.range) for axis in figure.select_yaxes()}
    assert len(ranges) == 1
    assert 6 * GIB < ranges.pop()[1] < 9 * GIB


def out_of_memory(frame: pd.DataFrame, group: str, x: int, reached: float) -> pd.DataFrame:
    line = {"group": group, "x": x, "part": None, "value": reached * GIB, "state": "out_of_memory"}
    return pd.concat([frame, pd.DataFrame([line])], ignore_index=True)


def test_out_of_memory_is_a_hollow_marker_at_what_was_reached_and_no_bar() -> None:
    figure = context(out_of_memory(stacks(TWO), "Full", 2048, 7.5))
    (hollow,) = [trace for trace in figure.data if trace.name == "out of memory"]
    assert hollow.marker.symbol == "circle-open"
    assert (hollow.x[0], hollow.y[0]) == (11, 7.5 * GIB)
    assert hollow.customdata[0] == "out of memory at 7.50 GiB"
    assert all(11 not in bar.x for bar in bars(figure))
    assert "2048" in figure.layout.xaxis.ticktext


def test_out_of_memory_without_a_known_peak_is_marked_inside_the_axis() -> None:
    frame = out_of_memory(stacks(TWO), "Full", 2048, math.nan)
    figure = context(frame)
    (hollow,) = [trace for trace in figure.data if trace.name == "out of memory"]
    assert 6 * GIB < hollow.y[0] < figure.layout.yaxis.range[1]
    assert hollow.customdata[0] == "out of memory"


def test_a_device_is_a_line_where_it_is_near_and_left_out_where_it_would_squash_the_bars() -> None:
    figure = context(stacks(TWO), limits={"cpu: 8 GiB": 8 * GIB, "big: 80 GiB": 80 * GIB})
    lines = {trace.name: trace.y[0] for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"}
    assert lines == {"cpu: 8 GiB": 8 * GIB}
    assert figure.layout.yaxis.range[1] > 8 * GIB


def test_a_device_is_a_line_in_every_panel_also_in_those_of_small_stacks() -> None:
    frame = stacks({"Full": {512: {"parameters": 5}}, "LoRA": {512: {"parameters": 1}}})
    figure = context(frame, limits={"cpu: 8 GiB": 8 * GIB})
    assert len([trace for trace in figure.data if trace.name == "cpu: 8 GiB"]) == 2


def test_what_no_category_explains_is_hatched_on_top() -> None:
    figure = context(stacks({"LoRA": {512: {"unattributed": 1, "parameters": 2}}}))
    assert bars(figure)[-1].name == "unattributed"
    assert bars(figure)[-1].marker.pattern.shape == "/"


PEAKS = pd.DataFrame(
    [
        ("stock <b>", "LoRA", 46.0, 0.0, 23.0),
        ("out of place", "LoRA", 250.7, 135.7, 23.0),
        ("addmm", "LoRA", 0.0, 0.0, 23.0),
    ],
    columns=["group", "adapter", "peak_bytes", "retained_bytes", "weight_bytes"],
)


def merges(frame: pd.DataFrame, **options: object):  # type: ignore[no-untyped-def]
    return figures.merge_peak(frame, COLOURS, title="Peak", **options)  # type: ignore[arg-type]


def test_a_merge_is_in_bytes_on_the_left_and_in_weights_on_the_right() -> None:
    left, right = bars(merges(PEAKS))
    assert list(left.x) == pytest.approx([46.0, 250.7, 0.0])
    assert list(right.x) == pytest.approx([2.0, 10.9, 0.0])
    assert (left.xaxis, right.xaxis) == ("x", "x2")
    assert totals(merges(PEAKS))[3:] == ["\u2002<b>2.00 W</b>", "\u2002<b>10.9 W</b>", "\u2002<b>0 W</b>"]


def test_what_is_still_held_after_a_merge_is_a_hollow_diamond_only_where_there_is_some() -> None:
    kept = [trace for trace in merges(PEAKS).data if trace.name == "still held after the merge"]
    assert [list(trace.y) for trace in kept] == [["out of place"]] * 2
    assert kept[1].x[0] == pytest.approx(5.9)
    assert not [t for t in merges(PEAKS.iloc[[0]]).data if t.name == "still held after the merge"]


def test_a_merge_whose_weight_is_not_known_is_in_bytes_only() -> None:
    assert len(bars(merges(PEAKS.assign(weight_bytes=math.nan)))) == 1


def test_the_baseline_of_a_merge_is_dashed_on_both_sides_whatever_its_name() -> None:
    figure = merges(PEAKS, baseline="stock <b>")
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx([46.0, 2.0])
    assert list(figure.layout.yaxis.categoryarray) == ["addmm", "out of place", "stock &lt;b&gt;"]


def test_predicted_stacks_are_hatched_and_what_was_measured_lies_on_them_as_points() -> None:
    measured = pd.DataFrame({"group": ["Full"], "x": [1024], "value": [6.2 * GIB]})
    figure = context(stacks(TWO), is_predicted=True, points=measured)
    assert {bar.marker.pattern.shape for bar in bars(figure)} == {"/"}
    (point,) = [trace for trace in figure.data if trace.name == "measured"]
    assert (point.x[0], point.y[0]) == (10, 6.2 * GIB)
    assert point.marker.symbol == "circle"
    assert all(bar.marker.pattern.shape is None for bar in bars(context(stacks(TWO)))), "measured ones are plain"


COURSE = pd.DataFrame(
    [
        {"number": number, "part": part, "category": category, "bytes": size * GIB}
        for number, part, sizes in (
            (0, "forward", {"parameters": 2}),
            (10, "forward", {"parameters": 2, "activations": 3}),
            (20, "backward", {"parameters": 2, "activations": 1, "gradients": 1}),
            (40, "optimizer", {"parameters": 2}),
        )
        for category, size in sizes.items()
    ]
)


def test_a_course_is_stacked_over_its_changes_and_names_its_peak_and_parts() -> None:
    figure = figures.course(COURSE, title="Memory along the job")
    assert [trace.name for trace in figure.data] == ["parameters", "gradients", "activations"]
    assert list(figure.data[2].y) == [0, 3 * GIB, 1 * GIB, 0], "what is gone takes nothing"
    notes = {note.text: note.x for note in figure.layout.annotations}
    assert notes["peak 5.00 GiB"] == 10
    assert {"forward", "backward"} <= set(notes)
    assert [shape.x0 for shape in figure.layout.shapes] == [20, 40], "a line where a part begins"
