"""Parallel coordinates, ratios beside published ones, larger type, and charts in words."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from app import figures
from app.figures import Dimension

COLOURS = {"LoRA": "#0072B2", "DoRA": "#E69F00"}
RUNS = pd.DataFrame(
    {
        "group": ["LoRA <b>", "LoRA <b>", "DoRA"],
        "adapter": ["LoRA", "LoRA", "DoRA"],
        "rank": [4, 8, 16],
        "dtype": ["float32", "float32", "float32"],
        "strategy": ["stock", "fused", "stock"],
        "step_time_s": [0.1, 1.0, 100.0],
        "peak_bytes": [math.nan, 2.0, 3.0],
    },
    index=[11, 12, 13],
)
DIMENSIONS = [
    Dimension("strategy", "Strategy"),
    Dimension("dtype", "Dtype"),
    Dimension("rank", "Rank"),
    Dimension("step_time_s", "Step time", "s", "lower"),
    Dimension("peak_bytes", "Peak", "bytes", "lower"),
]


def parallel(dimensions: list[Dimension] = DIMENSIONS, runs: pd.DataFrame = RUNS):  # type: ignore[no-untyped-def]
    return figures.parallel(runs, COLOURS, dimensions=dimensions, title="Runs")


def heads(figure: object) -> list[str]:
    texts = [note.text for note in figure.layout.annotations]  # type: ignore[attr-defined]
    return [text.split("</b>")[0].removeprefix("<b>") for text in texts if text.startswith("<b>")]


def test_only_what_differs_has_an_axis() -> None:
    assert heads(parallel()) == ["Strategy", "Rank", "Step time", "Peak"]


def test_numbers_lie_between_their_smallest_and_largest_logarithmically_where_they_span_decades() -> None:
    heights = [list(trace.y) for trace in parallel().data]
    assert [line[1] for line in heights] == pytest.approx([0.0, 1 / 3, 1.0])
    assert [line[2] for line in heights] == pytest.approx([0.0, 1 / 3, 1.0])
    assert heights[0][0] == heights[2][0] != heights[1][0]


def test_a_line_is_interrupted_where_a_run_has_no_value() -> None:
    assert math.isnan(parallel().data[0].y[3])
    assert not parallel().data[0].connectgaps


def test_hovering_tells_the_run_and_everything_of_it_with_units() -> None:
    text = parallel().data[1].customdata[0]
    assert text.startswith("<b>LoRA &lt;b&gt;</b>, run 12")
    assert "Step time: 1.00 s" in text
    assert "Strategy: fused" in text


def test_each_group_is_in_the_legend_once() -> None:
    assert [trace.name for trace in parallel().data if trace.showlegend] == ["LoRA &lt;b&gt;", "DoRA"]


def test_the_name_of_an_axis_stands_above_its_uppermost_value_however_many_lines_that_has() -> None:
    def shift_px(figure: object) -> float:
        return next(note.yshift for note in figure.layout.annotations if note.text.startswith("<b>"))  # type: ignore[attr-defined]

    long = RUNS.assign(strategy=["stock", "a strategy of many words", "stock"])
    assert shift_px(parallel(runs=long)) - shift_px(parallel()) >= 14
    assert parallel(runs=long).layout.margin.t > parallel().layout.margin.t


def test_axes_beyond_nine_are_left_out_and_the_title_says_so() -> None:
    runs = RUNS.assign(**{f"f{number}": [1, 2, 3] for number in range(11)})
    figure = parallel([Dimension(f"f{number}", f"F{number}") for number in range(11)], runs)
    assert len(heads(figure)) == 9
    assert "the first 9 of 11" in figure.layout.title.text


def test_runs_that_do_not_differ_leave_an_empty_chart() -> None:
    assert heads(parallel(runs=RUNS.iloc[[1]])) == []


RATIOS = pd.DataFrame(
    [
        ("at 512", 0.62, 0.60, 0.66, 0.52),
        ("at 1024 <b>", 0.80, 0.80, 0.80, None),
        ("at 4096", None, None, None, 0.90),
    ],
    columns=["label", "measured", "low", "high", "published"],
)


def points(figure: object, name: str) -> dict[str, float]:
    (trace,) = [trace for trace in figure.data if trace.name == name]  # type: ignore[attr-defined]
    return dict(zip(trace.y, trace.x, strict=True))


def test_measured_and_published_ratios_lie_in_one_row_and_missing_ones_nowhere() -> None:
    figure = figures.ratios(RATIOS, title="LoRA against full")
    assert points(figure, "measured") == {"at 512": 0.62, "at 1024 &lt;b&gt;": 0.80}
    assert points(figure, "published") == {"at 512": 0.52, "at 4096": 0.90}
    assert figure.layout.shapes[0].x0 == 1


def test_the_range_of_a_ratio_is_drawn_only_where_it_has_a_width() -> None:
    lines = [trace for trace in figures.ratios(RATIOS, title="x").data if trace.mode == "lines"]
    assert [list(trace.x) for trace in lines] == [[0.60, 0.66]]


def test_predicted_ratios_lie_in_the_same_rows_and_are_said() -> None:
    figure = figures.ratios(RATIOS.assign(predicted=[0.51, None, 0.4]), title="LoRA against full")
    predicted = next(trace for trace in figure.data if trace.name == "predicted")
    assert list(predicted.x) == [0.51, 0.4]
    assert predicted.marker.symbol == "square-open"
    assert "predicted 0.510×" in next(trace.text[0] for trace in figure.data if trace.mode == "text")
    assert all(trace.name != "predicted" for trace in figures.ratios(RATIOS, title="x").data)


def test_ratios_that_span_decades_have_a_logarithmic_axis() -> None:
    wide = figures.ratios(RATIOS.assign(published=[20.0, 100.0, 3.0]), title="x")
    assert wide.layout.xaxis.type == "log"
    assert wide.layout.title.text == "x, log scale"
    assert figures.ratios(RATIOS, title="x").layout.xaxis.type == "linear"


def test_in_a_card_ratios_have_no_title_legend_or_axis_and_their_names_above_the_rows() -> None:
    small = figures.ratios(RATIOS, title="x", is_small=True)
    assert small.layout.title.text is None
    assert not small.layout.showlegend
    assert small.layout.height < 160
    assert [note.text for note in small.layout.annotations] == ["at 4096", "at 1024 &lt;b&gt;", "at 512"]
    assert not any("published" in text for trace in small.data if trace.mode == "text" for text in trace.text)


def test_no_ratio_at_all_is_still_a_chart() -> None:
    assert json.loads(figures.ratios(RATIOS.iloc[:0], title="x").to_json())["layout"]


def test_a_presented_figure_says_the_same_in_larger_type() -> None:
    figure = parallel()
    larger = figures.present(figure)
    assert [list(trace.y)[:3] for trace in larger.data] == [list(trace.y)[:3] for trace in figure.data]
    assert larger.layout.title.text == figure.layout.title.text
    assert larger.layout.title.font.size > 1.3 * figure.layout.title.font.size
    assert larger.layout.annotations[0].font.size > 1.3 * figure.layout.annotations[0].font.size
    assert larger.data[0].marker.size > figure.data[0].marker.size
    assert larger.layout.height > figure.layout.height
    assert larger.layout.legend.font.size == larger.layout.xaxis.tickfont.size == 17
    assert figure.layout.title.font.size == 15, "the figure itself stays as it is"


def test_a_chart_in_words_names_what_is_shown_how_many_and_the_extremes() -> None:
    text = figures.alt_text("Step time", {"a": 2.0, "b": 0.5, "c": math.nan}, "s", "lower")
    assert text == "Step time, lower is better; 2 groups from b with 500 ms to a with 2.00 s"
    assert figures.alt_text("Step time", {"a": 2.0}, "s") == "Step time: a 2.00 s"
    assert figures.alt_text("Step time", {}, "s", "lower") == "Step time, lower is better; nothing was measured"
