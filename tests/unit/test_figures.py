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
            {"label": label, "adapter": adapter, "value": value, "run_id": run_id}
            for run_id, (label, (adapter, values)) in enumerate(rows.items(), start=1)
            for value in values
        ]
    )


@pytest.fixture
def lora_and_dora() -> pd.DataFrame:
    return frame({"LoRA": ("LoRA", [0.40, 0.42, 0.44]), "DoRA, stock": ("DoRA", [9.5, 9.7, 12.0])})


def attaching(rows: pd.DataFrame, baseline: str | None = None):  # type: ignore[no-untyped-def]
    return figures.spread(rows, COLOURS, title="Seconds to attach the adapter", baseline=baseline)


def texts(figure: object) -> list[str]:
    return [text for trace in figure.data if trace.type == "scatter" and trace.mode == "text" for text in trace.text]  # type: ignore[attr-defined]


def test_the_title_says_metric_unit_scale_and_which_way_is_better(lora_and_dora: pd.DataFrame) -> None:
    title = attaching(lora_and_dora).layout.title.text
    assert title == "Seconds to attach the adapter, log scale, lower is better"


def test_the_axis_is_logarithmic_only_when_values_span_more_than_a_decade(lora_and_dora: pd.DataFrame) -> None:
    assert attaching(lora_and_dora).layout.xaxis.type == "log"
    near = frame({"LoRA": ("LoRA", [0.40]), "DoRA": ("DoRA", [0.60])})
    linear = attaching(near)
    assert linear.layout.xaxis.type != "log"
    assert linear.layout.xaxis.range[0] == 0


def test_a_zero_among_the_values_keeps_the_axis_linear() -> None:
    figure = attaching(frame({"LoRA": ("LoRA", [0.0, 9.0])}))
    assert figure.layout.xaxis.type != "log"


def test_every_label_is_direct_with_the_median_and_what_it_stands_on(lora_and_dora: pd.DataFrame) -> None:
    shown = texts(attaching(lora_and_dora))
    assert "420 ms" in shown[0]
    assert "3 repeats, 1 run" in shown[0]
    assert "9.70 s" in shown[1]


def test_a_single_value_draws_no_range_and_says_one_run() -> None:
    figure = attaching(frame({"LoRA": ("LoRA", [0.42])}))
    assert "lines" not in [trace.mode for trace in figure.data]
    assert "1 run" in texts(figure)[0]


