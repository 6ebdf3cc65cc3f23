"""Which charts compared runs get: what varies decides."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from app.kinds import comparing, inference, init, merge, train

GIB = 2**30


def run(
    run_id: int,
    group: str,
    metrics: dict[str, tuple[str, list[float]]],
    adapter: str | None = "LoRA",
    state: str = "succeeded",
    variant: str | None = None,
    **fields: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A run's values and its fields (double underscores stand for dots)."""
    values = [
        {
            "run_id": run_id,
            "group": group,
            "adapter": adapter or "",
            "name": name,
            "unit": unit,
            "variant": variant,
            "x": math.nan,
            "repeat": repeat,
            "value": value,
            "failed_checks": 0,
            "state": state,
        }
        for name, (unit, found) in metrics.items()
        for repeat, value in enumerate(found)
    ]
    flat = {name.replace("__", "."): value for name, value in fields.items()}
    return values, {"run_id": run_id, "group": group, "adapter": adapter, "state": state, "device": "cpu", **flat}


def board(*runs: tuple[list[dict[str, Any]], dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    columns = [
        "run_id",
        "group",
        "adapter",
        "name",
        "unit",
        "variant",
        "x",
        "repeat",
        "value",
        "failed_checks",
        "state",
    ]
    frame = pd.DataFrame([line for values, _ in runs for line in values], columns=columns)
    return frame, pd.DataFrame([fields for _, fields in runs]).set_index("run_id")


def titles(charts: list[Any]) -> list[str]:
    return [chart.figure.layout.title.text for chart in charts]


def lines(chart: Any) -> dict[str, list[float]]:
    traces = [trace for trace in chart.figure.data if trace.type == "scatter" and trace.name]
    return {trace.name: list(trace.x) for trace in traces if "lines" in trace.mode}


def texts(chart: Any) -> list[str]:
    return [text for trace in chart.figure.data if trace.type == "scatter" and trace.text for text in trace.text]


def init_run(run_id: int, group: str, rank: int, seconds: float, **more: Any) -> Any:
    found = {"init_time_s": ("s", [seconds] * 3), "init_peak_extra_bytes": ("bytes", [seconds * GIB])}
    return run(run_id, group, found, adapter__rank=rank, **more)


def test_adapters_of_one_rank_are_rows_with_the_baseline_dashed() -> None:
    frame, fields = board(
        init_run(1, "LoRA · Stock PEFT", 16, 0.2), init_run(2, "DoRA · Stock PEFT", 16, 0.9, adapter="DoRA")
    )
    seconds, memory = init.compare_charts(frame, fields, baseline="LoRA · Stock PEFT")
    assert titles([seconds, memory]) == [
        "Seconds to attach the adapter, lower is better",
        "Peak extra memory while attaching, lower is better",
    ]
    assert list(seconds.figure.layout.yaxis.categoryarray) == ["DoRA · Stock PEFT", "LoRA · Stock PEFT"]
    assert seconds.figure.layout.shapes[0].x0 == pytest.approx(0.2)
    assert "from LoRA · Stock PEFT with 200 ms to DoRA · Stock PEFT with 900 ms" in seconds.alt


def test_ranks_lie_along_the_axis_with_one_line_for_each_way() -> None:
    frame, fields = board(
        init_run(1, "LoRA · Stock PEFT, rank 4", 4, 0.2),
        init_run(2, "LoRA · Stock PEFT, rank 64", 64, 0.3),
        init_run(3, "DoRA · Stock PEFT, rank 4", 4, 0.9, adapter="DoRA"),
        init_run(4, "DoRA · Stock PEFT, rank 64", 64, 1.3, adapter="DoRA"),
    )
    seconds = init.compare_charts(frame, fields)[0]
    assert lines(seconds) == {"LoRA · Stock PEFT": [4, 64], "DoRA · Stock PEFT": [4, 64]}
    assert seconds.figure.layout.xaxis.title.text == "rank"


def test_ranks_that_never_share_a_way_are_rows_as_no_line_would_join_them() -> None:
    frame, fields = board(
        init_run(1, "LoRA · Stock PEFT, rank 4", 4, 0.2), init_run(2, "DoRA · Stock PEFT, rank 64", 64, 0.3)
    )
    assert len(init.compare_charts(frame, fields)[0].figure.layout.yaxis.categoryarray) == 2


def test_a_field_can_have_a_panel_per_value_on_one_scale() -> None:
    frame, fields = board(
        init_run(1, "LoRA · Stock PEFT, float32", 16, 0.2, dtype="float32"),
        init_run(2, "LoRA · Stock PEFT, bfloat16", 16, 0.1, dtype="bfloat16"),
    )
    figure = init.compare_charts(frame, fields, facet="dtype")[0].figure
    assert [note.text for note in figure.layout.annotations] == ["float32", "bfloat16"]
    assert {tuple(axis.categoryarray) for axis in figure.select_yaxes()} == {("LoRA · Stock PEFT",)}
    assert init.compare_charts(frame, fields, facet="no.such.field")[0].figure.layout.yaxis.categoryarray


def test_values_normalised_by_their_environment_are_called_multiples_of_the_baseline() -> None:
    frame, fields = board(init_run(1, "a", 16, 1.0), init_run(2, "b", 16, 2.0))
    charts = init.compare_charts(frame.assign(unit="ratio"), fields)
    assert "times the baseline's" in charts[0].figure.layout.title.text


def test_a_kind_without_its_metrics_has_no_chart() -> None:
    frame, fields = board(run(1, "a", {}, state="failed"))
    for kind in (init, merge, train, inference):
        assert kind.compare_charts(frame, fields) == []


def merge_run(run_id: int, group: str, peak: float, rank: int = 16) -> Any:
    found = {
        "merge_peak_extra_bytes": ("bytes", [peak * GIB]),
        "merge_retained_extra_bytes": ("bytes", [0.0]),
        "largest_weight_bytes": ("bytes", [float(GIB)]),
        "merge_time_s": ("s", [1.0, 1.1]),
    }
    return run(run_id, group, found, adapter__rank=rank)


def test_a_merge_peak_is_in_bytes_and_in_weights() -> None:
    frame, fields = board(merge_run(1, "stock", 2.0), merge_run(2, "addmm", 0.0))
    peak, seconds = merge.compare_charts(frame, fields, baseline="stock")
    assert [list(trace.x) for trace in peak.figure.data if trace.type == "bar"] == [[2 * GIB, 0.0], [2.0, 0.0]]
    assert seconds.figure.layout.title.text == "Seconds to merge, lower is better"


def test_a_merge_that_ran_out_of_memory_is_in_the_chart() -> None:
    frame, fields = board(merge_run(1, "stock", 2.0), run(2, "out of place", {}, state="out_of_memory"))
    figure = merge.compare_charts(frame, fields)[0].figure
    assert list(figure.layout.yaxis.categoryarray) == ["out of place", "stock"]
    assert any("out of memory" in str(trace.text) for trace in figure.data)


def test_merge_peaks_lie_along_rank_where_that_varies() -> None:
    frame, fields = board(merge_run(1, "stock, rank 4", 2.0, 4), merge_run(2, "stock, rank 64", 2.5, 64))
    assert lines(merge.compare_charts(frame, fields)[0]) == {"stock": [4, 64]}


def train_run(run_id: int, group: str, length: int, *, peak: float = 5.0, **more: Any) -> Any:
    found = {
        "parameters_bytes": ("bytes", [3.0 * GIB]),
        "activations_bytes": ("bytes", [1.0 * GIB]),
        "peak_bytes": ("bytes", [peak * GIB]),
        "step_time_s": ("s", [2.0, 2.1]),
        "train_tokens_per_s": ("tokens/s", [length / 2, length / 2.1]),
        "forward_time_s": ("s", [0.5]),
        "backward_time_s": ("s", [1.5]),
    }
    return run(run_id, group, found, train__context_length=length, environment__memory_bytes=8 * GIB, **more)


def test_train_runs_of_one_length_are_rows_of_categories_with_the_rest_unattributed_and_the_device() -> None:
    frame, fields = board(train_run(1, "Full fine-tuning", 512), train_run(2, "LoRA · Stock PEFT", 512, peak=4.0))
    memory, seconds, split = train.compare_charts(frame, fields)
    parts = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in memory.figure.data if trace.name}
    assert parts["unattributed"] == {"Full fine-tuning": GIB}
    assert parts["activations"] == {"Full fine-tuning": GIB, "LoRA · Stock PEFT": GIB}
    assert memory.figure.layout.annotations[0].text == "cpu: 8.00 GiB"
    assert seconds.figure.layout.title.text == "Seconds of a training step, lower is better"
    assert [trace.name for trace in split.figure.data if trace.type == "bar"] == ["forward", "backward"]


def test_predicted_peaks_stand_beside_the_measured_rows_with_their_error() -> None:
    frame, fields = board(train_run(1, "Full fine-tuning", 512), train_run(2, "LoRA", 512, peak=4.0))
    fields[comparing.PREDICTED_PEAK] = [5.1 * GIB, None]
    full, lora = texts(train.compare_charts(frame, fields)[0])
    assert full.endswith("predicted 5.10 GiB, +2.00 %")
    assert "predicted" not in lora


def test_predicted_peaks_are_points_at_their_lengths_also_where_a_run_ran_out_of_memory() -> None:
    ended = run(2, "LoRA, context 1024", {}, state="out_of_memory", train__context_length=1024)
    frame, fields = board(train_run(1, "LoRA, context 512", 512), ended)
    fields[comparing.PREDICTED_PEAK] = [5.0 * GIB, 9.0 * GIB]
    chart = train.compare_charts(frame, fields)[0]
    (points,) = [trace for trace in chart.figure.data if trace.name == "predicted"]
    assert list(points.y) == [5 * GIB, 9 * GIB]
    assert "predicted" in chart.alt


def test_a_gpu_run_is_held_against_the_gpus_memory_and_not_the_machines() -> None:
    frame, fields = board(train_run(1, "LoRA", 512))
    fields = fields.assign(device="cuda:0", **{"environment.gpu_memory_bytes": 6.0 * GIB})
    memory = train.compare_charts(frame, fields)[0].figure
    assert [note.text for note in memory.layout.annotations] == ["cuda:0: 6.00 GiB"]


def test_lengths_are_stacks_with_a_panel_per_way_and_speed_is_in_tokens() -> None:
    frame, fields = board(
        train_run(1, "Full fine-tuning, context 512", 512),
        train_run(2, "Full fine-tuning, context 1024", 1024),
        train_run(3, "LoRA · Stock PEFT, context 512", 512, peak=4.0),
        train_run(4, "LoRA · Stock PEFT, context 1024", 1024, peak=4.0),
    )
    memory, speed, _ = train.compare_charts(frame, fields)
    assert [note.text for note in memory.figure.layout.annotations] == ["Full fine-tuning", "LoRA · Stock PEFT"]
    assert list(memory.figure.layout.xaxis.ticktext) == ["512", "1024"]
    assert speed.figure.layout.title.text == "Tokens trained per second, higher is better"
    assert lines(speed) == {"Full fine-tuning": [512, 1024], "LoRA · Stock PEFT": [512, 1024]}


def test_small_multiples_of_lengths_have_a_panel_per_value_and_way_in_order_of_the_values() -> None:
    frame, fields = board(
        train_run(1, "LoRA, batch 8, context 512", 512, train__batch_size=8),
        train_run(2, "LoRA, batch 8, context 1024", 1024, train__batch_size=8),
        train_run(3, "LoRA, batch 2, context 512", 512, peak=4.0, train__batch_size=2),
        train_run(4, "LoRA, batch 2, context 1024", 1024, peak=4.0, train__batch_size=2),
    )
    fields[comparing.PREDICTED_PEAK] = [5.0 * GIB] * 4
    memory = train.compare_charts(frame, fields, facet="train.batch_size")[0].figure
    assert [note.text for note in memory.layout.annotations] == ["batch size 2, LoRA", "batch size 8, LoRA"]
    assert len([trace for trace in memory.data if trace.name == "predicted"]) == 2
    by_adapter = train.compare_charts(frame, fields.assign(kind_of="LoRA"), facet="kind_of")[0].figure
    assert {note.text for note in by_adapter.layout.annotations} == {"LoRA, batch 8", "LoRA, batch 2"}
    by_length = train.compare_charts(frame, fields, facet="train.context_length")[0].figure
    assert len(by_length.layout.annotations) == 2


def test_a_length_that_ran_out_of_memory_is_a_hollow_marker_even_where_nothing_was_measured() -> None:
    frame, fields = board(
        train_run(1, "Full fine-tuning, context 512", 512),
        train_run(2, "Full fine-tuning, context 1024", 1024),
        run(3, "Full fine-tuning, context 2048", {}, state="out_of_memory", train__context_length=2048),
    )
    memory, speed, _ = train.compare_charts(frame, fields)
    for figure in (memory.figure, speed.figure):
        (hollow,) = [trace for trace in figure.data if trace.type == "scatter" and trace.marker.symbol == "circle-open"]
        assert len(hollow.x) == 1
    assert list(memory.figure.layout.xaxis.ticktext) == ["512", "1024", "2048"]
    assert lines(speed) == {"Full fine-tuning": [512, 1024]}


def test_a_run_out_of_memory_among_rows_says_so() -> None:
    frame, fields = board(
        train_run(1, "Full fine-tuning", 512),
        run(2, "LoRA", {"peak_bytes": ("bytes", [7.0 * GIB])}, state="out_of_memory", train__context_length=512),
    )
    memory, seconds, _ = train.compare_charts(frame, fields)
    texts = [text for trace in memory.figure.data if trace.type == "scatter" for text in trace.text]
    assert any("7.00 GiB" in text and "out of memory" in text for text in texts)
    assert any("out of memory" in str(trace.text) for trace in seconds.figure.data)


def inference_run(run_id: int, group: str, variant: str, rank: int, batch: int, speed: float) -> Any:
    found = {"decode_tokens_per_s": ("tokens/s", [speed] * 3), "overhead_ratio": ("ratio", [10 / speed])}
    fields = {"adapter__rank": rank, "inference__batch_size": batch}
    return run(run_id, group, found, variant=variant, **fields)


def test_speed_and_overhead_lie_along_rank_with_a_panel_per_batch() -> None:
    frame, fields = board(
        *(
            inference_run(place, f"LoRA · Stock PEFT, rank {rank}, batch {batch}", "adapter", rank, batch, 9.0)
            for place, (rank, batch) in enumerate([(4, 1), (64, 1), (4, 8), (64, 8)])
        )
    )
    speed, overhead = inference.compare_charts(frame, fields)
    assert [note.text for note in speed.figure.layout.annotations] == ["batch size 1", "batch size 8"]
    assert lines(speed) == {"LoRA · Stock PEFT": [4, 64]}
    assert speed.figure.layout.title.text == "Tokens written per second, higher is better"
    assert {shape.y0 for shape in overhead.figure.layout.shapes} == {1.0}


def test_variants_of_one_setting_are_rows() -> None:
    frame, fields = board(inference_run(1, "LoRA · Stock PEFT", "adapter", 16, 1, 9.0))
    merged, _ = board(inference_run(1, "LoRA · Merged", "merged", 16, 1, 12.0))
    speed = inference.compare_charts(pd.concat([frame, merged], ignore_index=True), fields)[0]
    assert list(speed.figure.layout.yaxis.categoryarray) == ["LoRA · Merged", "LoRA · Stock PEFT"]


def test_more_rows_than_fit_are_cut_and_the_title_says_how_many() -> None:
    frame, fields = board(*(init_run(number, f"way {number}", 16, 1.0) for number in range(50)))
    seconds = init.compare_charts(frame, fields)[0]
    assert len(seconds.figure.layout.yaxis.categoryarray) == comparing.MAX_ROWS
    assert "(the first 40 of 50)" in seconds.figure.layout.title.text


def test_a_line_loses_only_the_parts_of_its_name_that_the_axis_tells() -> None:
    frame, fields = board(init_run(1, "LoRA, rank 4, float32", 4, 1.0), init_run(2, "LoRA, rank 4.5", 4, 1.0))
    found = comparing.series(frame, fields, ["adapter.rank"])
    assert set(found) == {"LoRA, float32", "LoRA, rank 4.5"}


def test_a_line_that_is_named_by_its_axis_alone_is_called_by_its_adapter() -> None:
    frame, fields = board(init_run(1, "rank 4", 4, 1.0), init_run(2, "rank 8", 8, 1.0, adapter=None))
    assert list(dict.fromkeys(comparing.series(frame, fields, ["adapter.rank"]))) == ["LoRA", "Base model"]


def test_only_numbers_lie_along_an_axis() -> None:
    _, fields = board(
        init_run(1, "a", 4, 1.0, train__gradient_checkpointing=True, dtype="float32"),
        init_run(2, "b", 8, 1.0, train__gradient_checkpointing=False, dtype="bfloat16"),
    )
    names = ["dtype", "train.gradient_checkpointing", "adapter.rank", "no.such.field"]
    assert comparing.varying(fields, names) == ["adapter.rank"]
    assert comparing.varying(fields, names, without="adapter.rank") == []
