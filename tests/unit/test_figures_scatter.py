"""Two metrics against each other, and which groups no other beats in both."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from app import figures

COLOURS = {"LoRA": "#0072B2"}


def frame(points: dict[str, tuple[float, float]], x: str = "peak_bytes", y: str = "step_time_s") -> pd.DataFrame:
    units = {"peak_bytes": "bytes", "step_time_s": "s", "train_tokens_per_s": "tokens/s", "total_parameters": "count"}
    return pd.DataFrame(
        [
            {"group": group, "adapter": "LoRA", "name": name, "unit": units[name], "value": value, "run_id": place}
            for place, (group, values) in enumerate(points.items())
            for name, value in zip((x, y), values, strict=True)
        ]
    )


def front(figure: object) -> list[float]:
    return [x for trace in figure.data if trace.mode == "lines" for x in trace.x]  # type: ignore[attr-defined]


POINTS = pd.DataFrame({"x": [1.0, 2.0, 3.0, 2.5, 3.0], "y": [9.0, 5.0, 1.0, 6.0, 0.5]}, index=list("abcde"))


@pytest.mark.parametrize(
    ("x", "y", "best"),
    [("lower", "lower", ["a", "b", "e"]), ("higher", "higher", ["a", "d", "c"]), ("lower", "higher", ["a"])],
)
def test_the_front_has_exactly_the_points_that_no_other_beats(x: str, y: str, best: list[str]) -> None:
    assert figures.pareto_front(POINTS, x, y) == best  # type: ignore[arg-type]


def test_points_that_are_equal_are_on_the_front_together() -> None:
    points = pd.DataFrame({"x": [1.0, 1.0, 2.0], "y": [1.0, 1.0, 1.0]}, index=list("abc"))
    assert figures.pareto_front(points, "lower", "lower") == ["a", "b"]


def test_the_front_follows_which_way_each_metric_is_better() -> None:
    points = {"slow": (1e9, 5.0), "fast": (3e9, 9.0), "worse": (4e9, 4.0)}
    figure = figures.scatter(frame(points, y="train_tokens_per_s"), COLOURS, x="peak_bytes", y="train_tokens_per_s")
    assert front(figure) == [1e9, 3e9]
    assert "no other is better in both" in figure.layout.title.text
    assert figure.layout.yaxis.title.text == "Training speed, tokens/s, higher is better"


def test_there_is_no_front_where_neither_way_is_better() -> None:
    points = {"a": (1.0, 5.0), "b": (3.0, 1.0)}
    figure = figures.scatter(frame(points, x="total_parameters"), COLOURS, x="total_parameters", y="step_time_s")
    assert front(figure) == []


def test_a_point_is_at_the_medians_with_quartiles_both_ways() -> None:
    rows = pd.concat([frame({"a": (value, value * 2)}) for value in (1.0, 2.0, 5.0)])
    (point,) = [t for t in figures.scatter(rows, COLOURS, x="peak_bytes", y="step_time_s").data if t.name == "a"]
    assert (point.x[0], point.y[0]) == (2.0, 4.0)
    assert point.error_x.array[0] == pytest.approx(1.5)
    assert point.error_y.arrayminus[0] == pytest.approx(1.0)


def test_a_group_that_lacks_either_metric_is_left_out() -> None:
    figure = figures.scatter(frame({"a": (1.0, 2.0), "b": (math.nan, 2.0)}), COLOURS, x="peak_bytes", y="step_time_s")
    assert [trace.name for trace in figure.data] == ["a"]


def test_nothing_to_show_is_an_empty_chart() -> None:
    figure = figures.scatter(frame({"a": (math.nan, 2.0)}), COLOURS, x="peak_bytes", y="step_time_s")
    assert not figure.data


def test_few_points_are_named_beside_them_many_in_a_legend() -> None:
    few = figures.scatter(frame({"a <i>": (1.0, 2.0), "b": (2.0, 1.0)}), COLOURS, x="peak_bytes", y="step_time_s")
    assert [note.text for note in few.layout.annotations] == ["a &lt;i&gt;", "b"]
    points = {f"g{number}": (1.0 + number, 2.0) for number in range(7)}
    many = figures.scatter(frame(points), COLOURS, x="peak_bytes", y="step_time_s")
    assert not many.layout.annotations
    assert many.layout.showlegend


def test_the_baseline_is_ringed() -> None:
    points = {"a": (1.0, 2.0), "b": (2.0, 1.0)}
    figure = figures.scatter(frame(points), COLOURS, x="peak_bytes", y="step_time_s", baseline="b")
    assert {t.name: t.marker.line.width for t in figure.data if t.name} == {"a": 0, "b": 3}


def test_an_axis_is_logarithmic_where_its_metric_spans_decades() -> None:
    figure = figures.scatter(frame({"a": (1e6, 2.0), "b": (1e9, 1.0)}), COLOURS, x="peak_bytes", y="step_time_s")
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "linear")
    assert "log scale" in figure.layout.xaxis.title.text


def test_a_view_of_a_metric_is_better_the_same_way_and_named() -> None:
    rows = frame({"a": (1.0, 2.0), "b": (2.0, 1.0)}).replace("peak_bytes", "peak_rss_bytes@anonymous")
    figure = figures.scatter(rows, COLOURS, x="peak_rss_bytes@anonymous", y="step_time_s")
    assert figure.layout.xaxis.title.text == "Peak RSS (anonymous), lower is better"
    assert front(figure) == [1.0, 2.0]