def test_the_interquartile_range_of_each_row_is_a_line_of_its_own(lora_and_dora: pd.DataFrame) -> None:
    figure = figures.spread(lora_and_dora.assign(adapter="LoRA"), COLOURS, title="Seconds")
    (ranges,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert list(ranges.y) == ["LoRA"] * 3 + ["DoRA, stock"] * 3
    assert [x for x in ranges.x if x == x and x is not None] == pytest.approx([0.41, 0.43, 9.6, 10.85])
    assert ranges.x[2] is None or ranges.x[2] != ranges.x[2], "rows are not joined"


def test_a_row_whose_runs_all_ran_out_of_memory_says_so_at_what_was_reached() -> None:
    rows = frame({"LoRA": ("LoRA", [1.0]), "Full": ("", [3.0]), "Long": ("", [float("nan")])})
    rows = rows.assign(state=["succeeded", "out_of_memory", "out_of_memory"])
    figure = figures.spread(rows, COLOURS, title="Peak", unit="bytes")
    (hollow,) = [trace for trace in figure.data if trace.mode == "markers+text"]
    assert list(hollow.y) == ["Full", "Long"]
    assert list(hollow.x) == [3.0, 0.0]
    assert [text.strip() for text in hollow.text] == ["out of memory at 3 B", "out of memory"]
    assert list(figure.layout.yaxis.categoryarray) == ["Long", "Full", "LoRA"]


def test_typed_markup_in_a_row_is_shown_letter_by_letter_and_long_names_are_cut() -> None:
    figure = attaching(frame({"<b>x</b> " + "long " * 30: ("LoRA", [1.0])}), baseline="<b>x</b> " + "long " * 30)
    shown = figure.layout.yaxis.ticktext[0]
    assert shown.startswith("&lt;b&gt;x&lt;/b&gt;")
    assert shown.endswith("…")
    assert len(figure.layout.shapes) == 1


def test_many_rows_lie_closer_so_that_fifty_fit_on_two_screens() -> None:
    figure = attaching(frame({f"way {number}": ("LoRA", [1.0]) for number in range(50)}))
    assert figure.layout.height < 1600


def test_colours_follow_the_adapter_and_unknown_ones_are_grey(lora_and_dora: pd.DataFrame) -> None:
    figure = figures.spread(lora_and_dora, {"DoRA": "#E69F00"}, title="Seconds")
    points, *ranges = figure.data[:3]
    assert list(points.marker.color) == [formatting.GREY] * 3 + ["#E69F00"] * 3
    assert [trace.line.color for trace in ranges] == [formatting.GREY, "#E69F00"]


def test_the_baseline_is_a_dashed_line_at_its_median(lora_and_dora: pd.DataFrame) -> None:
    figure = attaching(lora_and_dora, baseline="LoRA")
    (line,) = figure.layout.shapes
    assert line.x0 == pytest.approx(0.42)
    assert line.line.dash == "dash"


def test_the_first_row_is_on_top_and_all_points_are_within_the_axis(lora_and_dora: pd.DataFrame) -> None:
    figure = attaching(lora_and_dora)
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
    figure = figures.repeats(rows, COLOURS["LoRA"], title="Each attach")
    assert figure.data[0].marker.symbol == "circle-open"
    assert list(figure.data[0].x) == ["first"]
    assert figure.layout.shapes[0].y0 == 2.0


def test_one_repeat_says_one_run_instead_of_a_median() -> None:
    figure = figures.repeats(pd.DataFrame({"repeat": [0], "seconds": [1.0]}), COLOURS["LoRA"], title="Each attach")
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
    figure = figures.tensor_memory(rows, title="Live tensors")
    assert {trace.stackgroup for trace in figure.data} == {"tensors"}
    assert [trace.name for trace in figure.data] == ["adapter parameters", "temporary"]
    tops = [sum(trace.y[moment] for trace in figure.data) for moment in range(3)]
    assert max(tops) == pytest.approx(3 * 2**20)
    assert "on top of the model's 1.00 GiB" in figure.layout.title.text
    assert min(figure.data[0].x) == pytest.approx(0.1), "counting the model's own tensors is not attaching"


def test_a_weight_that_is_there_twice_while_it_is_replaced_is_shown_on_top_of_the_model() -> None:
    model, weight = 2**30, 2**22
    rows = pd.DataFrame(
        [
            {"time_s": time_s, "category": category, "bytes": value}
            for time_s, base, temporary in (
                (0.0, model // 2, 0),
                (0.1, model, 0),
                (0.2, model + weight, weight),
                (0.3, model, 0),
            )
            for category, value in (("base parameters", base), ("temporary", temporary))
        ]
    )
    figure = figures.tensor_memory(rows, title="Live tensors while merging")
    assert "on top of the model's 1.00 GiB" in figure.layout.title.text
    assert {trace.name: max(trace.y) for trace in figure.data} == {"temporary": weight, "base parameters": weight}


def test_one_disturbed_repeat_does_not_bend_the_axis() -> None:
    rows = frame({"LoRA": ("LoRA", [0.4, 0.41, 9.0]), "DoRA": ("DoRA", [0.6])})
    assert attaching(rows).layout.xaxis.type != "log"


def test_a_model_that_changes_while_attaching_stays_in_the_stack() -> None:
    rows = pd.DataFrame(
        {"time_s": [0.0, 0.1, 0.1], "category": ["base parameters", "base parameters", "temporary"], "bytes": [9, 5, 1]}
    )
    assert len(figures.tensor_memory(rows, title="Live tensors").data) == 2


def test_a_category_missing_at_some_moments_keeps_its_last_value() -> None:
    rows = pd.DataFrame(
        {"time_s": [0.0, 0.0, 0.1], "category": ["scratch", "temporary", "temporary"], "bytes": [100, 10, 20]}
    )
    by_name = {trace.name: list(trace.y) for trace in figures.tensor_memory(rows, title="Live tensors").data}
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
    assert list(figure.data[0].y) == pytest.approx([2**20, 3 * 2**20])
    assert "MiB" in figure.layout.yaxis.ticktext[-1]


def test_all_of_a_models_memory_is_shown_where_the_model_itself_is_what_takes_it() -> None:
    rows = pd.DataFrame(
        [
            {"time_s": time_s, "category": category, "bytes": value}
            for time_s, activations in ((0.0, 0), (0.1, 2**20))
            for category, value in (("base parameters", 2**30), ("activations", activations))
        ]
    )
    assert len(figures.tensor_memory(rows, title="Live tensors", on_top=False).data) == 2


@pytest.mark.parametrize(
    ("unit", "values", "label", "tick"),
    [
        ("W", [2.0, 6.02], "6.02 W", "2 W"),
        ("tokens/s", [8.0, 9.2], "9.20 tokens/s", "2"),
        ("ratio", [1.0, 1.42], "1.42×", "0.5×"),
        ("bytes", [2**20, 6 * 2**20], "6.00 MiB", "2 MiB"),
        ("s", [0.2, 0.5], "500 ms", "200 ms"),
    ],
)
def test_every_unit_is_on_its_labels_and_ticks(unit: str, values: list[float], label: str, tick: str) -> None:
    rows = frame({"LoRA": ("LoRA", values[:1]), "DoRA": ("DoRA", values[1:])})
    figure = figures.spread(rows, COLOURS, title="Some metric", unit=unit)
    assert label in texts(figure)[1]
    assert tick in figure.layout.xaxis.ticktext


@pytest.mark.parametrize("unit", ["s", "bytes", "tokens/s"])
def test_a_logarithmic_axis_in_any_unit_has_ticks_inside_it(unit: str) -> None:
    rows = frame({"LoRA": ("LoRA", [3.0]), "DoRA": ("DoRA", [900.0])})
    axis = figures.spread(rows, COLOURS, title="Some metric", unit=unit).layout.xaxis
    assert axis.type == "log"
    assert len([tick for tick in axis.tickvals if 10 ** axis.range[0] <= tick <= 10 ** axis.range[1]]) >= 2


def test_the_title_says_when_more_is_better() -> None:
    figure = figures.spread(
        frame({"LoRA": ("LoRA", [9.0])}), COLOURS, title="Tokens per second", unit="tokens/s", better="higher"
    )
    assert figure.layout.title.text == "Tokens per second, higher is better"


def test_a_label_that_the_baseline_would_cross_starts_behind_it() -> None:
    rows = frame({"Base": ("", [13.0]), "LoRA": ("LoRA", [11.0]), "Slow": ("LoRA", [2.0])})
    figure = figures.spread(rows, COLOURS, title="Tokens per second", unit="tokens/s", baseline="Base")
    (words,) = [trace for trace in figure.data if trace.mode == "text"]
    at = dict(zip(words.y, words.x, strict=True))
    assert at == {"Base": 13.0, "LoRA": 13.0, "Slow": 2.0}


def test_on_a_logarithmic_axis_a_label_stays_with_its_row_unless_the_baseline_is_next_to_it() -> None:
    rows = frame({"Base": ("", [100.0]), "Near": ("LoRA", [60.0]), "Far": ("LoRA", [1.0])})
    figure = figures.spread(rows, COLOURS, title="Seconds", baseline="Base")
    (words,) = [trace for trace in figure.data if trace.mode == "text"]
    assert dict(zip(words.y, words.x, strict=True)) == {"Base": 100.0, "Near": 100.0, "Far": 1.0}


def test_linear_ticks_are_few_round_and_start_at_zero() -> None:
    values, words = figures.linear_ticks(0.7, "s")
    assert values[0] == 0
    assert len(values) <= 6
    assert words[-1] == "600 ms"
    assert figures.linear_ticks(0.0, "bytes") == ([0.0], ["0"])


def stack() -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("Full", "parameters", 2 * 2**30),
            ("Full", "activations", 2**30),
            ("LoRA", "activations", 2**29),
            ("LoRA", "parameters", 2 * 2**30),
            ("LoRA", "something new", 2**20),
        ],
        columns=["label", "part", "value"],
    )


