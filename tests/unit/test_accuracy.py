"""Predicted beside measured: what can be compared, how large errors are, and what the charts of them say."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from app import figures, formatting
from app.comparison import accuracy
from app.comparison.accuracy import Pair
from db.runs import MetricValue, RunRow
from engine.spec import parse_spec, spec_hash

GIB = 2**30
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}


def row(run_id: int, **columns: Any) -> RunRow:
    """A train run of LoRA on the smallest model, as lists have it."""
    spec = parse_spec({"kind": "train", "model": "tiny-test"})
    fields: dict[str, Any] = dict.fromkeys(RunRow.__slots__)
    known = {
        "id": run_id,
        "kind": "train",
        "state": "succeeded",
        "origin": "local",
        "spec": spec.model_dump(mode="json"),
        "spec_hash": spec_hash(spec),
        "model": "tiny-test",
        "adapter": "LoRA",
        "strategy": "stock",
        "tags": (),
    }
    return RunRow(**{**fields, **known, **columns})


def measured(run_id: int, value: float, name: str = "peak_bytes", variant: str | None = None) -> MetricValue:
    return MetricValue(run_id, name, "bytes", variant, None, 0, value)


def test_only_what_is_on_both_sides_is_a_pair() -> None:
    found = accuracy.pairs(
        {("peak_bytes", None): 100.0, ("peak_bytes", "stock"): 200.0, ("step_time_s", None): 1.0},
        {("peak_bytes", None): 90.0, ("predict_time_s", None): 0.1, ("peak_reserved_bytes", None): 300.0},
    )
    assert found == [Pair("peak_bytes", None, 90.0, 100.0)]
    assert found[0].error == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("predicted", "value", "error", "text"),
    [
        (100, 100, 0, "exact"),
        (0, 0, 0, "exact"),
        (5, 0, math.inf, "nothing measured"),
        (1003.4, 1000, 0.0034, "+0.340 %"),
        (979, 1000, -0.021, "−2.10 %"),
        (1_000_000_001, 1_000_000_000, 1e-9, "+under 0.001 %"),
    ],
)
def test_an_error_is_a_share_of_what_was_measured(predicted: float, value: float, error: float, text: str) -> None:
    found = Pair("merge_peak_extra_bytes", None, predicted, value).error
    assert found == pytest.approx(error)
    assert formatting.error(found) == text


def test_runs_of_other_versions_and_runs_without_a_result_are_left_out() -> None:
    own = {"packages": {**VERSIONS, "torch": "2.13.0+cpu"}}
    other = {"packages": {**VERSIONS, "peft": "0.20.0"}}
    rows = [row(1), row(2), row(3), row(4, state="out_of_memory"), row(5, kind="inspect"), row(6, origin="import")]
    found, of_others = accuracy.comparable(rows, {1: own, 2: other, 4: own, 5: own, 6: own}, VERSIONS)
    assert [one.id for one in found] == [1, 6]
    assert of_others == 2, "a run that recorded no versions is of other ones"


def test_a_run_has_one_line_for_each_of_its_peaks_at_the_median_of_its_repeats() -> None:
    one = row(1, kind="inference")
    values = [measured(1, 2 * GIB, variant="base"), measured(1, 3 * GIB, variant="adapter"), measured(9, GIB)]
    values += [measured(1, 5 * GIB, variant="adapter")]
    predicted = {one.spec_hash: {("peak_bytes", "base"): 2.0 * GIB, ("peak_bytes", "adapter"): 4.4 * GIB}}
    found = accuracy.frame([one], values, predicted)
    assert list(found["variant"]) == ["base", "adapter"]
    assert list(found["error"]) == pytest.approx([0, 0.1])
    assert set(found["label"]) == {"Inference: LoRA"}


def test_the_summary_counts_exact_ones_and_takes_errors_without_their_sign() -> None:
    found = pd.DataFrame({"error": [0.0, -0.04, 0.02], "run_id": [1, 2, 2], "label": ["a", "b", "b"]})
    assert accuracy.summary(found) == accuracy.Summary(median=0.02, worst=0.04, exact=1, pairs=3, runs=2)
    assert list(accuracy.by_label(found)["label"]) == ["b", "a"], "the worst first"
    assert accuracy.summary(found[:0]) is None


def test_replicas_that_took_the_same_are_one_line_of_the_list_and_the_largest_error_comes_first() -> None:
    rows = [row(1), row(2), row(3, spec_hash="other")]
    values = [measured(1, 100.0), measured(2, 100.0), measured(3, 100.0)]
    peaks = {row(1).spec_hash: {("peak_bytes", None): 100.0}, "other": {("peak_bytes", None): 90.0}}
    listed = accuracy.worst_first(accuracy.frame(rows, values, peaks))
    assert list(listed["run_id"]) == [3, 1]
    assert list(listed["runs"]) == [1, 2]


def test_replicas_without_a_prediction_are_asked_for_once() -> None:
    assert [one.id for one in accuracy.missing([row(1), row(2)], {})] == [1]
    assert accuracy.missing([row(1)], {row(1).spec_hash: {}}) == []


@pytest.fixture
def found() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "label": ["Train: LoRA", "Train: LoRA", "Merge: <b>", "Merge: <b>"],
            "text": "a run",
            "adapter": ["LoRA", "LoRA", "<b>", "<b>"],
            "predicted": [1.0 * GIB, 3.0 * GIB, 0.0, 5.0],
            "measured": [1.0 * GIB, 3.1 * GIB, 0.0, 0.0],
            "error": [0.0, 3.0 / 3.1 - 1, 0.0, math.inf],
        }
    )


def test_points_lie_on_the_dashed_diagonal_where_a_prediction_is_exact(found: pd.DataFrame) -> None:
    figure = figures.predicted_measured(found, {"LoRA": "#0072B2"}, title="Predicted beside measured")
    diagonal, points = figure.data
    assert list(diagonal.x) == list(diagonal.y)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert (points.x[0], points.y[0]) == (GIB, GIB)
    assert len(points.x) == 2, "nothing has no place on a logarithmic axis"
    assert points.customdata[0][3] == "exact"


def test_each_row_of_errors_says_how_many_runs_and_the_worst(found: pd.DataFrame) -> None:
    figure = figures.errors(found, {"LoRA": "#0072B2"}, title="Errors")
    texts = next(trace.text for trace in figure.data if trace.mode == "text")
    assert "−3.23 %" in texts[0]
    assert texts[0].endswith("worst of 2")
    assert "exact" in texts[1]
    assert "&lt;b&gt;" in next(trace.y[0] for trace in figure.data[1:]), "a name is text, not markup"
    start, end = figure.layout.xaxis.range
    assert start < -0.033
    assert end > 0.033
    assert 0 in figure.layout.xaxis.tickvals


def test_errors_that_are_all_nothing_are_not_drawn_as_large_ones(found: pd.DataFrame) -> None:
    figure = figures.errors(found[found["error"] == 0], {}, title="Errors")
    assert figure.layout.xaxis.range[0] <= -0.005
