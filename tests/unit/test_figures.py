"""What the charts say, read from the Plotly figures without a browser."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from app import figures, formatting

COLOURS = {"LoRA": "#0072B2", "DoRA": "#E69F00"}


def frame(rows: dict[str, tuple[str, list[float]]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"label": label, "adapter": adapter, "seconds": value, "run_id": run_id}
            for run_id, (label, (adapter, values)) in enumerate(rows.items(), start=1)
            for value in values
        ]
    )


@pytest.fixture
def lora_and_dora() -> pd.DataFrame:
    return frame({"LoRA": ("LoRA", [0.40, 0.42, 0.44]), "DoRA, stock": ("DoRA", [9.5, 9.7, 12.0])})


def texts(figure: object) -> list[str]:
    return [text for trace in figure.data if trace.mode == "text" for text in trace.text]  # type: ignore[attr-defined]


def test_the_title_says_metric_unit_scale_and_which_way_is_better(lora_and_dora: pd.DataFrame) -> None:
    title = figures.init_seconds(lora_and_dora, COLOURS).layout.title.text
    assert title == "Seconds to attach the adapter, log scale, lower is better"


def test_the_axis_is_logarithmic_only_when_values_span_more_than_a_decade(lora_and_dora: pd.DataFrame) -> None:
    assert figures.init_seconds(lora_and_dora, COLOURS).layout.xaxis.type == "log"
    near = frame({"LoRA": ("LoRA", [0.40]), "DoRA": ("DoRA", [0.60])})
    linear = figures.init_seconds(near, COLOURS)
    assert linear.layout.xaxis.type != "log"
    assert linear.layout.xaxis.range[0] == 0


def test_a_zero_among_the_values_keeps_the_axis_linear() -> None:
    figure = figures.init_seconds(frame({"LoRA": ("LoRA", [0.0, 9.0])}), COLOURS)
    assert figure.layout.xaxis.type != "log"


def test_every_label_is_direct_with_the_median_and_what_it_stands_on(lora_and_dora: pd.DataFrame) -> None:
    shown = texts(figures.init_seconds(lora_and_dora, COLOURS))
    assert "420 ms" in shown[0]
    assert "3 repeats, 1 run" in shown[0]
    assert "9.70 s" in shown[1]


def test_a_single_value_draws_no_range_and_says_one_run() -> None:
    figure = figures.init_seconds(frame({"LoRA": ("LoRA", [0.42])}), COLOURS)
    assert [trace.mode for trace in figure.data] == ["markers", "markers", "text"]
    assert "1 run" in texts(figure)[0]


def test_colours_follow_the_adapter_and_unknown_ones_are_grey(lora_and_dora: pd.DataFrame) -> None:
    figure = figures.init_seconds(lora_and_dora, {"DoRA": "#E69F00"})
    assert figure.data[0].marker.color == formatting.GREY
    assert figure.data[4].marker.color == "#E69F00"


def test_the_baseline_is_a_dashed_line_at_its_median(lora_and_dora: pd.DataFrame) -> None:
    figure = figures.init_seconds(lora_and_dora, COLOURS, baseline="LoRA")
    (line,) = figure.layout.shapes
    assert line.x0 == pytest.approx(0.42)
    assert line.line.dash == "dash"


def test_the_first_row_is_on_top_and_all_points_are_within_the_axis(lora_and_dora: pd.DataFrame) -> None:
    figure = figures.init_seconds(lora_and_dora, COLOURS)
    assert list(figure.layout.yaxis.categoryarray) == ["DoRA, stock", "LoRA"]
    low, high = (10**edge for edge in figure.layout.xaxis.range)
    assert low < 0.40
    assert high > 12.0


def test_log_ticks_lie_inside_the_axis_and_are_written_with_units() -> None:
    values, words = figures.time_axis_ticks(0.03, 20)
    assert min(values) >= 0.03
    assert max(values) <= 20
    assert words[0] == "100 ms"
    assert words[-1] == "10 s"


def test_the_first_attach_is_hollow_and_not_part_of_the_median() -> None:
    rows = pd.DataFrame({"repeat": [-1, 0, 1, 2], "seconds": [9.0, 1.0, 2.0, 3.0]})
    figure = figures.repeats(rows, COLOURS["LoRA"])
    assert figure.data[0].marker.symbol == "circle-open"
    assert list(figure.data[0].x) == ["first"]
    assert figure.layout.shapes[0].y0 == 2.0


def test_one_repeat_says_one_run_instead_of_a_median() -> None:
    figure = figures.repeats(pd.DataFrame({"repeat": [0], "seconds": [1.0]}), COLOURS["LoRA"])
    assert figure.layout.annotations[0].text == "1 run"


def test_tensor_memory_stacks_what_comes_on_top_of_the_model_and_says_the_models_size() -> None:
    rows = pd.DataFrame(
        [
            {"time_s": time_s, "category": category, "bytes": value}
            for time_s, base, adapter, temporary in (
                (0.0, 2**29, 0, 0),
                (0.1, 2**30, 0, 0),
                (0.2, 2**30, 2**20, 2**21),
                (0.3, 2**30, 2**20, 0),
            )
            for category, value in (
                ("base parameters", base),
                ("adapter parameters", adapter),
                ("temporary", temporary),
            )
        ]
    )
    figure = figures.tensor_memory(rows)
    assert {trace.stackgroup for trace in figure.data} == {"tensors"}
    assert [trace.name for trace in figure.data] == ["adapter parameters", "temporary"]
    assert max(sum(trace.y[moment] for trace in figure.data) for moment in range(3)) == pytest.approx(3.0)
    assert "on top of the model's 1.00 GiB" in figure.layout.title.text
    assert min(figure.data[0].x) == pytest.approx(0.1), "counting the model's own tensors is not attaching"


def test_a_model_that_changes_while_attaching_stays_in_the_stack() -> None:
    rows = pd.DataFrame(
        {"time_s": [0.0, 0.1, 0.1], "category": ["base parameters", "base parameters", "temporary"], "bytes": [9, 5, 1]}
    )
    assert len(figures.tensor_memory(rows).data) == 2


def test_a_category_missing_at_some_moments_keeps_its_last_value() -> None:
    rows = pd.DataFrame(
        {"time_s": [0.0, 0.0, 0.1], "category": ["scratch", "temporary", "temporary"], "bytes": [100, 10, 20]}
    )
    by_name = {trace.name: list(trace.y) for trace in figures.tensor_memory(rows).data}
    assert by_name["scratch"] == [100, 100]


def test_process_memory_has_one_line_per_kind_in_order_of_time() -> None:
    rows = pd.DataFrame(
        {
            "time_s": [1.0, 0.0, 0.0],
            "phase": ["load", "load", "load"],
            "category": ["anonymous", "anonymous", "file-backed"],
            "bytes": [3 * 2**20, 2**20, 5 * 2**20],
        }
    )
    figure = figures.process_memory(rows)
    assert [trace.name for trace in figure.data] == ["anonymous", "file-backed"]
    assert list(figure.data[0].y) == pytest.approx([1.0, 3.0])
    assert "MiB" in figure.layout.title.text


def test_every_figure_is_plain_json_for_the_browser(lora_and_dora: pd.DataFrame) -> None:
    assert json.loads(figures.init_seconds(lora_and_dora, COLOURS).to_json())["data"]