def test_stacked_parts_lie_in_one_order_with_their_own_colours_and_a_total() -> None:
    figure = figures.stacked(stack(), figures.CATEGORY_COLOURS, title="Memory", unit="bytes")
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.name for bar in bars] == ["parameters", "activations", "something new"]
    assert [bar.marker.color for bar in bars][:2] == [formatting.GREY, "#56B4E9"]
    assert "<b>3.00 GiB</b>" in texts(figure)[0]
    assert list(figure.layout.yaxis.categoryarray) == ["LoRA", "Full"]
    assert figure.layout.title.text == "Memory, lower is better"


def test_a_limit_is_drawn_where_it_is_near_and_left_out_where_it_would_squash_the_chart() -> None:
    near = figures.stacked(stack(), {}, title="Memory", unit="bytes", limit=("cpu: 4 GiB", 4 * 2**30))
    assert near.layout.shapes[0].x0 == 4 * 2**30
    assert near.layout.xaxis.range[1] > 4 * 2**30
    far = figures.stacked(stack(), {}, title="Memory", unit="bytes", limit=("cpu: 64 GiB", 64 * 2**30))
    assert not far.layout.shapes


def test_what_no_category_explains_is_hatched_and_never_hidden() -> None:
    rows = pd.DataFrame({"label": ["Process"] * 2, "part": ["parameters", "unattributed"], "value": [2**30, 2**29]})
    figure = figures.stacked(rows, figures.CATEGORY_COLOURS, title="Memory", unit="bytes")
    assert figure.data[1].name == "unattributed"
    assert figure.data[1].marker.pattern.shape == "/"
    assert "1.50 GiB" in texts(figure)[0]


def test_drift_has_a_line_for_each_error_in_per_cent() -> None:
    rows = pd.DataFrame({"round": [2, 1], "series": ["Weight error"] * 2, "value": [0.04, 0.03]})
    figure = figures.drift(rows, {"Weight error": "#0072B2"}, title="Drift")
    assert list(figure.data[0].x) == [1, 2]
    assert list(figure.data[0].y) == pytest.approx([3.0, 4.0])
    assert "% of the adapter's effect" in figure.layout.title.text


def test_every_figure_is_plain_json_for_the_browser(lora_and_dora: pd.DataFrame) -> None:
    assert json.loads(attaching(lora_and_dora).to_json())["data"]
